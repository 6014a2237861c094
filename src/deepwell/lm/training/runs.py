"""Which runs a folder holds, and how each of them stands, from their journals alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deepwell.errors import UsageError
from deepwell.lm.training.journal import latest
from deepwell.lm.training.records import Ended, Started, Stepped, Validated

__all__ = ["JOURNAL", "Run", "State", "runs"]

State = Literal["running", "finished", "stopped", "failed"]
"""``stopped``: ended on purpose before its last step; ``failed``: it neither ended nor goes on. Both can be resumed."""

JOURNAL, _RECIPE, _LOCK = "journal.jsonl", "recipe.json", ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it stands. What it has not come to yet is None."""

    name: str
    folder: Path
    state: State
    step: int
    steps: int
    """Of the whole run; 0 before its data is ready."""
    tokens: int
    loss: float | None
    """Of the last step."""
    bits_per_byte: float | None
    """Of the last look at what was held back."""
    when: float
    """The last sign of it, in seconds since 1970."""


def runs(folder: Path) -> list[Run]:
    """The runs of a folder, latest first: its sub-folders that hold one, or the folder if it is a run itself.

    Raises:
        UsageError: There is no such folder.
        TrainingError: A journal was damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", hint="runs are in runs/ where 'deepwell train' was called")
    places = [folder] if _is_run(folder) else [place for place in folder.iterdir() if _is_run(place)]
    return sorted(map(_run, places), key=lambda run: (-run.when, run.name))


def _is_run(folder: Path) -> bool:
    return (folder / JOURNAL).is_file() or (folder / _RECIPE).is_file()


def _run(folder: Path) -> Run:
    journal = folder / JOURNAL
    last = latest(journal) if journal.is_file() else {}
    started, stepped, looked, ended = (last.get(kind) for kind in (Started, Stepped, Validated, Ended))
    state: State = "failed"
    if isinstance(ended, Ended):  # which Journal.resume takes out when the run goes on
        state = "finished" if ended.finished else "stopped"
    if state != "finished" and _is_locked(folder / _LOCK):
        state = "running"
    return Run(
        name=folder.name or str(folder),
        folder=folder,
        state=state,
        step=stepped.step if isinstance(stepped, Stepped) else 0,
        steps=started.steps if isinstance(started, Started) else 0,
        tokens=stepped.tokens if isinstance(stepped, Stepped) else 0,
        loss=stepped.loss if isinstance(stepped, Stepped) else None,
        bits_per_byte=looked.bits_per_byte if isinstance(looked, Validated) else None,
        when=max(path.stat().st_mtime for path in (journal, folder / _RECIPE) if path.is_file()),
    )


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock; one that was killed does not, for the system lets go of it."""
    if not path.exists():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True
