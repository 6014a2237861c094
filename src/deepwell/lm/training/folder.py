"""The folder of a run: whose it is, which recipe it was begun with, and that nobody else writes to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepwell.errors import TrainingError, UsageError
from deepwell.lm.parallel.world import World
from deepwell.lm.training import reading
from deepwell.lm.training.checkpoint import Checkpoints
from deepwell.lm.training.recipe import Recipe

RECIPE, JOURNAL, CHECKPOINTS, EXPERTS = "recipe.json", "journal.jsonl", "checkpoints", "experts.json"
_MAY_CHANGE = ("about", "threads", "log", "checkpoint", "parallel", "memory")
"""Sections that do not change what is learned: a run goes on with others than it began with."""


@contextlib.contextmanager
def held(folder: Path, world: World) -> Iterator[None]:
    """The folder is this run's alone until it ends."""
    if not world.is_main:
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"{folder} is in use by another run", hint="wait for it, or choose another with --out"
        ) from error
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror})", hint="choose another with --out") from error
    try:
        yield
    finally:
        lock.release()


def claim(folder: Path, recipe: Recipe, name: str, base: Path, *, resume: bool, world: World) -> None:
    """Check that the folder holds this run or none, and note the recipe in it."""
    path = folder / RECIPE
    content = reading.to_dict(recipe)
    if path.exists():
        called, before = _before(path, content)
        if not resume and (folder / JOURNAL).exists():
            raise UsageError(
                f"{folder} holds a run of {called} already",
                hint="go on with it (--resume), or choose another folder with --out",
            )
        changed = [key for key in {*content, *before} if content.get(key) != before.get(key)]
        changed = sorted(key for key in changed if key not in _MAY_CHANGE)
        if resume and changed and Checkpoints(folder / CHECKPOINTS, keep=1).steps():
            raise UsageError(
                f"{folder} was begun with another recipe: {', '.join(changed)} differ",
                hint="go on with the recipe it was begun with (leave RECIPE out), or choose another folder with --out",
            )
    if world.is_main:
        write_whole(path, json.dumps({"name": name, "base": str(base.resolve()), "recipe": content}, indent=2) + "\n")
    world.barrier()


def _before(path: Path, content: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and recipe that a run was begun with; where its file is damaged, those that the user gives now."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return str(noted["name"]), dict(noted["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return path.parent.name, content


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one move.

    Raises:
        TrainingError: The disk is full, or the folder cannot be written; the old file is as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written: {error.strerror}", hint="see whether the disk is full, then begin again"
        ) from error
