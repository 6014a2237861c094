"""One optimizer step after the other: what training knows of losses, gradients and balance, and nothing of files.

A step's rows are a function of its number alone (``schedules.plan``), so a run goes on after a stop as if there had
been none. They are shared by processes and cut into micro-batches; the tokens that the whole step predicts are counted
first, and every part takes its share of that one mean, so neither the cut nor the number of processes changes what is
learned. The load of experts is counted over all of them, and moves the router's bias once a step (V3 section 2.1.2).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepwell.lm.model.loss import Whole
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.parallel.sharding import last_part, sync_gradients
from deepwell.lm.parallel.world import World
from deepwell.lm.training.balance import shares, update_biases
from deepwell.lm.training.cost import highest_memory_mb
from deepwell.lm.training.data.rows import Rows
from deepwell.lm.training.guard import Guard
from deepwell.lm.training.optimizers import Optimizer
from deepwell.lm.training.recipe import Recipe, value_at
from deepwell.lm.training.records import Stepped
from deepwell.lm.training.schedules import Plan


@dataclass(slots=True)
class Progress:
    """How far a run is; part of every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Of steps alone, over all sittings."""


@dataclass(slots=True)
class Loop:
    """What a step needs. ``step`` takes one and returns what to tell; the caller looks, saves and stops."""

    model: Transformer
    recipe: Recipe
    rows: Rows
    plan: Plan
    optimizer: Optimizer
    guard: Guard
    world: World
    progress: Progress
    flops_per_token: float
    peak_flops: float
    origins: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints of the ``data`` and, where a checkpoint holds a part of the network, of its ``base``."""

    def step(self) -> tuple[Stepped, bool]:
        """Take the next step.

        Returns:
            What happened, and whether the run is to go back to its last checkpoint.

        Raises:
            TrainingError: Losses were not finite again and again, and going back has not helped.
        """
        begin = time.perf_counter()
        number, recipe = self.progress.step + 1, self.recipe
        first, count = self.plan.rows(number)
        if number in self.guard.passed:
            self.progress.step = number
            return self._told(number, begin, count, _Parts.nothing(len(self.model.mtp)), math.nan, skipped=True), False
        self.model.train()
        parts = self._gradients(first, count, value_at(recipe.mtp.weight, self.plan.share(number)))
        norm = float(self.optimizer.clip(recipe.optimizer.clip))
        verdict = self.guard.judge(number, parts.total, norm, where=f"rows {first} to {first + count - 1}")
        loads = self.world.sum(self.model.expert_loads()) if self.model.gates() else torch.zeros(0, 0)
        if verdict == "go":
            self.optimizer.step(self.plan.learning_rate(recipe.schedule, number))
            if self.model.gates() and recipe.model.tune == "full":  # else routers stay as they are
                update_biases(self.model, loads, value_at(recipe.balance.speed, self.plan.share(number)))
        self.optimizer.zero_grad()
        if self.model.gates():
            self.model.reset_expert_loads()
        self.progress.step = number
        self.progress.tokens += parts.tokens
        told = self._told(number, begin, count, parts, norm, skipped=verdict != "go", loads=loads)
        return told, verdict == "rollback"

    def _gradients(self, first: int, count: int, mtp_weight: float) -> _Parts:
        """Forward and backward over this process's rows; gradients are then the whole step's, in every process."""
        mine, many = self.world.share(count)
        batch = self.rows.batch(first + mine, many).to(self.world.device)
        size = self.recipe.batch.micro_sequences or many
        depth = len(self.model.mtp)
        own = Whole.of(batch.labels, batch.documents, depth=depth)
        counted = self.world.sum(torch.tensor([*own.predictions, own.sequences], device=self.world.device))
        *predictions, sequences = (int(value) for value in counted)
        whole = Whole(tuple(predictions), sequences)
        sums = torch.zeros(3 + depth, device=self.world.device)
        for begin in range(0, many, size):
            part = batch.rows(begin, min(begin + size, many))
            last_part(self.model, is_last=begin + size >= many)
            losses = self.model.loss(
                part.tokens, part.labels, documents=part.documents, mtp_weight=mtp_weight, whole=whole
            )
            losses.total.backward()
            ahead = [*losses.mtp, *[losses.main.new_zeros(())] * (depth - len(losses.mtp))]
            sums += torch.stack([losses.total, losses.main, losses.balance, *ahead]).detach()
        sync_gradients(self.model, self.world)
        total, main, balance, *mtp = self.world.sum(sums).tolist()
        real = batch.filled
        tokens = int(self.world.sum(torch.tensor([real], device=self.world.device)))
        return _Parts(total, main, balance, tuple(mtp), tokens)

    def _told(
        self, number: int, begin: float, count: int, parts: _Parts, norm: float, *, skipped: bool,
        loads: Tensor | None = None,
    ) -> Stepped:  # fmt: skip
        seconds = time.perf_counter() - begin
        self.progress.seconds += seconds
        speed = parts.tokens / seconds
        shared = shares(loads).tolist() if loads is not None and loads.numel() else []
        return Stepped(
            step=number,
            tokens=self.progress.tokens,
            loss=parts.main,
            mtp=parts.mtp,
            balance=parts.balance,
            lr=self.recipe.optimizer.lr * self.plan.learning_rate(self.recipe.schedule, number),
            grad_norm=norm,
            sequences=count,
            seconds=seconds,
            tokens_per_second=speed,
            share_of_peak=speed * self.flops_per_token / self.peak_flops if self.peak_flops else 0.0,
            memory_mb=highest_memory_mb(self.world.device),
            loads=tuple(tuple(round(value, 6) for value in layer) for layer in shared),
            skipped=skipped,
        )


@dataclass(frozen=True, slots=True)
class _Parts:
    """The losses of a step over all processes, and its tokens."""

    total: float
    main: float
    balance: float
    mtp: tuple[float, ...]
    tokens: int

    @classmethod
    def nothing(cls, depth: int) -> _Parts:
        return cls(math.nan, math.nan, math.nan, (math.nan,) * depth, 0)
