"""CSV, TSV, JSON Lines, JSON and Parquet, as tables. Files stream: memory does not grow with them."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from deepwell.errors import UnreadableFileError
from deepwell.library.protocols import Senses
from deepwell.library.readers.decoding import decode, looks_like_text
from deepwell.library.readers.guard import (
    FILE_LIMIT,
    MIB,
    TEXT_LIMIT,
    check_size,
    document,
    needs,
    plain,
    read_bytes,
    shown,
)
from deepwell.library.readers.passages import Block, cut
from deepwell.library.readers.tables import has_header, named, read_table
from deepwell.library.records import Document, Kind

_SAMPLE = 1 << 16
_LINE = 16 * MIB
_DELIMITERS = ",;\t|"
_DEPTH = 30


class CsvReader:
    name = "csv"
    version = 1
    suffixes = frozenset({".csv", ".tsv", ".tab"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """By suffix."""
        return 0.8 if suffix in self.suffixes and looks_like_text(head) else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is empty, binary or above 2 GiB."""
        del senses
        lines = _lines(path)
        sample = list(itertools.islice(lines, 200))
        delimiter = _delimiter(sample, path.suffix.lower())
        csv.field_size_limit(_LINE)
        rows = csv.reader(itertools.chain(sample, lines), delimiter=delimiter, strict=False)
        try:
            first = list(itertools.islice(rows, 20))
            header = has_header(first)
            width = max((len(row) for row in first), default=0)
            columns = named(first[0] + [""] * (width - len(first[0]))) if header else named([""] * width)
            body = itertools.chain(first[1:] if header else first, rows)
            table = read_table((_row(columns, row) for row in body if row), name=shown(path.stem))
        except csv.Error as error:
            where = f"{shown(path)} cannot be read as a table at line {rows.line_num}"
            raise UnreadableFileError(f"{where}: {error}") from error
        return _document("table", path, table)


def _row(columns: list[str], row: list[str]) -> Mapping[str, object]:
    cells: dict[str, object] = dict(zip(columns, row, strict=False))
    for at, extra in enumerate(row[len(columns) :], len(columns) + 1):
        cells[f"column {at}"] = extra
    return cells


def _document(kind: Kind, path: Path, table: Any) -> Document:
    metadata = {
        "rows": table.read,
        "columns": ", ".join(table.columns),
        "rows_indexed": table.indexed if table.notice else None,
        "notice": table.notice,
    }
    return document(kind, path, table.passages, metadata=metadata)


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file in whatever encoding, at most 16 MiB each, read as they are asked for."""
    check_size(path, FILE_LIMIT, "a table")
    with path.open("rb") as file:
        sample = file.read(_SAMPLE)
        text, encoding = decode(sample, path)
        del text
        file.seek(0)
        number = 0
        # ASCII at first may be another encoding further on: bad bytes are marked, not fatal.
        with io.TextIOWrapper(file, encoding=_codec(encoding, sample), errors="replace", newline="") as lines:
            while line := lines.readline(_LINE):
                number += 1
                if len(line) >= _LINE:
                    raise UnreadableFileError(
                        f"{shown(path)} has a line longer than {_LINE // MIB} MiB at line {number}",
                        hint="It may not be a table; rename it to .txt, or split it.",
                    )
                yield line.replace("\0", "")


def _codec(encoding: str, head: bytes) -> str:
    """The codec that also takes away a byte order mark."""
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return "utf-8-sig" if encoding == "utf-8" else "utf-16" if marked else encoding


def _delimiter(lines: list[str], suffix: str) -> str:
    """The one that parts most lines into the same number of cells, more than one."""
    if suffix in (".tsv", ".tab"):
        return "\t"

    def agreement(mark: str) -> tuple[int, int]:
        widths = [len(row) for row in csv.reader(lines[:50], delimiter=mark) if row]
        usual = max(set(widths), key=widths.count, default=1)
        return (widths.count(usual) if usual > 1 else 0, usual)

    return max(_DELIMITERS, key=agreement)


class JsonReader:
    """JSON Lines, and JSON: a list of records is a table, anything else is written out as ``path: value`` lines."""

    name = "json"
    version = 1
    suffixes = frozenset({".json", ".jsonl", ".ndjson", ".geojson", ".ipynb"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """By suffix."""
        return 0.8 if suffix in self.suffixes and looks_like_text(head) else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is not JSON, or too large (64 MiB; lines: 2 GiB)."""
        del senses
        suffix = path.suffix.lower()
        if suffix in (".jsonl", ".ndjson"):
            return _document("table", path, read_table(_json_lines(path), name=shown(path.stem)))
        text, _ = decode(read_bytes(path, TEXT_LIMIT, "JSON"), path)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            if "Extra data" in str(error):
                return _document("table", path, read_table(_json_lines(path), name=shown(path.stem)))
            raise UnreadableFileError(f"{shown(path)} is not well-formed JSON: {error}") from error
        del text
        if suffix == ".ipynb" and isinstance(value, dict) and isinstance(value.get("cells"), list):
            return _notebook(path, value)
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return _document("table", path, read_table(map(_flat, value), name=shown(path.stem)))
        lines = [f"{key}: {item}" if key else str(item) for key, item in _leaves(value, "")]
        return document("text", path, cut([Block(plain("\n".join(lines)), role="lines")]))


def _json_lines(path: Path) -> Iterator[Mapping[str, object]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnreadableFileError(f"{shown(path)} is not well-formed JSON at line {number}: {error}") from error
        yield _flat(value)


def _flat(value: object) -> Mapping[str, object]:
    return {key or "value": item for key, item in _leaves(value, "")}


def _leaves(value: object, path: str, depth: int = 0) -> Iterator[tuple[str, object]]:
    """(dotted path, value) of everything in a JSON value; lists of plain values are one, joined by commas."""
    if isinstance(value, dict) and value and depth < _DEPTH:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list) and value and depth < _DEPTH and any(isinstance(item, dict | list) for item in value):
        for at, item in enumerate(value):
            yield from _leaves(item, f"{path}[{at}]", depth + 1)
    elif isinstance(value, list):
        yield path, ", ".join(map(str, value))
    else:
        yield path, value


def _notebook(path: Path, value: dict[str, Any]) -> Document:
    from deepwell.library.readers.markdown import markdown_blocks

    blocks: list[Block] = []
    section: tuple[str, ...] = ()
    for cell in value["cells"]:
        source = cell.get("source", "") if isinstance(cell, dict) else ""
        text = plain("".join(map(str, source)) if isinstance(source, list) else str(source))
        if isinstance(cell, dict) and cell.get("cell_type") == "markdown":
            inner = markdown_blocks(text.split("\n"))
            blocks += [Block(block.text, block.section or section, block.role) for block in inner]
            section = inner[-1].section or section if inner else section
        else:
            blocks.append(Block(text, section, "lines"))
    title = next((block.section[-1] for block in blocks if block.role == "heading" and block.section), "")
    return document("code", path, cut(blocks), title=title, metadata={"cells": len(value["cells"])})


class ParquetReader:
    name = "parquet"
    version = 1
    suffixes = frozenset({".parquet", ".pq"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """By signature."""
        del suffix
        return 1.0 if head.startswith(b"PAR1") else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is damaged or encrypted."""
        del senses
        check_size(path, 64 * FILE_LIMIT, "a table")
        with needs():
            import pyarrow as pa
            import pyarrow.parquet as pq
        try:
            with path.open("rb") as raw, pq.ParquetFile(raw) as file:
                rows = (_flat(row) for batch in file.iter_batches(batch_size=512) for row in batch.to_pylist())
                table = read_table(rows, name=shown(path.stem), total=file.metadata.num_rows)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise UnreadableFileError(f"{shown(path)} is damaged or truncated: {reason}") from error
        return _document("table", path, table)
