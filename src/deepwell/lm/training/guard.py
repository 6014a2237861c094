"""What happens when a loss or a gradient is not finite.

One bad step is skipped: nothing is changed, the next rows come. ``guard.patience`` bad steps in a row mean that the
weights are at fault, or a stretch of the data; the run then goes back to its last checkpoint. What follows is computed
from the same numbers, so the same rows would do the same again: steps that were bad are from then on *passed over*,
without being computed. After ``guard.rollbacks`` returns the run ends with an error that names them.

The guard only counts and decides; the loop does what it says:

    if step in guard.passed:
        ...                                         # count the step, compute nothing
    match guard.judge(step, loss, grad_norm, where="rows 640 to 647"):
        case "go": ...                              # the optimizer's step
        case "skip": ...                            # drop the gradients
        case "rollback": ...                        # load the last checkpoint; guard.restore(its state) forgets nothing
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from deepwell.errors import TrainingError
from deepwell.lm.training.recipe import GuardSection

Verdict = Literal["go", "skip", "rollback"]
_NAMED = 8
"""Bad steps that an error names, the last ones."""


class Guard:
    """Counts bad steps. Every process gives it the same numbers, of the whole step, and so gets the same verdict.

    Attributes:
        passed: Steps not to be computed.
        rollbacks: How often the run went back.
    """

    def __init__(self, section: GuardSection) -> None:
        self.passed: set[int] = set()
        self.rollbacks = 0
        self._section = section
        self._in_a_row = 0
        self._bad: dict[int, str] = {}

    def judge(self, step: int, loss: float, grad_norm: float, *, where: str = "") -> Verdict:
        """What to do with a step whose gradients are there and have not been used.

        Args:
            step: Its number.
            loss: Of the step, over all processes.
            grad_norm: The same, before clipping.
            where: The rows of the data that it took, for the message.

        Raises:
            TrainingError: The run has gone back as often as it may, and it has happened again.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._in_a_row = 0
            return "go"
        self._bad[step] = where
        self._in_a_row += 1
        if self._in_a_row < self._section.patience:
            return "skip"
        if self.rollbacks >= self._section.rollbacks:
            raise self._error(step, loss, grad_norm)
        self.rollbacks += 1
        self._in_a_row = 0
        self.passed |= self._bad.keys()
        return "rollback"

    def state(self) -> dict[str, Any]:
        """For the checkpoint: values of JSON."""
        return {
            "passed": sorted(self.passed),
            "rollbacks": self.rollbacks,
            "in_a_row": self._in_a_row,
            "bad": {str(step): where for step, where in sorted(self._bad.items())},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what a checkpoint says. What happened since it was written stays known: it led to going back."""
        older = state["rollbacks"] < self.rollbacks
        self._in_a_row = 0 if older else state["in_a_row"]
        self.rollbacks = max(self.rollbacks, state["rollbacks"])
        self.passed |= set(state["passed"])
        self._bad |= {int(step): where for step, where in state["bad"].items()}

    def _error(self, step: int, loss: float, grad_norm: float) -> TrainingError:
        named = [f"{bad} ({where})" if where else str(bad) for bad, where in sorted(self._bad.items())[-_NAMED:]]
        times = f"{self.rollbacks} times" if self.rollbacks != 1 else "once"
        back = f", and the run has gone back to a checkpoint {times} already" if self.rollbacks else ""
        what = "loss" if not math.isfinite(loss) else "gradient"
        value = loss if not math.isfinite(loss) else grad_norm
        return TrainingError(
            f"training stopped at step {step}: the {what} is {value}{back}; bad steps: {', '.join(named)}",
            hint="lower optimizer.lr or lengthen schedule.warmup, and look at the data of the steps named; "
            "a checkpoint that was saved is good, and --resume goes on from it",
        )
