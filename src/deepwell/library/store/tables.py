"""Lance tables: opened once, brought up to date when another process has committed, read again when one vanished.

Lance keeps each version of a table as a manifest whose name counts down from 2**64 - 1, so one listing of a folder
tells the newest version without opening anything. A writer removes old versions; a reader that was in the middle of one
gets an error from a vanished file, and simply reads the newest version instead (``Tables.read``).
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deepwell.errors import LibraryDamagedError
from deepwell.library.store import _lancedb

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
_LAST = 2**64 - 1
_TRIES = 6


_SETTLED_NS = 100_000_000
_listed: dict[str, tuple[int, int]] = {}


def newest_version(tables: Path, name: str) -> int:
    """The newest committed version of a table; -1 when there is no such table.

    A listing is trusted as long as the folder's time is the same, provided the folder had been quiet for a while when
    it was listed: clocks of file systems are coarse, and two commits may fall into one tick.
    """
    folder = f"{tables}/{name}.lance/_versions"
    try:
        changed = os.stat(folder).st_mtime_ns  # noqa: PTH116  (asked some times in each search)
        known = _listed.get(folder)
        if known is not None and known[0] == changed:
            return known[1]
        started = time.time_ns()
        newest = max(map(_version, os.listdir(folder)), default=-1)  # noqa: PTH208
    except FileNotFoundError:
        return -1
    if started - changed > _SETTLED_NS:
        _listed[folder] = (changed, newest)
    return newest


def _version(name: str) -> int:
    stem, _, suffix = name.partition(".")
    if suffix != "manifest" or not stem.isdigit():
        return -1
    return _LAST - int(stem) if len(stem) == 20 else int(stem)


class Tables:
    """The Lance tables in one folder. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._connection: Any = None
        self._open: dict[str, Any] = {}
        self._versions: dict[str, int] = {}

    def _connect(self) -> Any:
        if self._connection is None:
            self._connection = _lancedb.load().connect(str(self.folder))
        return self._connection

    def exists(self, name: str) -> bool:
        return newest_version(self.folder, name) >= 0

    def create(self, name: str, schema: pa.Schema) -> Any:
        with self._lock:
            self._open[name] = table = self._connect().create_table(name, schema=schema, exist_ok=True)
            self._versions[name] = newest_version(self.folder, name)
            return table

    def drop(self, name: str) -> None:
        with self._lock:
            self._open.pop(name, None)
            self._versions.pop(name, None)
            self._connect().drop_table(name, ignore_missing=True)

    def get(self, name: str) -> Any:
        """The table at its newest version."""
        with self._lock:
            newest = newest_version(self.folder, name)
            if newest < 0:
                raise LibraryDamagedError(
                    f"{self.folder.parent} has lost its table {name!r}",
                    hint="Restore it from a backup, or index anew into an empty folder.",
                )
            if name not in self._open:
                self._open[name] = self._connect().open_table(name)
            elif self._versions[name] != newest:
                self._open[name].checkout_latest()
            self._versions[name] = newest
            return self._open[name]

    def forget(self, name: str) -> None:
        """Open the table anew at its next use."""
        with self._lock:
            self._open.pop(name, None)
            self._versions.pop(name, None)

    def read(self, name: str, query: Callable[[Any], T]) -> T:
        """Run a query; again, on the newest version, when a writer has just removed the version it was reading."""
        for remaining in reversed(range(_TRIES)):
            try:
                return query(self.get(name))
            except (OSError, RuntimeError, ValueError) as error:
                if remaining == 0 or not _is_gone(error):
                    raise
                self.forget(name)
        raise AssertionError("unreachable")

    def optimize(self, name: str) -> None:
        """Compact files, bring indexes up to date and remove every older version.

        Only for the holder of the writer's lock: with one writer, files that no version names are leavings of a killed
        one, so they go too.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about readers of older versions: see ``read``
            self.get(name).optimize(cleanup_older_than=timedelta(0), delete_unverified=True)

    def close(self) -> None:
        with self._lock:
            for table in self._open.values():
                table.close() if hasattr(table, "close") else None
            self._open.clear()
            self._versions.clear()
            self._connection = None


def _is_gone(error: Exception) -> bool:
    text = str(error).lower()
    return "not found" in text or "no such file" in text


def quoted(values: object) -> str:
    """A list of strings for SQL's IN."""
    return ", ".join("'" + str(value).replace("'", "''") + "'" for value in values)  # type: ignore[attr-defined]
