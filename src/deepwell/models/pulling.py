"""Pulling a model: try its sources in order, check what arrives, and put it in place in one step.

Whatever happens in between (a kill, a full disk, a broken line, a wrong hash), the folder of the model is the old one
or the new one, whole; and what was downloaded so far is kept for the next attempt. A lock keeps two processes from
pulling the same model at once: the second waits, then finds it there.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepwell.errors import DeepwellError, MissingModelError, ModelSourceError, UsageError
from deepwell.models import catalogue, shelf
from deepwell.models.catalogue import FolderPart, ModelInfo, Source
from deepwell.models.progress import Progress, Step, silent
from deepwell.models.shelf import FileRecord, Manifest
from deepwell.models.sources import Job, fetch
from deepwell.models.sources.job import DiskFullError, disk_full
from deepwell.paths import models_folder


@dataclass(frozen=True, slots=True)
class Pulled:
    """One model after a pull. ``already`` when it was here before and nothing was done."""

    name: str
    folder: Path
    source: str
    size: int
    seconds: float
    already: bool = False


def pull(
    name: str, *, progress: Progress | None = None, force: bool = False, source: str | Path | None = None
) -> tuple[Pulled, ...]:
    """Fetch a model, or every model of a set, unless it is here and whole.

    Args:
        name: A model or a set of the catalogue.
        progress: Called with a ``Step`` as things move.
        force: Fetch it again even when it is here.
        source: A folder to take it from instead of the catalogue's sources: the model's own folder, or one that holds
            a folder of the model's name.

    Raises:
        UsageError: There is no such model or set.
        ModelSourceError: No source worked; the message has each one's reason. The rest of a set is pulled all the same.
    """
    done, failed = [], []
    for member in catalogue.load().expand([name]):
        try:
            done.append(pull_one(member, progress=progress, force=force, source=source))
        except DiskFullError:
            raise
        except ModelSourceError as error:
            failed.append(error)
    if len(failed) > 1:
        raise ModelSourceError("; ".join(error.message for error in failed), hint=failed[0].hint)
    if failed:
        raise failed[0]
    return tuple(done)


def pull_one(
    name: str, *, progress: Progress | None = None, force: bool = False, source: str | Path | None = None
) -> Pulled:
    """Fetch one model. See ``pull``."""
    from filelock import FileLock, Timeout

    started = time.monotonic()
    progress = progress or silent
    info = catalogue.load().find(name)
    place = models_folder() / name
    # A name that is whole already needs no lock and no right to write.
    if not force and shelf.is_present(name):
        return _already(info, place, started)
    work = models_folder() / ".work" / name
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work.with_name(f"{name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(Step(name, "waiting for another pull of it"))
            lock.acquire()
    except OSError as error:
        raise UsageError(
            f"the folder of models {models_folder()} cannot be written: {error.strerror}",
            hint="set DEEPWELL_MODELS to a folder of yours",
        ) from error
    try:
        if not force and shelf.is_present(name):
            return _already(info, place, started)
        record = _pull_locked(info, work, _sources(info, source), progress)
        return Pulled(name, place, record.source, record.size, time.monotonic() - started)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(name, error.strerror or "the disk is full") from error
        raise ModelSourceError(
            f"'{name}' could not be written to {place}: {error}", hint="check that folder"
        ) from error
    finally:
        lock.release()


def remove(name: str) -> int:
    """Delete a pulled model and what is left of its downloads. Returns the bytes that were freed.

    Raises:
        MissingModelError: It is not here.
        UsageError: There is no such model, or the name is a path: folders elsewhere are not ours to delete.
    """
    from filelock import FileLock, Timeout

    if shelf.looks_like_path(name):
        raise UsageError(f"'{name}' is a path, and only pulled models are removed", hint="delete that folder yourself")
    place, work = models_folder() / name, models_folder() / ".work" / name
    if not catalogue.is_name(name) or not (place.is_dir() or work.is_dir()):
        if not catalogue.is_name(name) or not place.exists():
            catalogue.load().find(name)
        raise MissingModelError(f"the model '{name}' is not on this machine", hint="run: deepwell models list")
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work.with_name(f"{name}.lock"), timeout=0):
            freed = _bytes_in(place) + _bytes_in(work)
            # First out of sight in one step, then deleted: a kill in between leaves no half a model.
            if place.exists():
                gone = work / "old"
                shutil.rmtree(gone, ignore_errors=True)
                shutil.rmtree(shelf.ready_folder(place), ignore_errors=True)
                place.rename(gone)
            shutil.rmtree(work)
            return freed
    except Timeout:
        raise ModelSourceError(
            f"'{name}' is being pulled by another process", hint="wait until it is done, or stop it, then try again"
        ) from None
    except OSError as error:
        raise UsageError(
            f"'{name}' could not be removed from {place}: {error.strerror}", hint="check that folder"
        ) from error


def _already(info: ModelInfo, place: Path, started: float) -> Pulled:
    record = shelf.read_manifest(place)
    source = record.source if record else "placed by hand"
    size = record.size if record else _bytes_in(place)
    return Pulled(info.name, place, source, size, time.monotonic() - started, already=True)


def _sources(info: ModelInfo, source: str | Path | None) -> tuple[Source, ...]:
    if source is None:
        return info.sources
    path = Path(source).expanduser().absolute()
    inner = path / info.name
    return (Source((FolderPart(inner if inner.is_dir() else path, info.files),)),)


def _pull_locked(info: ModelInfo, work: Path, sources: tuple[Source, ...], progress: Progress) -> Manifest:
    staging = work / "staging"
    failures: list[ModelSourceError] = []
    for source in sources:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        job = Job(info, work / "parts", staging, progress)
        try:
            details = [fetch(part, job) for part in source.parts]
            record = _record(info, staging, str(source), details, job.report("checking"))
        except DiskFullError:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        except ModelSourceError as error:
            failures.append(error)
            continue
        shelf.write_manifest(staging, record, info)
        place = models_folder() / info.name
        ready = shelf.ready_folder(place)
        shutil.rmtree(ready, ignore_errors=True)
        staging.rename(ready)
        shelf.swap_in(ready, place)
        shutil.rmtree(work, ignore_errors=True)
        return record
    shutil.rmtree(staging, ignore_errors=True)
    raise _no_source(info, failures)


def _record(
    info: ModelInfo, staging: Path, source: str, details: list[dict[str, Any]], report: Callable[[int, int], None]
) -> Manifest:
    missing = [path for path in info.files if not (staging / path).is_file()]
    if missing:
        raise ModelSourceError(f"{source} brought no {', '.join(missing)}", hint="correct this source in the catalogue")
    files: dict[str, FileRecord] = {}
    total, done = _bytes_in(staging), 0
    for path in sorted(path for path in staging.rglob("*") if path.is_file()):
        size = path.stat().st_size
        files[path.relative_to(staging).as_posix()] = FileRecord(size, shelf.sha256_of(path))
        _to_disk(path)
        done += size
        report(done, total)
    return Manifest(info.name, source, datetime.now(UTC).isoformat(timespec="seconds"), files, {"parts": details})


def _to_disk(path: Path) -> None:
    # The manifest vouches for these bytes, so they have to survive a power cut that it survives.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _no_source(info: ModelInfo, failures: list[ModelSourceError]) -> DeepwellError:
    if not failures:
        return ModelSourceError(
            f"the catalogue names no source for '{info.name}'", hint=f"deepwell models pull {info.name} --from FOLDER"
        )
    first = failures[0]
    if len(failures) == 1:
        return ModelSourceError(f"'{info.name}' was not pulled: {first.message}", hint=first.hint)
    reasons = "".join(f"\n  - {error.message}" for error in failures)
    return ModelSourceError(f"'{info.name}' was not pulled, none of its sources worked:{reasons}", hint=first.hint)


def _bytes_in(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
