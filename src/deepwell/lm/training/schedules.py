"""How long a run is, how many rows each step has, and at what rate it learns: all functions of the step alone.

Nothing here has a state. ``plan`` lays out the run once; which rows step 12 345 reads, and at what rate, follows from
that number, so a run that was stopped needs no more than it to go on.

    whole = plan(recipe.batch, rows_per_epoch=len(rows), row_tokens=512)
    first, count = whole.rows(step)                         # steps are 1 to whole.steps
    factor = whole.learning_rate(recipe.schedule, step)

Shares of a run are shares of its tokens, as in V3's report (section 4.2). Every row has the same number of tokens, so
they are shares of its rows. What is given as ``[from, value]`` holds for the steps that begin at ``from`` or later.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from deepwell.errors import DataError, UsageError
from deepwell.lm.training.recipe import BatchSection, ScheduleSection, value_at


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of steps of one size."""

    step: int
    """Its first step; the run's first is 1."""
    row: int
    """The first row of that step, counted over all epochs."""
    sequences: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A run laid out. Made by ``plan``."""

    steps: int
    total: int
    """Rows that shares of the run refer to."""
    end: int
    """Rows that are read; more than ``total`` where the last step goes past the tokens that were asked for."""
    phases: tuple[Phase, ...]

    def rows(self, step: int) -> tuple[int, int]:
        """The first row of a step, counted over all epochs, and how many it has; in O(log phases).

        Raises:
            UsageError: There is no such step.
        """
        if not 1 <= step <= self.steps:
            raise UsageError(f"step {step} does not exist; the run has steps 1 to {self.steps}")
        phase = self.phases[bisect_right(self.phases, step, key=lambda phase: phase.step) - 1]
        first = phase.row + (step - phase.step) * phase.sequences
        return first, min(phase.sequences, self.end - first)

    def check_processes(self, processes: int) -> None:
        """See before the first step that the rows of every step can be shared.

        Raises:
            UsageError: Those of some step cannot be shared equally by so many processes.
        """
        for phase in self.phases:
            if phase.sequences % processes:
                raise UsageError(
                    f"step {phase.step} has {phase.sequences} rows, which {processes} processes cannot share equally",
                    hint=f"let batch.sequences and batch.ramp have multiples of {processes}",
                )
        if (left := self.rows(self.steps)[1]) % processes:
            raise UsageError(
                f"the last step has the {left} rows that are left, which {processes} processes cannot share equally",
                hint=f"give batch.steps = {self.steps} in place of batch.epochs: the last step is then a full one",
            )

    def share(self, step: int) -> float:
        """The share of the run that lies before a step: 0 for the first, 1 for the one after the last."""
        return 1.0 if step > self.steps else min(1.0, self.rows(step)[0] / self.total)

    def learning_rate(self, section: ScheduleSection, step: int) -> float:
        """The factor of the highest rate for a step, where steps differ in size. See the function of that name."""
        return _factor(section, step, self.steps, self.share)


def learning_rate(section: ScheduleSection, step: int, steps: int) -> float:
    """The factor of ``optimizer.lr`` for a step of ``steps`` that are all of one size.

    Args:
        section: The schedule.
        step: The first is 1, which has a rate above 0; the last is ``steps``.
        steps: Of the whole run.

    Returns:
        Rising in a line over the warm-up to 1, which its last step has; 1 until ``hold``; then down along half a
        cosine or a line to ``final``, which the step has that ends at ``until``; ``final`` for those after, or what
        ``steps`` say. With ``kind = "constant"`` there is no decay.
    """
    return _factor(section, step, steps, lambda number: (number - 1) / steps)


def _factor(section: ScheduleSection, step: int, steps: int, share: Callable[[int], float]) -> float:
    begins, ends = share(step), share(step + 1)
    if section.warmup >= 1:
        warm, risen = share(min(steps, math.ceil(section.warmup)) + 1), step / section.warmup
    else:
        warm, risen = section.warmup, ends / section.warmup if section.warmup else 1.0
    return min(1.0, risen) * _without_warmup(section, begins, ends, max(section.hold, warm))


def _without_warmup(section: ScheduleSection, begins: float, ends: float, hold: float) -> float:
    after = [(at, value) for at, value in section.steps if at <= begins]
    if section.kind == "steps" or (after and begins >= section.until) or section.kind == "constant":
        return after[-1][1] if after else 1.0
    if ends <= hold:
        return 1.0
    if ends >= section.until:
        return section.final
    progress = (ends - hold) / (section.until - hold)
    left = (1 + math.cos(math.pi * progress)) / 2 if section.kind == "cosine" else 1 - progress
    return section.final + (1 - section.final) * left


def sequences_at(batch: BatchSection, share: float) -> int:
    """Rows of a step that begins at this share of the run. The last size of a ramp holds to the end."""
    return int(value_at(batch.ramp, share)) if batch.ramp else batch.sequences


def plan(batch: BatchSection, *, rows_per_epoch: int, row_tokens: int) -> Plan:
    """Lay out a run.

    ``steps`` are all full. ``tokens`` end with a full step, so they may be overshot by less than one. ``epochs`` end
    exactly, with a smaller last step where rows are left over.

    Args:
        batch: Its length and the sizes of its steps.
        rows_per_epoch: Rows that one pass over the data makes.
        row_tokens: Tokens of a row.

    Raises:
        DataError: The data makes no row.
    """
    if rows_per_epoch < 1 or row_tokens < 1:
        raise DataError("the training data makes no row", hint="give it more text, or a smaller data.sequence_length")
    sizes = [(begin, int(value)) for begin, value in batch.ramp] or [(0.0, batch.sequences)]
    borders = [begin for begin, _ in sizes[1:]] + [1.0]
    if batch.steps:
        a_row = sum((border - begin) / size for (begin, size), border in zip(sizes, borders, strict=True))
        total = max(1, round(batch.steps / a_row))
    elif batch.tokens:
        total = math.ceil(batch.tokens / row_tokens)
    else:
        total = max(1, round(batch.epochs * rows_per_epoch))
    phases: list[Phase] = []
    step, row = 1, 0
    for (_, size), border in zip(sizes, borders, strict=True):
        count = max(0, math.ceil((_first_at(border, total) - row) / size))
        if count:
            phases.append(Phase(step, row, size))
            step, row = step + count, row + count * size
    if batch.steps:
        phases = [phase for phase in phases if phase.step <= batch.steps]
        last = phases[-1]
        total = end = last.row + (batch.steps - last.step + 1) * last.sequences
        return Plan(batch.steps, total, end, tuple(phases))
    return Plan(step - 1, total, total if batch.epochs else row, tuple(phases))


def _first_at(share: float, total: int) -> int:
    """The first row that has this share of ``total`` rows before it, by the comparison that ``value_at`` makes."""
    row = max(0, math.floor(share * total) - 1)
    while row / total < share:
        row += 1
    return row
