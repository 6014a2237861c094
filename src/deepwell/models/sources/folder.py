"""Files from a folder: a mounted share, a stick, a folder that another machine filled with ``deepwell models pull``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepwell.errors import ModelSourceError
from deepwell.models.catalogue import FolderPart, HubPart, UrlPart, WheelPart
from deepwell.models.shelf import read_manifest
from deepwell.models.sources.job import Job
from deepwell.models.sources.patterns import matches
from deepwell.models.transfer import Expected

BLOCK = 4 << 20


def fetch(part: FolderPart, job: Job) -> dict[str, Any]:
    """Copy a model out of a folder; the folder of a pulled model is checked against its manifest on the way."""
    if not part.path.is_dir():
        raise ModelSourceError(f"there is no folder {part.path}", hint="check the path, and that the disk is mounted")
    missing = [path for path in part.files if not (part.path / path).is_file()]
    if missing:
        raise ModelSourceError(
            f"the folder {part.path} is not the model '{job.info.name}': {', '.join(missing)} missing",
            hint=f"a complete one holds {', '.join(job.info.files)}",
        )
    record = read_manifest(part.path)
    names = list(record.files) if record else _wanted(part, job)
    job.need_room(sum((part.path / name).stat().st_size for name in names if (part.path / name).is_file()))
    for name in names:
        source = part.path / name
        copy(source, job.staged(name), job, f"copying {name}")
        if record:
            expected = record.files[name]
            problem = Expected(expected.size, expected.sha256).problem(job.staged(name))
            if problem:
                raise ModelSourceError(
                    f"{source} is damaged: {problem}", hint="copy that folder again from where the model was pulled"
                )
    return {"folder": str(part.path), **({"first_source": record.source} if record else {})}


def copy(source: Path, target: Path, job: Job, doing: str) -> None:
    """Copy one file, reporting as it goes."""
    report = job.report(doing)
    try:
        with source.open("rb") as reading:
            total, done = source.stat().st_size, 0
            with target.open("wb") as writing:
                while block := reading.read(BLOCK):
                    writing.write(block)
                    done += len(block)
                    report(done, total)
    except (FileNotFoundError, PermissionError) as error:
        raise ModelSourceError(f"{source} cannot be read: {error.strerror}", hint="check the folder") from error


def _wanted(part: FolderPart, job: Job) -> list[str]:
    # Hub repositories also carry the same weights for other frameworks: take what some source of the catalogue names.
    patterns = [*part.files]
    for source in job.info.sources:
        for other in source.parts:
            if isinstance(other, HubPart):
                patterns += [*other.files, *other.optional]
            elif isinstance(other, FolderPart | WheelPart):
                patterns += other.files
            elif isinstance(other, UrlPart):
                patterns.append(other.file)
    found = (path.relative_to(part.path).as_posix() for path in sorted(part.path.rglob("*")) if path.is_file())
    return [name for name in found if any(matches(name, pattern) for pattern in patterns)]
