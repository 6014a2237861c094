"""The state of a run on disk: there whole or not at all, and known to be whole before it is used.

    checkpoints = Checkpoints(run_folder / "checkpoints", keep=2)
    checkpoints.save(200, tensors, values)                       # checkpoints/step-00000200
    state = checkpoints.load()                                   # the newest; or .latest_good(print)
    copy_into(parameter, state.tensors["weight"], "weight")

A save writes a hidden folder beside the others, has every byte reach the disk, and gives the folder its name in one
step. A kill or a full disk at any moment leaves what was there before, and at most a hidden folder that the next save
removes. ``manifest`` says how the SHA-256 of every byte is kept; it is compared before a tensor is given out, so a
damaged file is an error that names it and never a run that goes quietly wrong.

Tensors that are spread over processes (DTensor) are made whole one after the other, each written by one process: what
is on disk does not depend on how many there were, and any other number can go on from it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from deepwell.errors import TrainingError
from deepwell.lm.training.manifest import read_manifest, write_manifest
from deepwell.lm.training.pieces import MappedTensors, Piece, check_piece, lay_out, write_piece
from deepwell.lm.training.random_state import random_state, set_random_state
from deepwell.lm.training.spread import Alone, World, copy_into, whole
from deepwell.lm.weights.replacing import sync_folder

__all__ = ["Checkpoints", "Loaded", "World", "copy_into", "random_state", "set_random_state"]

_NAME = re.compile(r"step-(\d{8,})")
_HIDDEN = re.compile(r"\.(step-\d{8,})\.(part|old|gone)")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a checkpoint holds: whole tensors, mapped from its files one by one, and values as JSON gives them back."""

    step: int
    tensors: Mapping[str, Tensor]
    values: dict[str, Any]
    folder: Path


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they stand; made by the first save.
        keep: How many stay, the newest ones.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, rising. What a killed save left behind is not one."""
        if not self.folder.is_dir():
            return []
        found = set()
        for path in self.folder.iterdir():
            hidden = _HIDDEN.fullmatch(path.name)
            # A kill between the two renames of a replaced checkpoint leaves the old one under its hidden name.
            name = hidden[1] if hidden and hidden[2] == "old" else path.name
            if match := _NAME.fullmatch(name):
                found.add(int(match[1]))
        return sorted(found)

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        named = self.folder / f"step-{step:08}"
        old = named.with_name(f".{named.name}.old")
        return old if old.is_dir() and not named.is_dir() else named

    # ---- saving ----

    def save(
        self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, world: World | None = None
    ) -> Path:
        """Write the checkpoint of ``step`` and remove old ones, those of later steps too: another future was theirs.

        Args:
            step: Its number. A checkpoint that this step has already is replaced.
            tensors: Any of the dtypes of ``pieces.KINDS``, of any device, DTensors too. Every process gives the same
                names in the same order; a plain tensor is the same in each.
            values: What JSON can hold; read back, a tuple is a list.
            world: All processes of the run, each of which calls this.

        Returns:
            The folder of the checkpoint.

        Raises:
            TrainingError: The disk is full, the folder cannot be written, or another process could not write its part.
                Nothing is left behind and earlier checkpoints are as they were.
            UsageError: A tensor's dtype is none that a checkpoint can hold.
        """
        world = world or Alone()
        pieces = lay_out(tensors, world.size)
        saving = _Saving(self, step, pieces, json.loads(json.dumps(dict(values))))
        try:
            if world.rank == 0:
                saving.attempt(saving.begin)
            world.barrier()
            hashes: dict[str, str] = {}
            for piece in pieces:
                wholes = (whole(tensors[place.name]) for place in piece.places)
                if piece.owner == world.rank:
                    saving.attempt(partial(saving.write, piece, wholes, hashes))
                for _ in wholes:  # to make a tensor whole takes every process, whether it writes or has failed
                    pass
            saving.attempt(lambda: saving.note(world.rank, hashes))
            world.barrier()
            if world.rank == 0:
                saving.attempt(lambda: saving.finish(world.size))
            world.barrier()
            if world.rank > 0 and saving.part.exists():
                saving.attempt(saving.give_up)
            world.barrier()
        finally:
            if world.rank == 0:
                shutil.rmtree(saving.part, ignore_errors=True)
        if saving.failure is not None:
            raise self._failed(step, sum(piece.size for piece in pieces), saving.failure) from saving.failure
        if world.rank == 0:
            self._forget(step)
        return saving.named

    def _failed(self, step: int, needed: int, failure: Exception) -> TrainingError:
        if isinstance(failure, TrainingError):
            return failure
        number = failure.errno if isinstance(failure, OSError) else None
        reason = (failure.strerror if isinstance(failure, OSError) else None) or str(failure)
        hint = f"look at {self.folder}"
        if number in (errno.ENOSPC, errno.EDQUOT):
            hint = "free that much there"
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "make that folder writable"
        known = self.steps()
        last = f"; the checkpoint of step {known[-1]} is as it was" if known else ""
        return TrainingError(
            f"the checkpoint of step {step} could not be saved: {reason} ({needed:,} bytes were to be written to "
            f"{self.folder}){last}",
            hint=hint + (", then go on with --resume" if known else ""),
        )

    def _forget(self, step: int) -> None:
        """What cannot be removed now is removed after another save."""
        known = self.steps()
        stay = [one for one in known if one <= step][-self.keep :]
        for one in set(known) - set(stay):
            path = self.path(one)
            hidden = path.with_name(f".step-{one:08}.gone")
            # Half a checkpoint must not look like one: it loses its name before its files.
            with contextlib.suppress(OSError):
                path.rename(hidden)
                shutil.rmtree(hidden)

    # ---- loading ----

    def load(self, step: int | None = None) -> Loaded:
        """Check the newest checkpoint, or that of ``step``, and map it. Reads every byte once.

        Raises:
            TrainingError: There is none, or a file of it is missing, truncated or damaged: names the file, and in the
                hint the newest earlier checkpoint that is whole.
        """
        known = self.steps()
        if not known:
            raise TrainingError(f"{self.folder} holds no checkpoint")
        if step is None:
            step = known[-1]
        if step not in known:
            raise TrainingError(
                f"{self.folder} holds no checkpoint of step {step}",
                hint=f"it holds those of steps {', '.join(map(str, known))}",
            )
        try:
            return self._open(step)
        except TrainingError as error:
            good = next((one for one in reversed(known) if one < step and self._is_whole(one)), None)
            hint = "no earlier checkpoint is whole: the run has to begin anew"
            if good is not None:
                hint = f"the checkpoint of step {good} is whole: move {self.path(step)} away to go on from that"
            raise TrainingError(f"the checkpoint of step {step} is of no use: {error.message}", hint=hint) from error

    def latest_good(self, on_bad: Callable[[str], None]) -> Loaded | None:
        """The newest checkpoint that is whole; ``on_bad`` is told of each that is passed over, and why.

        Returns:
            It, or None where no checkpoint was ever saved.

        Raises:
            TrainingError: There are some, and all of them are damaged.
        """
        known = self.steps()
        for step in reversed(known):
            try:
                return self._open(step)
            except TrainingError as error:
                on_bad(f"the checkpoint of step {step} is passed over: {error.message}")
        if not known:
            return None
        steps = ", ".join(map(str, known))
        raise TrainingError(
            f"no checkpoint in {self.folder} is whole; there are damaged ones of steps {steps}",
            hint="begin the run anew, in another folder",
        )

    def _is_whole(self, step: int) -> bool:
        try:
            self._open(step)
        except TrainingError:
            return False
        return True

    def _open(self, step: int) -> Loaded:
        folder = self.path(step)
        manifest = read_manifest(folder)
        if manifest.step != step:
            raise TrainingError(f"{folder} holds the checkpoint of step {manifest.step}", hint="rename it")
        for piece in manifest.pieces:
            check_piece(folder / piece.file, piece.size, piece.sha256)
        files = {piece.file: piece.places for piece in manifest.pieces}
        return Loaded(step, MappedTensors(folder, files), manifest.values, folder)


class _Saving:
    """One save: its hidden folder, and what went wrong first."""

    def __init__(self, checkpoints: Checkpoints, step: int, pieces: list[Piece], values: dict[str, Any]) -> None:
        self.named = checkpoints.folder / f"step-{step:08}"
        self.part = self.named.with_name(f".{self.named.name}.part")
        self.failure: Exception | None = None
        self._step, self._pieces, self._values = step, pieces, values

    def attempt(self, what: Callable[[], None]) -> None:
        """Do it, unless something has failed before. Other processes are waiting, so an error is kept for the end."""
        if self.failure is None:
            try:
                what()
            except (OSError, TrainingError) as error:
                self.failure = error

    def begin(self) -> None:
        """Put away what killed saves left behind, and make the hidden folder."""
        self.named.parent.mkdir(parents=True, exist_ok=True)
        for path in list(self.named.parent.iterdir()):
            match = _HIDDEN.fullmatch(path.name)
            if match and match[2] == "old" and not path.with_name(match[1]).exists():
                path.rename(path.with_name(match[1]))
            elif match:
                shutil.rmtree(path)
        self.part.mkdir()

    def write(self, piece: Piece, wholes: Iterator[Tensor], hashes: dict[str, str]) -> None:
        """One piece."""
        hashes[piece.file] = write_piece(self.part, piece, wholes)

    def note(self, rank: int, hashes: dict[str, str]) -> None:
        """Tell the first process what this one has written; that there is a note says that all of it is on disk."""
        (self.part / f"hashes-{rank}.json").write_text(json.dumps(hashes))

    def finish(self, processes: int) -> None:
        """Write the manifest and give the folder its name."""
        hashes: dict[str, str] = {}
        for rank in range(processes):
            note = self.part / f"hashes-{rank}.json"
            if not note.exists():
                raise TrainingError(
                    f"{self.named} could not be saved: process {rank} has not written its part of it",
                    hint="its own message says why",
                )
            hashes |= json.loads(note.read_text())
            note.unlink()
        write_manifest(self.part, self._step, self._values, self._pieces, hashes)
        old = self.named.with_name(f".{self.named.name}.old")
        if self.named.exists():
            self.named.rename(old)
        try:
            self.part.rename(self.named)
        except OSError:
            if old.exists():
                old.rename(self.named)
            raise
        sync_folder(self.named.parent)
        shutil.rmtree(old, ignore_errors=True)

    def give_up(self) -> None:
        """The hidden folder has not got its name."""
        raise TrainingError(f"{self.named} could not be saved", hint="the message of another process says why")
