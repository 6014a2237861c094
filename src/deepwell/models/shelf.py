"""The folder of pulled models: what is there, whether it is whole, and where.

    models/
      catalogue.toml            a user's own additions (optional)
      all-minilm-l6-v2/         one folder a model, ready to load
        deepwell-model.json     its manifest: where it came from, and the size and SHA-256 of every file
        config.json ...
      .work/                    locks and unfinished downloads; may be deleted while nothing is pulled

A folder without a manifest is one that somebody placed by hand. It counts as the model when the catalogue's files are
in it (or, for a name the catalogue does not know, when it holds anything).

Everything here is on the path of every search, so nothing here imports more than the standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepwell.errors import MissingModelError, UsageError
from deepwell.models import catalogue
from deepwell.models.catalogue import ModelInfo, is_name
from deepwell.paths import models_folder

MANIFEST = "deepwell-model.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file was when it was put there."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where a pulled model came from, and every file of it by its path with '/'.

    ``fingerprint`` is the SHA-256 over all paths and hashes: two folders with the same one hold the same bytes.
    """

    name: str
    source: str
    pulled: str
    files: Mapping[str, FileRecord]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(record.size for record in self.files.values())

    @property
    def fingerprint(self) -> str:
        lines = (f"{path} {record.sha256}\n" for path, record in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of ``deepwell models list``."""

    info: ModelInfo
    present: bool
    folder: Path | None
    size: int
    sets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verification:
    """What ``verify`` found: ``problems`` is empty when every byte is as it was pulled."""

    name: str
    folder: Path
    files: int
    size: int
    problems: tuple[str, ...]
    note: str = ""

    @property
    def ok(self) -> bool:
        return not self.problems


def find(name: str) -> ModelInfo:
    """What the catalogue says of a model. Raises ``UsageError`` with the nearest names when there is no such model."""
    return catalogue.load().find(name)


def folder(name: str) -> Path:
    """The folder that holds a model, ready to load.

    Args:
        name: A name of the catalogue, of a folder beside the pulled models, or a path to a folder that holds a model
            (anything with a path separator in it, or starting with ``~`` or ``.``).

    Raises:
        MissingModelError: It is not on this machine; the hint is the command that fetches it.
        UsageError: There is no such model.
    """
    if looks_like_path(name):
        path = Path(name).expanduser()
        if not path.is_dir():
            raise MissingModelError(f"there is no folder {path} that could hold a model", hint="check the path")
        return path
    if not is_name(name):
        catalogue.load().find(name)  # says what is wrong with it
        raise AssertionError("unreachable: no model can have such a name")
    place = models_folder() / name
    if _is_whole(name, place):
        return place
    catalogue.load().find(name)
    raise MissingModelError(f"the model '{name}' is not on this machine", hint=f"deepwell models pull {name}")


def is_present(name: str) -> bool:
    """Whether ``folder(name)`` would find it. False, too, for a name that nobody knows."""
    try:
        folder(name)
    except (MissingModelError, UsageError):
        return False
    return True


def manifest(name: str) -> Manifest | None:
    """Where a model that is here came from; None for one placed by hand. Raises like ``folder``."""
    return read_manifest(folder(name))


def listing() -> tuple[Entry, ...]:
    """Every model of the catalogue, then those that somebody placed beside them."""
    known = catalogue.load()
    entries = []
    for info in known.models.values():
        place = models_folder() / info.name
        here = _is_whole(info.name, place)
        size = _size(place) if here else info.size
        sets = tuple(name for name, members in known.sets.items() if info.name in members)
        entries.append(Entry(info, here, place if here else None, size, sets))
    for name in _names_on_disk():
        if name not in known.models:
            info = ModelInfo(name, "unknown", "unknown", "unknown", "placed here by hand", ())
            entries.append(Entry(info, True, models_folder() / name, _size(models_folder() / name)))
    return tuple(entries)


def verify(name: str) -> Verification:
    """Read every file of a model and compare it with its manifest. Raises like ``folder`` when it is not here.

    Also takes a model whose files were truncated or deleted since, which ``folder`` would call missing.
    """
    place = Path(name).expanduser() if looks_like_path(name) else models_folder() / name
    record = read_manifest(place) if looks_like_path(name) or is_name(name) else None
    if record is None:
        place = folder(name)
        files = list(_files(place))
        size = sum(path.stat().st_size for path in files)
        return Verification(
            name, place, len(files), size, (), "no manifest: placed by hand, so nothing to compare with"
        )
    problems = []
    for path, expected in record.files.items():
        file = place / path
        try:
            size = file.stat().st_size
            if size != expected.size:
                problems.append(f"{path}: {size} bytes, expected {expected.size}")
            elif sha256_of(file) != expected.sha256:
                problems.append(f"{path}: its content has changed")
        except FileNotFoundError:
            problems.append(f"{path}: missing")
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror})")
    strangers = {str(path.relative_to(place).as_posix()) for path in _files(place)} - {*record.files, MANIFEST}
    note = f"not from the pull: {', '.join(sorted(strangers))}" if strangers else ""
    return Verification(name, place, len(record.files), record.size, tuple(problems), note)


def names_here() -> tuple[str, ...]:
    """Names of the models that ``verify`` would look at when none is named: whole or damaged."""
    return tuple(_names_on_disk())


def looks_like_path(name: str) -> bool:
    """Whether a model's name is meant as a path to its folder."""
    return name.startswith(("~", ".")) or os.sep in name or (os.altsep is not None and os.altsep in name)


def read_manifest(place: Path) -> Manifest | None:
    """The manifest in a folder; None when there is none or it makes no sense."""
    finish_interrupted_swap(place)
    try:
        data = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            return None
        files = {path: FileRecord(entry["size"], entry["sha256"]) for path, entry in data["files"].items()}
        return Manifest(data["name"], data["source"], data["pulled"], files, data.get("details", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_manifest(place: Path, record: Manifest, info: ModelInfo) -> None:
    """Write a model's manifest, with what the catalogue said of it at the time."""
    data = {
        "format": FORMAT,
        "name": record.name,
        "task": info.task,
        "family": info.family,
        "licence": info.licence,
        "source": record.source,
        "pulled": record.pulled,
        "fingerprint": record.fingerprint,
        "files": {path: {"size": entry.size, "sha256": entry.sha256} for path, entry in sorted(record.files.items())},
        "details": dict(record.details),
    }
    with (place / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


# Replacing one folder by another takes two renames: no portable call does it in one step. The order makes a kill
# harmless: the new folder, complete, first gets a name that only a finished pull gives (ready), then the old one moves
# away, then the new one moves in. Whoever finds the model's folder gone and a ready one waiting finishes the move.


def ready_folder(place: Path) -> Path:
    """Where a finished pull waits to become ``place``."""
    return place.parent / ".work" / place.name / "ready"


def finish_interrupted_swap(place: Path) -> None:
    """Move a finished pull into its place if its process was killed just before it could."""
    if not place.exists():
        ready = ready_folder(place)
        if ready.is_dir():
            try:
                ready.rename(place)
            except OSError:
                # Another process was quicker, or this one may not write here; then the model is there or missing.
                return


def swap_in(ready: Path, place: Path) -> None:
    """Put the finished folder ``ready`` (see ``ready_folder``) in the place of whatever ``place`` is now."""
    old = ready.with_name("old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    finish_interrupted_swap(place)
    shutil.rmtree(old, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(name: str, place: Path) -> bool:
    record = read_manifest(place)
    if record is not None:
        return all(_size_of(place / path) == entry.size for path, entry in record.files.items())
    if not place.is_dir():
        return False
    info = catalogue.load().models.get(name)
    if info is None:
        return any(_files(place))
    return all((place / path).is_file() for path in info.files)


def _names_on_disk() -> Iterator[str]:
    try:
        places = sorted(models_folder().iterdir())
    except OSError:
        return
    for place in places:
        if is_name(place.name) and place.is_dir() and any(_files(place)):
            yield place.name


def _files(place: Path) -> Iterator[Path]:
    return (path for path in sorted(place.rglob("*")) if path.is_file())


def _size(place: Path) -> int:
    return sum(_size_of(path) for path in _files(place))


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
