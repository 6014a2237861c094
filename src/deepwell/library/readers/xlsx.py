"""XLSX: each sheet a table under its name; values as they were last calculated, not formulas."""

from __future__ import annotations

import itertools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from deepwell.errors import UnreadableFileError
from deepwell.library.protocols import Senses
from deepwell.library.readers.guard import Archive, document, needs, one_line, shown
from deepwell.library.readers.office import core_properties
from deepwell.library.readers.tables import cell_text, has_header, named, read_table
from deepwell.library.records import Document, Passage

_SHEETS = 200
_COLUMNS = 500
# Formatting far below the data makes sheets a million rows long; this many empty ones in a row are the end.
_EMPTY_ROWS = 2_000


class XlsxReader:
    name = "xlsx"
    version = 1
    suffixes = frozenset({".xlsx", ".xlsm", ".xltx"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """A ZIP file, told by its directory or name to be a spreadsheet."""
        return 0.95 if head.startswith(b"PK") and suffix in self.suffixes else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is damaged, encrypted or a bomb."""
        del senses
        with Archive(path) as archive:
            title, metadata = core_properties(archive)
            for name in sorted(archive.names):
                if name.endswith((".xml", ".rels")):
                    archive.refuse_entities(name)
        with needs():
            import openpyxl
        passages: list[Passage] = []
        notices: list[str] = []
        rows = 0
        # The library warns of each extension it does not know; none of them changes a value.
        with warnings.catch_warnings(), path.open("rb") as raw:
            warnings.simplefilter("ignore")
            try:
                book = openpyxl.load_workbook(raw, read_only=True, data_only=True, keep_links=False)
                names = list(book.sheetnames)
                for sheet in book.worksheets[:_SHEETS]:
                    table = read_table(_rows(sheet), name=one_line(sheet.title), section=(one_line(sheet.title),))
                    if not table.columns:
                        continue
                    passages += table.passages
                    rows += table.read
                    if table.notice:
                        notices.append(f"{sheet.title}: {table.notice}")
                book.close()
            except (KeyError, ValueError, TypeError, AttributeError, IndexError, OSError, zipfile.BadZipFile) as error:
                raise UnreadableFileError(f"{shown(path)} is damaged: {error}") from error
            except SyntaxError as error:  # xml.etree.ElementTree.ParseError and lxml's are kinds of it
                raise UnreadableFileError(f"{shown(path)} is damaged: {error}") from error
        metadata |= {"sheets": ", ".join(names), "rows": rows, "notice": "; ".join(notices)}
        return document("table", path, passages, title=title, metadata=metadata)


def _rows(sheet: Any) -> Iterator[Mapping[str, object]]:
    filled = _filled(sheet)
    first = list(itertools.islice(filled, 20))
    # A title or two may stand above the table: its header is the first row with most of the cells.
    width = max((len(row) for row in first), default=0)
    top = next((at for at, row in enumerate(first) if sum(map(bool, map(cell_text, row))) > width / 2), 0)
    cells = [[cell_text(cell) for cell in row] for row in first[top:]]
    header = has_header(cells)
    columns = named(cells[0] + [""] * (width - len(cells[0]))) if header else named([""] * width)
    for row in first[:top]:
        yield {columns[at]: cell for at, cell in enumerate(row)}
    for row in itertools.chain(first[top + 1 :] if header else first[top:], filled):
        yield {columns[at] if at < len(columns) else f"column {at + 1}": cell for at, cell in enumerate(row)}


def _filled(sheet: Any) -> Iterator[tuple[object, ...]]:
    empty = 0
    for row in sheet.iter_rows(values_only=True, max_col=_COLUMNS):
        last = next((at for at in range(len(row), 0, -1) if row[at - 1] not in (None, "")), 0)
        empty = 0 if last else empty + 1
        if empty > _EMPTY_ROWS:
            return
        if last:
            yield row[:last]
