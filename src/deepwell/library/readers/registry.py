"""Which reader reads a file.

Every reader is asked how sure it is, from the first bytes and the suffix; the surest wins, so a PDF named ``.txt`` is
read as a PDF. A ZIP or an old Office container tells by its directory what it is, whatever its name says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from deepwell.errors import UnknownKindError, UnreadableFileError
from deepwell.library.protocols import Reader
from deepwell.library.readers.containers import OLE2, ZIP, ole2_kind, zip_suffix
from deepwell.library.readers.decoding import looks_like_text
from deepwell.library.readers.guard import check_size, shown, unopened

GROUP = "deepwell.readers"
HEAD = 4096


@dataclass(frozen=True, slots=True)
class ReaderInfo:
    """One line of the list of readers. ``problem`` says why a reader could not be loaded; empty when all is well."""

    name: str
    version: int
    suffixes: tuple[str, ...]
    cost: str
    source: str
    problem: str = ""


@cache
def _loaded() -> tuple[tuple[Reader, ...], tuple[ReaderInfo, ...]]:
    readers, infos = [], []
    # Sorted, so that two readers equally sure of a file are always tried in the same order.
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        reader, problem = _load(point)
        source = point.dist.name if point.dist is not None else point.value
        if reader is None:
            infos.append(ReaderInfo(point.name, 0, (), "", source, problem))
            continue
        readers.append(reader)
        suffixes = tuple(sorted(reader.suffixes))
        infos.append(ReaderInfo(reader.name, reader.version, suffixes, reader.cost, source))
    return tuple(readers), tuple(infos)


def _load(point: EntryPoint) -> tuple[Reader | None, str]:
    # Whatever a plug-in raises, the other readers must go on.
    try:
        found: Any = point.load()
        reader = found() if isinstance(found, type) else found
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    if not isinstance(reader, Reader):
        return None, f"{point.value} lacks what a reader must have (deepwell.library.protocols.Reader)"
    return reader, ""


def available() -> tuple[Reader, ...]:
    """Every reader that could be loaded, by name."""
    return _loaded()[0]


def listing() -> tuple[ReaderInfo, ...]:
    """Every reader that is installed, with the reason for one that could not be loaded."""
    return _loaded()[1]


def choose(path: Path) -> Reader:
    """The reader that is surest of a file.

    Raises:
        UnreadableFileError: The file is empty, cannot be opened, or no reader knows it.
    """
    check_size(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise unopened(path, error) from error
    suffix = path.suffix.lower()
    if head.startswith(ZIP):
        suffix = zip_suffix(path) or suffix
    elif head.startswith(OLE2):
        raise ole2_kind(path)
    sureness, best = max(((reader.accepts(head, suffix), reader) for reader in available()), key=lambda pair: pair[0])
    if sureness <= 0:
        raise _unknown(path, head, suffix)
    return best


def _unknown(path: Path, head: bytes, suffix: str) -> UnreadableFileError:
    named = any(suffix in reader.suffixes for reader in available())
    if named and not looks_like_text(head):
        return UnreadableFileError(
            f"{shown(path)} is damaged or is not what its name says: no {suffix} file begins so",
            hint="Replace it with a whole copy, or give it the suffix of what it is.",
        )
    return UnknownKindError(f"{shown(path)} is not a kind of file Deepwell reads")
