"""TensorBoard event files, for those who compare runs there: ``tensorboard --logdir runs``.

Written by tensorboardX, which needs no TensorFlow and is imported at the first record only. Where it is not installed
the run goes on without, and one line says how to get it: nothing else depends on these files, for the journal holds
every figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepwell.errors import MissingExtraError
from deepwell.lm.training.figures import imbalance, layer_names
from deepwell.lm.training.records import Ended, Noted, Record, Sampled, Started, Stepped, Validated

__all__ = ["TensorBoard"]


class TensorBoard:
    """A watcher that writes scalars, samples and notes as event files.

    Scalars are ``loss/...``, ``optim/...``, ``speed/...``, ``experts/...`` (the busiest over the mean, for each layer)
    and ``validation/...``. A run that goes on writes a further file and tells TensorBoard to forget the steps that are
    done again.

    Args:
        folder: Where event files go; made at the first record.
        on_note: Gets a line if tensorboardX is not installed. Without it that is a ``MissingExtraError``.
    """

    def __init__(self, folder: Path, *, on_note: Callable[[str], None] | None = None) -> None:
        self._folder = folder
        self._on_note = on_note
        self._writer: Any = None
        self._missing = False

    def __call__(self, record: Record) -> None:
        """Write what a record tells.

        Raises:
            MissingExtraError: tensorboardX is not installed, and there is no ``on_note``.
        """
        if self._writer is None:
            if self._missing or isinstance(record, Ended):
                return
            self._open(record.step)
        if self._writer is None:
            return
        match record:
            case Started():
                facts = "".join(f"    {key}: {value}\n" for key, value in record.recipe.items())
                self._writer.add_text("recipe", f"{record.name}\n\n{facts}", record.step)
            case Stepped():
                self._step(record)
            case Validated():
                self._look(record)
            case Sampled():
                text = f"**{record.prompt}** {record.text}" if record.prompt else record.text
                self._writer.add_text("samples", text, record.step)
            case Noted():
                self._writer.add_text("notes", record.message, record.step)
            case Ended():
                self.close()

    def close(self) -> None:
        """Write what is still in memory and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            missing = MissingExtraError(
                "TensorBoard files need tensorboardX",
                hint="run: pip install 'deepwell[train]', or set log.tensorboard = false",
            )
            if self._on_note is None:
                raise missing from error
            self._missing = True
            self._on_note(f"{missing.message}, and there will be none; {missing.hint}")
            return
        # purge_step makes readers drop what an earlier sitting wrote from that step on.
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1 if step else None, flush_secs=10)

    def _scalar(self, name: str, value: float, step: int) -> None:
        if math.isfinite(value):  # a gap in the curve shows it better than a warning of tensorboardX at each step
            self._writer.add_scalar(name, value, step)

    def _step(self, told: Stepped) -> None:
        scalars = {
            "loss/main": told.loss,
            "loss/balance": told.balance,
            "optim/lr": told.lr,
            "optim/grad_norm": told.grad_norm,
            "optim/sequences": told.sequences,
            "optim/tokens": told.tokens,
            "optim/skipped": told.skipped,
            "speed/tokens_per_second": told.tokens_per_second,
            "speed/share_of_peak": told.share_of_peak,
            "speed/seconds": told.seconds,
            "speed/memory_mb": told.memory_mb,
        }
        scalars |= {f"loss/mtp_{depth}": loss for depth, loss in enumerate(told.mtp, 1)}
        names = layer_names(len(told.loads), len(told.mtp))
        for name, loads in zip(names, told.loads, strict=True):
            scalars[f"experts/imbalance_{name.lower().replace(' ', '_')}"] = imbalance(loads)
        for name, value in scalars.items():
            self._scalar(name, float(value), told.step)

    def _look(self, told: Validated) -> None:
        scalars = {"validation/loss": told.loss, "validation/bits_per_byte": told.bits_per_byte}
        scalars |= {f"validation/mtp_{depth}_loss": loss for depth, loss in enumerate(told.mtp_losses, 1)}
        scalars |= {f"validation/mtp_{depth}_right": part for depth, part in enumerate(told.mtp_right, 1)}
        for name, value in scalars.items():
            self._scalar(name, value, told.step)
