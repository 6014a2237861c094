"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) whose moments may be kept in bf16 (V3 section 3.3).

torch has a fused kernel, which reads and writes everything once; memory is what it waits for. It wants moments in the
dtype of the parameters. So bf16 moments, of half the size, are widened a chunk at a time into scratch memory that stays
in the processor's cache, updated there by the same kernel in float32, and rounded to nearest on their way back.
``benchmarks/optimizer.py`` measures this beside torch's own.

A second moment in bf16 has 8 bits. With V3's beta2 of 0.95 it moves by up to a twentieth a step, which these can
say; with 0.999 most of its steps would be rounded away, and ``moments = "f32"`` is the right choice.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deepwell.lm.training.optimizers.groups import Slot

CPU_CHUNK = 2**18
"""Values updated at once where something is widened: two moments of 1 MB, found by trying sizes from 2^14 to 2^22."""
OTHER_CHUNK = 2**26
"""On a GPU: few launches, and scratch memory of 256 MB a moment."""


class AdamW:
    """Both moments of each parameter, and the step that uses them."""

    def __init__(
        self, slots: list[Slot], betas: tuple[float, float], eps: float, weight_decay: float,
        moments: Literal["bf16", "f32"],
    ) -> None:  # fmt: skip
        self.slots, self.betas, self.eps, self.weight_decay = slots, betas, eps, weight_decay
        self.exp_avg = [slot.new_state(moments) for slot in slots]
        self.exp_avg_sq = [slot.new_state(moments) for slot in slots]

    def step(self, lr: float, count: int) -> None:
        """Update every parameter that has a gradient; ``count`` is the number of this step, 1 for the first.

        ``p *= 1 - lr * decay``; ``p -= lr * (m / (1 - b1^count)) / (sqrt(v / (1 - b2^count)) + eps)``.
        """
        plain: dict[tuple[torch.device, torch.dtype, bool], list[tuple[Tensor, ...]]] = {}
        for slot, exp_avg, exp_avg_sq in zip(self.slots, self.exp_avg, self.exp_avg_sq, strict=True):
            if slot.parameter.grad is None:
                continue
            gradients = [gradient.contiguous() for gradient in slot.gradients()]  # the kernel looks at no strides
            states = map(slot.state_pieces, (exp_avg, exp_avg_sq))
            for piece in zip(slot.pieces(slot.parameter), gradients, *states, strict=True):
                value = piece[0]
                if not value.numel():  # a process may hold nothing of a small parameter
                    continue
                if value.dtype in (torch.float32, torch.float64) and all(part.dtype is value.dtype for part in piece):
                    plain.setdefault((value.device, value.dtype, slot.decay), []).append(piece)
                else:
                    self._step_in_chunks(piece, lr, count, slot.decay)
        for (_, _, decay), pieces in plain.items():
            self._fused(pieces, lr, count, decay)

    def _step_in_chunks(self, piece: tuple[Tensor, ...], lr: float, count: int, decay: bool) -> None:
        """One piece, in which some of parameter, gradient and moments are narrower than the arithmetic."""
        wide = torch.promote_types(piece[0].dtype, torch.float32)
        chunk = CPU_CHUNK if piece[0].device.type == "cpu" else OTHER_CHUNK
        flat = [part.reshape(-1) for part in piece]
        size = min(chunk, flat[0].numel())
        scratch = [part if part.dtype is wide else part.new_empty(size, dtype=wide) for part in flat]
        for begin in range(0, flat[0].numel(), chunk):
            narrow = [part[begin : begin + chunk] for part in flat]
            length = narrow[0].numel()
            widened = tuple(
                part if part.dtype is wide else room[:length].copy_(part)
                for part, room in zip(narrow, scratch, strict=True)
            )
            self._fused([widened], lr, count, decay)
            for place in (0, 2, 3):
                if widened[place] is not narrow[place]:
                    narrow[place].copy_(widened[place])

    def _fused(self, pieces: list[tuple[Tensor, ...]], lr: float, count: int, decay: bool) -> None:
        values, gradients, exp_avgs, exp_avg_sqs = (list(parts) for parts in zip(*pieces, strict=True))
        number = torch.tensor(float(count), device=values[0].device)
        torch._fused_adamw_(
            values, gradients, exp_avgs, exp_avg_sqs, [], [number] * len(values),
            lr=lr, beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
            weight_decay=self.weight_decay if decay else 0.0, amsgrad=False, maximize=False,
        )  # fmt: skip

    def state(self) -> list[tuple[str, Slot, Tensor]]:
        """Everything that a checkpoint needs, under its name."""
        return [
            (f"adamw.{kind}.{slot.name}", slot, state)
            for kind, states in (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq))
            for slot, state in zip(self.slots, states, strict=True)
        ]
