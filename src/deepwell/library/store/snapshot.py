"""The documents of a library, in memory, as of one commit: which contents are live, and which documents a filter keeps.

A passage is *live* when a document refers to its content. That one rule makes changes atomic: passages are written
first and are invisible, and a single commit of the documents table shows the new ones and hides the old.

Contents are numbered as they are first seen, and numbers are never reused while the store is open, so a matrix of
vectors keeps one int32 for each row and a scope is an array of booleans indexed by it.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from deepwell.library.records import Filters
from deepwell.library.store.rows import Scope, StoredDocument

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class ContentNumbers:
    """Content ids to small integers, for the life of a store."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, content: str) -> int:
        return self._numbers.setdefault(content, len(self._numbers))

    def numbers(self, contents: Iterable[str]) -> NDArray[np.int32]:
        import numpy as np

        return np.fromiter((self.number(content) for content in contents), dtype=np.int32)

    def mask(self, contents: Iterable[str]) -> NDArray[np.bool_]:
        """True at the number of each of ``contents``; as long as all numbers known when it returns."""
        import numpy as np

        numbers = self.numbers(contents)
        mask = np.zeros(len(self._numbers), dtype=bool)
        mask[numbers] = True
        return mask


def document_row(document: StoredDocument) -> dict[str, Any]:
    """A document as a row of its table."""
    raw = os.fsencode(document.path)
    shown = document.shown
    return {
        "document_id": document.document_id,
        "path": shown,
        "path_bytes": None if shown.encode() == raw else raw,
        "kind": document.kind,
        "title": _clean(document.title),
        "content_id": document.content_id,
        "size": document.size,
        "mtime_ns": document.mtime_ns,
        "inode": document.inode,
        "nested": document.nested,
        "file_hash": document.file_hash,
        "reader": document.reader,
        "reader_version": document.reader_version,
        "metadata": json.dumps(dict(document.metadata)),
        "missing": json.dumps(list(document.missing)),
        "state": document.state,
        "failure": _clean(document.failure),
        "hint": _clean(document.hint),
        "created": document.created,
        "added": document.added,
    }


def _clean(text: str) -> str:
    """Words that Arrow can hold: lone surrogates, as bad files hold them, become question marks."""
    return text.encode("utf-8", "replace").decode()


_SMALL, _OFTEN = 20_000, 500
"""Documents up to which a column becomes a list (some milliseconds) after so many single values were asked for."""


class Columns(Mapping[str, list[Any]]):
    """Columns of an Arrow table, each made a Python list when it is first asked for.

    A search needs two of the twenty columns whole; as Python objects all of them take a second and 100 MB for 100,000
    documents.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        self._lists: dict[str, list[Any]] = {}
        self._asked = 0

    def __getitem__(self, name: str) -> list[Any]:
        found = self._lists.get(name)
        if found is None:
            if name not in self._table.column_names:
                raise KeyError(name)
            found = self._lists[name] = self._table.column(name).to_pylist()
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._table.column_names if name != "path_bytes")

    def __len__(self) -> int:
        return len(self._table.column_names) - 1

    def arrow(self, name: str) -> pa.Array:
        """A column as it is, without making it a list."""
        column = self._table.column(name)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    @property
    def rows(self) -> int:
        return int(self._table.num_rows)

    def value(self, name: str, row: int) -> Any:
        """One value, without making the column a list."""
        found = self._lists.get(name)
        if found is None and self.rows <= _SMALL:
            self._asked += 1
            found = self[name] if self._asked > _OFTEN else None
        return found[row] if found is not None else self._table.column(name)[row].as_py()


@dataclass(frozen=True)
class Snapshot:
    """All documents as of one version of their table. Columns are Python lists of equal length."""

    version: int
    columns: Columns = field(repr=False)

    @classmethod
    def from_table(cls, version: int, table: pa.Table) -> Snapshot:
        return cls(version, Columns(table))

    def __len__(self) -> int:
        return self.columns.rows

    @cached_property
    def paths(self) -> list[str]:
        """As they are on disk, where ``columns["path"]`` are printable."""
        shown = self.columns["path"]
        raws = self.columns["path_bytes"]
        if not any(raw is not None for raw in raws):
            return shown
        pairs = zip(shown, raws, strict=True)
        return [path if raw is None else os.fsdecode(raw) for path, raw in pairs]

    @cached_property
    def contents(self) -> frozenset[str]:
        """Live contents."""
        return frozenset(content for content in self.columns["content_id"] if content)

    @cached_property
    def by_content(self) -> Mapping[str, tuple[int, ...]]:
        """Rows of the documents with a content; several when the same bytes lie in several places."""
        rows: dict[str, tuple[int, ...]] = {}
        for row, content in enumerate(self.columns["content_id"]):
            if content:
                rows[content] = (*rows.get(content, ()), row)
        return rows

    @cached_property
    def by_path(self) -> Mapping[str, int]:
        return {path: row for row, path in enumerate(self.paths)}

    @cached_property
    def by_id(self) -> Mapping[str, int]:
        return {document_id: row for row, document_id in enumerate(self.columns["document_id"])}

    @cached_property
    def _names(self) -> tuple[pa.Array, pa.Array]:
        """Of the live files: file name and title in lower case, one a line, and the row."""
        import pyarrow as pa
        import pyarrow.compute as pc

        paths, titles, contents = (self.columns.arrow(name) for name in ("path", "title", "content_id"))
        rows = pc.indices_nonzero(pc.and_(pc.not_equal(contents, ""), pc.invert(pc.starts_with(paths, "text:"))))
        files = pc.extract_regex(paths.take(rows), pattern=r"(?P<name>[^/]*)$").field("name")
        return pc.utf8_lower(pc.binary_join_element_wise(files, titles.take(rows), pa.scalar("\n"))), rows

    def named(self, words: Sequence[str]) -> list[int]:
        """Rows of live files whose name or title holds one of the words, letter case ignored."""
        import pyarrow.compute as pc

        names, rows = self._names
        if not len(rows) or not words:
            return []
        pattern = "|".join(re.escape(word.lower()) for word in words)
        found: list[int] = rows.filter(pc.match_substring_regex(names, pattern)).to_pylist()
        return found

    def metadata(self, row: int) -> Mapping[str, str | int | float]:
        text = self.columns.value("metadata", row)
        parsed: Mapping[str, str | int | float] = {} if text == "{}" else json.loads(text)
        return parsed

    def modified(self, row: int) -> float:
        """The file's time, seconds since 1970."""
        return float(self.columns.value("mtime_ns", row)) / 1e9

    def document(self, row: int) -> StoredDocument:
        values = {name: column[row] for name, column in self.columns.items()}
        values["path"] = self.paths[row]
        values["metadata"] = self.metadata(row)
        values["missing"] = tuple(json.loads(values["missing"]))
        return StoredDocument(**values)

    def documents(self) -> Iterable[StoredDocument]:
        return (self.document(row) for row in range(len(self)))

    def scope(self, filters: Filters) -> Scope:
        """The documents for which every condition holds."""
        rows: Sequence[int] = [row for row, content in enumerate(self.columns["content_id"]) if content]
        if filters.kinds:
            kinds = frozenset(filters.kinds)
            rows = [row for row in rows if self.columns["kind"][row] in kinds]
        if filters.path:
            matches = path_matcher(filters.path)
            rows = [row for row in rows if matches(self.columns["path"][row])]
        if filters.since is not None:
            rows = [row for row in rows if self.columns["created"][row] >= filters.since]
        if filters.until is not None:
            rows = [row for row in rows if self.columns["created"][row] < filters.until]
        if filters.where:
            wanted = {key: str(value).casefold() for key, value in filters.where.items()}
            rows = [row for row in rows if _has(self.metadata(row), wanted)]
        return Scope(
            documents=frozenset(self.columns["document_id"][row] for row in rows),
            contents=frozenset(self.columns["content_id"][row] for row in rows),
        )


def _has(metadata: Mapping[str, str | int | float], wanted: Mapping[str, str]) -> bool:
    return all(key in metadata and str(metadata[key]).casefold() == value for key, value in wanted.items())


def path_matcher(pattern: str) -> Any:
    """A test for ``Filters.path``: a glob on the whole path, or a file or folder that the path is or lies under.

    A relative folder may stand anywhere in the path: ``reports/2024`` keeps ``/home/ann/reports/2024/may.pdf``.
    """
    if any(character in pattern for character in "*?["):
        anywhere = fnmatch.translate(f"*/{pattern.lstrip('/')}") if not pattern.startswith("/") else "(?!)"
        return re.compile(f"{fnmatch.translate(pattern)}|{anywhere}").match
    folder = pattern.rstrip("/") or "/"
    if folder.startswith("/"):
        return lambda path: path == folder or path.startswith(folder.rstrip("/") + "/")
    return lambda path: path == folder or f"/{folder}/" in f"{path}/"
