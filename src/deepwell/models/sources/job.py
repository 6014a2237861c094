"""What one pull hands to its sources."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deepwell.errors import ModelSourceError
from deepwell.models.catalogue import ModelInfo
from deepwell.models.progress import Progress, Step
from deepwell.paths import models_folder

SPARE = 64 << 20
"""Bytes that a pull leaves free on the disk."""


class DiskFullError(ModelSourceError):
    """No source can help when there is no room for its files."""


@dataclass(frozen=True, slots=True)
class Job:
    """One pull: ``parts`` keeps unfinished downloads between pulls, ``staging`` is the folder being put together."""

    info: ModelInfo
    parts: Path
    staging: Path
    progress: Progress

    def report(self, doing: str) -> Callable[[int, int], None]:
        """A function that passes on how far ``doing`` is, in bytes."""
        return lambda done, total: self.progress(self.step(doing, done, total))

    def step(self, doing: str, done: int = 0, total: int = 0) -> Step:
        """Where this pull is."""
        return Step(self.info.name, doing, done, total)

    def staged(self, path: str) -> Path:
        """Where a file of the model is to be written; its folder is made."""
        target = self.staging / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def need_room(self, size: int, *, kept: Path | None = None) -> None:
        """Raise ``DiskFullError`` unless ``size`` bytes fit on the disk, less those that are in ``kept`` already."""
        if kept is not None:
            files = kept.rglob("*") if kept.is_dir() else [kept]
            size = max(0, size - sum(path.stat().st_size for path in files if path.is_file()))
        free = shutil.disk_usage(self.staging).free
        if size + SPARE > free:
            detail = f"{size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
            raise disk_full(self.info.name, detail)


def disk_full(name: str, detail: str) -> DiskFullError:
    """The error for a disk without room, whoever noticed it."""
    return DiskFullError(
        f"no room for the model '{name}' on the disk of {models_folder()}: {detail}",
        hint="free some space, or set DEEPWELL_MODELS to a folder on a larger disk",
    )
