"""Rows to passages: one that says what the table holds, then the rows themselves, written so that they can be found.

The first passage names the columns with their types, ranges and commonest values and shows sample rows, which answers
"which table has ...". Then each row becomes a line ``column: value; column: value``, for a value without its column's
name means little to a reader and less to an index. Rows stream; what is kept is bounded, and a table that is longer
says so in its metadata.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deepwell.library.readers.guard import one_line
from deepwell.library.readers.passages import MAX_TOKENS, cut_text
from deepwell.library.readers.tokens import estimate_tokens
from deepwell.library.records import Passage, Place

ROWS_LIMIT = 50_000
PASSAGES_LIMIT = 4_000
_ROW_TOKENS = 225
_COLUMNS_SHOWN = 60
_DISTINCT = 200
_SAMPLE_ROWS = 3
_CELL = 100_000


@dataclass(slots=True)
class _Column:
    name: str
    filled: int = 0
    numbers: int = 0
    whole: int = 0
    dates: int = 0
    low: float = math.inf
    high: float = -math.inf
    first: str = ""
    last: str = ""
    values: Counter[str] = field(default_factory=Counter)

    def add(self, value: str) -> None:
        self.filled += 1
        number = as_number(value)
        if number is not None:
            self.numbers += 1
            self.whole += number.is_integer() and "." not in value
            self.low, self.high = min(self.low, number), max(self.high, number)
        elif is_date(value):
            self.dates += 1
            self.first = min(self.first or value, value)
            self.last = max(self.last, value)
        if value in self.values or len(self.values) < _DISTINCT:
            self.values[value[:80]] += 1

    def describe(self) -> str:
        if not self.filled:
            return f"{self.name}: empty"
        if self.numbers >= 0.95 * self.filled:
            kind = "whole number" if self.whole == self.numbers else "number"
            return f"{self.name}: {kind}, {_figure(self.low)} to {_figure(self.high)}"
        if self.dates >= 0.95 * self.filled:
            return f"{self.name}: date, {self.first} to {self.last}"
        distinct = len(self.values)
        if distinct >= _DISTINCT or distinct > max(12, self.filled // 2):
            return f"{self.name}: text, such as {', '.join(_shortened(value) for value in list(self.values)[:3])}"
        commonest = self.values.most_common(8)
        more = f" and {distinct - 8} more" if distinct > 8 else ""
        return f"{self.name}: {', '.join(_shortened(value) for value, _ in commonest)}{more}"


@dataclass(frozen=True, slots=True)
class Table:
    """Passages of one table and what to say of it in metadata. ``read`` rows were seen, ``indexed`` became passages."""

    passages: list[Passage]
    columns: tuple[str, ...]
    read: int
    indexed: int
    notice: str = ""


def read_table(
    rows: Iterable[Mapping[str, object]], *, name: str, total: int | None = None, section: tuple[str, ...] = ()
) -> Table:
    """Passages of a table's rows, each a mapping of column to value in the order of the columns.

    Args:
        rows: Read until ``ROWS_LIMIT`` or ``PASSAGES_LIMIT`` is reached, and no further.
        name: What to call the table.
        total: How many rows there are, where the file tells without reading them.
        section: For the place of every passage.
    """
    columns: dict[str, _Column] = {}
    passages: list[Passage] = []
    batch: list[str] = []
    samples: list[str] = []
    size, first, number, cut_off = 0.0, 1, 0, False

    def flush(last: int) -> None:
        nonlocal size, first
        if batch:
            passages.append(Passage("\n".join(batch), Place(rows=(first, last), section=section)))
        batch.clear()
        size, first = 0.0, last + 1

    for row in rows:
        if number >= ROWS_LIMIT or len(passages) >= PASSAGES_LIMIT:
            cut_off = True
            break
        number += 1
        cells = {key: text for key, value in row.items() if (text := cell_text(value))}
        for key in row:
            if key not in columns and len(columns) < 2000:
                columns[key] = _Column(key)
        for key, text in cells.items():
            if key in columns:
                columns[key].add(text)
        line = "; ".join(f"{key}: {text}" for key, text in cells.items())
        if len(samples) < _SAMPLE_ROWS:
            samples.append(_shortened(line, 300))
        tokens = estimate_tokens(line)
        if batch and size + tokens > _ROW_TOKENS:
            flush(number - 1)
        if tokens > MAX_TOKENS:
            flush(number - 1)
            passages.extend(Passage(piece, Place(rows=(number, number), section=section)) for piece in cut_text(line))
            first = number + 1
        elif line:
            batch.append(line)
            size += tokens
    flush(number)
    count = total if total is not None else number
    known = "" if not cut_off or total is not None else "more than "
    about = f"Table {name}: {known}{count:,} rows, {len(columns):,} columns."
    shown = [_shortened(column.describe(), 400) for column in list(columns.values())[:_COLUMNS_SHOWN]]
    if len(columns) > _COLUMNS_SHOWN:
        others = ", ".join(list(columns)[_COLUMNS_SHOWN:200])
        shown.append(_shortened(f"and {len(columns) - _COLUMNS_SHOWN} more columns: {others}", 800))
    schema = "\n".join([about, *shown, "Sample rows:", *samples] if samples else [about, *shown])
    notice = f"only the first {number:,} rows are indexed" if cut_off else ""
    head = [Passage(piece, Place(section=section)) for piece in _pieces(schema)]
    return Table([*head, *passages], tuple(columns), count, number, notice)


def _pieces(schema: str) -> list[str]:
    if estimate_tokens(schema) <= MAX_TOKENS:
        return [schema]
    pieces: list[str] = []
    lines: list[str] = []
    size = 0.0
    for line in schema.split("\n"):
        tokens = estimate_tokens(line)
        if lines and size + tokens > MAX_TOKENS:
            pieces.append("\n".join(lines))
            lines, size = [], 0.0
        lines.append(line)
        size += tokens
    return [*pieces, "\n".join(lines)]


def cell_text(value: object) -> str:
    """A value as words: nothing for missing ones, whole floats without ``.0``, dates in ISO 8601."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time() and value.tzinfo is None
        return value.date().isoformat() if midnight else value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    return one_line(str(value)[:_CELL])


def as_number(text: str) -> float | None:
    """The number a cell holds, thousands separators and a sign of percent or currency aside; None when it is none."""
    if len(text) > 40 or not any("0" <= char <= "9" for char in text):
        return None
    try:
        number = float(text.strip("$€£% ").replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def is_date(text: str) -> bool:
    """Whether a cell begins with a date in ISO 8601."""
    try:
        datetime.date.fromisoformat(text[:10])
    except ValueError:
        return False
    return len(text) >= 10 and text[4] == "-"


def named(cells: Sequence[str]) -> list[str]:
    """Names for columns: the header's cells, a number for an empty one, a suffix for one that is there already."""
    names: list[str] = []
    seen: Counter[str] = Counter()
    for at, cell in enumerate(cells, 1):
        name = one_line(cell)[:120] or f"column {at}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: its cells are filled, differ, and none is a number or date."""
    if not rows:
        return False
    cells = [cell.strip() for cell in rows[0]]
    filled = [cell for cell in cells if cell]
    if not filled or len(filled) < 0.5 * len(cells) or any(len(cell) > 120 for cell in filled):
        return False
    years = all(cell.isdigit() and len(cell) == 4 for cell in filled[1:]) and len(filled) > 2
    return years or not any(as_number(cell) is not None or is_date(cell) for cell in filled)


def _shortened(text: str, size: int = 40) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}…"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:g}"
