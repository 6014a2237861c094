"""Lines on a page to blocks: reading order of columns, paragraphs, words mended at line ends, headings by the outline.

The order in which a file draws its lines is nearly always the order of reading, so it is kept. The one exception is a
page of columns drawn row by row, which shows as many lines in a row with two wide parts and a gap between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from deepwell.library.readers.passages import Block
from deepwell.library.records import Box

SOFT_HYPHEN = "\u00ad"

_COLUMN = 0.25
_ROWS = 5
_BROKEN = re.compile(rf"(\w+(?:-\w+)*)[-‐{SOFT_HYPHEN}]$")
_COMPOUND = re.compile(r"\w+(?:-\w+)+")
_TAIL = re.compile(r"[a-zß-ÿ]\w*")
_BULLET = re.compile(r"(?:[•◦▪‣·∙*–—-]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s")
_NOISE = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Line:
    """Words on one line. ``joined`` parts were one line with the part before, with a wide gap between.

    ``base`` and ``last`` are the heights of its first and last baseline, as shares of the page from the top; they tell
    the spacing of lines where boxes do not, for letters reach up and down by different amounts. They differ where
    PDFium ran two lines into one. ``size`` is that of the font, 0 if unknown.
    """

    text: str
    box: Box | None
    joined: bool = False
    base: float | None = None
    last: float | None = None
    size: float = 0.0

    @property
    def heights(self) -> tuple[float, float] | None:
        """Where its first and last baseline stand on the page, else the lower edge of its box."""
        if self.base is not None:
            return self.base, self.last if self.last is not None else self.base
        return (self.box.bottom, self.box.bottom) if self.box is not None else None


@dataclass(slots=True)
class Words:
    """What was learnt so far: compounds seen with their hyphen inside a line, and the headings that hold."""

    compounds: set[str] = field(default_factory=set)
    section: list[tuple[int, str]] = field(default_factory=list)


def blocks_of_page(
    lines: Sequence[Line], page: int, outline: Mapping[int, Sequence[tuple[int, str]]], words: Words
) -> list[Block]:
    """Blocks of one page in reading order; ``words`` is brought up to date."""
    words.compounds.update(found.lower() for line in lines for found in _COMPOUND.findall(line.text))
    headings = list(outline.get(page, ()))
    blocks: list[Block] = []
    for paragraph in _paragraphs(_in_order(lines)):
        title = _heading(paragraph, headings)
        if title is None:
            blocks.append(_block(paragraph, page, words))
            continue
        # Headings of the outline that were not found on the page (a figure, a renamed one) count from here on too.
        for depth, name in headings[: title + 1]:
            words.section = [*(pair for pair in words.section if pair[0] < depth), (depth, name)]
        del headings[: title + 1]
        blocks.append(_block(paragraph, page, words, heading=True))
    for depth, name in headings:
        words.section = [*(pair for pair in words.section if pair[0] < depth), (depth, name)]
    return blocks


def _block(paragraph: Sequence[Line], page: int, words: Words, *, heading: bool = False) -> Block:
    text, starts = _mended([line.text for line in paragraph], words.compounds)
    boxes = tuple(line.box for line in paragraph if line.box is not None)
    known = len(boxes) == len(paragraph)
    return Block(
        text,
        tuple(name for _, name in words.section),
        "heading" if heading else "prose",
        page,
        starts=tuple(starts) if known else (),
        boxes=boxes if known else (),
    )


def _heading(paragraph: Sequence[Line], headings: Sequence[tuple[int, str]]) -> int | None:
    """Which of the headings expected on the page this short paragraph is."""
    if not headings or len(paragraph) > 3:
        return None
    text = _NOISE.sub("", " ".join(line.text for line in paragraph)).lower()
    for at, (_, name) in enumerate(headings):
        title = _NOISE.sub("", name).lower()
        # The page may number a heading that the outline does not ("3.2 Duties", "CHAPTER THREE Duties").
        if title and text.endswith(title) and len(text) <= len(title) + 16:
            return at
    return None


def _mended(lines: Sequence[str], compounds: set[str]) -> tuple[str, list[int]]:
    """The lines as one text, words that a hyphen broke at a line end put together, and where each line begins in it."""
    pieces: list[str] = []
    starts: list[int] = []
    size = 0
    for at, line in enumerate(lines):
        starts.append(size)
        following = lines[at + 1] if at + 1 < len(lines) else ""
        body, glue = _joint(line, following, compounds) if following else (line, "")
        pieces.append(body.replace(SOFT_HYPHEN, "") + glue)
        size += len(pieces[-1])
    return "".join(pieces), starts


def _joint(line: str, following: str, compounds: set[str]) -> tuple[str, str]:
    """(the line without a hyphen that only broke its last word, what goes between it and the next line)."""
    broken, tail = _BROKEN.search(line), _TAIL.match(following)
    if not broken or not tail:
        return line, " "
    kept = f"{broken[1]}-{tail.group()}".lower() in compounds
    return line[: broken.end(1)] + ("-" if kept else ""), ""


def _in_order(lines: Sequence[Line]) -> list[Line]:
    """Rows of two wide parts that stand in a row are read column by column."""
    ordered: list[Line] = []
    rows: list[list[Line]] = []

    def flush() -> None:
        if len(rows) >= _ROWS:
            ordered.extend(row[0] for row in rows)
            ordered.extend(row[1] for row in rows if len(row) > 1)
        else:
            ordered.extend(_whole(row) for row in rows)
        rows.clear()

    for row in _rows(lines):
        if _is_two_columns(row) or (rows and _is_left_of(row, rows[-1])):
            rows.append(row)
        else:
            flush()
            ordered.append(_whole(row))
    flush()
    return ordered


def _rows(lines: Sequence[Line]) -> Iterator[list[Line]]:
    row: list[Line] = []
    for line in lines:
        if row and not line.joined:
            yield row
            row = []
        row.append(line)
    if row:
        yield row


def _is_two_columns(row: Sequence[Line]) -> bool:
    if len(row) != 2 or row[0].box is None or row[1].box is None:
        return False
    left, right = row[0].box, row[1].box
    wide = left.right - left.left > _COLUMN and right.right - right.left > _COLUMN
    return wide and left.right < right.left and abs(left.top - right.top) < 0.02


def _is_left_of(row: Sequence[Line], above: Sequence[Line]) -> bool:
    """A short last line of a paragraph in one of the columns, between rows of two."""
    if len(row) != 1 or row[0].box is None or len(above) != 2 or above[0].box is None or above[1].box is None:
        return False
    return row[0].box.right < above[1].box.left and abs(row[0].box.left - above[0].box.left) < 0.05


def _whole(row: Sequence[Line]) -> Line:
    """A line that was taken apart for nothing, put together."""
    if len(row) == 1:
        return row[0]
    boxes = [line.box for line in row if line.box is not None]
    box = Box(
        min(b.left for b in boxes), min(b.top for b in boxes), max(b.right for b in boxes), max(b.bottom for b in boxes)
    )
    return Line("  ".join(line.text for line in row), box, base=row[0].base, last=row[0].last, size=row[0].size)


def _paragraphs(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Lines parted where the space between them grows, the size of letters changes, or an item of a list begins."""
    heights = [line.heights for line in lines if line.heights is not None]
    steps = [low[0] - high[1] for high, low in pairwise(heights) if 0.002 < low[0] - high[1] < 0.1]
    usual = median(steps) if steps else 0.0
    paragraph: list[Line] = []
    for line in lines:
        if paragraph and _begins(paragraph, line, usual):
            yield paragraph
            paragraph = []
        paragraph.append(line)
    if paragraph:
        yield paragraph


def _begins(paragraph: Sequence[Line], line: Line, usual: float) -> bool:
    above = paragraph[-1]
    if _BULLET.match(line.text):
        return True
    if above.box is None or line.box is None or above.heights is None or line.heights is None:
        return False
    step = line.heights[0] - above.heights[1]
    flows = not above.text.endswith((".", "!", "?", ":")) and _TAIL.match(line.text) is not None
    if step < -0.01:
        # Upwards is the next column, where a sentence may go on.
        return not flows
    if step > 1.3 * usual and not (flows and step < 1.8 * usual):
        return True
    if above.size and line.size and max(above.size, line.size) > 1.15 * min(above.size, line.size):
        return not flows
    # Indented, after a line that ends a sentence.
    indented = line.box.left - above.box.left > 0.012 and len(paragraph) > 1
    return indented and above.text.endswith((".", "!", "?"))
