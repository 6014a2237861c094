"""TensorBoard event files, for those who compare runs there: ``tensorboard --logdir runs``.

Written by tensorboardX, which needs no TensorFlow and is imported only when a ``TensorBoard`` is made. Where it is not
installed a run can go on without: nothing depends on these files, for the journal holds every figure.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from deepwell.errors import MissingExtraError
from deepwell.lm.training.figures import imbalance, layer_names
from deepwell.lm.training.records import Ended, Noted, Record, Sampled, Started, Stepped, Validated

__all__ = ["TensorBoard"]


class TensorBoard:
    """A watcher that writes scalars, samples and notes as event files.

    Scalars are ``loss/...``, ``optim/...``, ``speed/...``, ``experts/...`` (the busiest over the mean, for each layer)
    and ``validation/...``. Where a run goes on after a stop, or goes back to a checkpoint, a further file begins that
    tells readers to forget the steps that are done again.

    Args:
        folder: Where event files go; made at the first record.

    Raises:
        MissingExtraError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(
                "TensorBoard files need tensorboardX",
                hint="run: pip install 'deepwell[train]', or set log.tensorboard = false",
            ) from error
        self._folder = folder
        self._make: Any = SummaryWriter
        self._writer: Any = None
        self._latest = 0
        self._files = 0

    def __call__(self, record: Record) -> None:
        """Write what a record tells."""
        if isinstance(record, Ended):
            self.close()
            return
        if isinstance(record, Stepped):
            if record.step <= self._latest:
                self.close()
            self._latest = record.step
        if self._writer is None:
            first = record.step + 1 if isinstance(record, Started) else record.step
            self._files += 1  # two files begun within one second would have one name, and the second replace the first
            self._writer = self._make(
                str(self._folder),
                purge_step=first if first > 1 else None,
                flush_secs=10,
                filename_suffix=f".{os.getpid()}.{self._files}",
            )
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

    def close(self) -> None:
        """Write what is still in memory and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

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
