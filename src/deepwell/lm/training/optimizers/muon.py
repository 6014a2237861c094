"""Muon: momentum whose matrices are orthogonalised (Keller Jordan, https://kellerjordan.github.io/posts/muon/).

A gradient matrix has a few large singular values and many small ones; a step along it moves few directions. Muon takes
the nearest matrix whose singular values are all about 1, found by five Newton-Schulz iterations of a quintic: products
alone, which do well in bf16. Scaled to ``0.2 * sqrt(max(rows, columns))`` such an update has the size (RMS of its
values) of AdamW's, so that weight decay can stay as it was (Moonlight, arXiv 2502.16982, section 2.2).

Experts are stacked in one tensor and are matrices of their own; ``gate_up_proj`` holds two for each.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from deepwell.lm.model.products import cpu_multiplies
from deepwell.lm.training.optimizers.groups import Slot, as_dtensor, local_part

QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c of ``a X + b X X^T X + c (X X^T)^2 X``: steepest at 0, and no further from 1 than about 0.3."""
STEPS = 5
SCALE = 0.2
_BATCH = 2**24
"""Values of experts that are orthogonalised at once."""


def orthogonalised(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """Matrices with the singular vectors of these, and singular values of about 1 (between 0.6 and 1.3).

    [..., rows, columns] of any floating dtype -> the same shape in bf16 where this device multiplies that, else
    float32. A matrix of zeros stays one; singular values below a thousandth of the norm come out smaller.
    """
    stack = matrices.reshape(-1, *matrices.shape[-2:]).to(torch.promote_types(matrices.dtype, torch.float32))
    if is_tall := stack.shape[1] > stack.shape[2]:
        stack = stack.mT
    norms = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True)
    narrow = matrices.device.type != "cpu" or cpu_multiplies(torch.bfloat16)
    x = (stack / (norms + 1e-30)).to(torch.bfloat16 if narrow else torch.float32)
    a, b, c = QUINTIC
    for _ in range(steps):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    found: Tensor = x.mT if is_tall else x
    return found.reshape(matrices.shape)


class Muon:
    """The momentum of each matrix, and the step that uses it."""

    def __init__(
        self, slots: list[Slot], momentum: float, weight_decay: float, moments: Literal["bf16", "f32"]
    ) -> None:
        self.slots, self.momentum, self.weight_decay = slots, momentum, weight_decay
        self.buffers = [slot.new_state(moments) for slot in slots]

    def step(self, lr: float) -> None:
        """Update every matrix that has a gradient.

        ``m = mu m + (1 - mu) g``; ``O = orthogonalised(mu m + (1 - mu) g)`` (Nesterov);
        ``p -= lr * (0.2 sqrt(max(rows, columns)) O + decay p)``.
        """
        for slot, buffer in zip(self.slots, self.buffers, strict=True):
            if slot.parameter.grad is None:
                continue
            parts = zip(slot.pieces(slot.parameter), slot.gradients(), slot.state_pieces(buffer), strict=True)
            for value, gradient, momentum in parts:
                self._step_piece(slot, value, gradient, momentum, lr)

    def _step_piece(self, slot: Slot, value: Tensor, gradient: Tensor, momentum: Tensor, lr: float) -> None:
        if value.dim() == 2:
            update = self._nesterov(gradient, momentum)
            self._apply(value, self._whole_orthogonalised(slot, update), lr, slot.decay)
            return
        halves = 2 if slot.name.endswith("gate_up_proj") else 1
        rows = value.shape[1] // halves
        each = max(1, _BATCH // max(1, value[:1].numel()))
        for begin in range(0, value.shape[0], each):
            few = slice(begin, begin + each)
            update = self._nesterov(gradient[few], momentum[few]).view(-1, rows, value.shape[2])
            self._apply(value[few].view(update.shape), orthogonalised(update), lr, slot.decay)

    def _nesterov(self, gradient: Tensor, momentum: Tensor) -> Tensor:
        """Move the momentum towards the gradient; what is to be orthogonalised, in float32 or wider."""
        wide = torch.promote_types(gradient.dtype, torch.float32)
        gradient = gradient.to(wide)
        moved = torch.lerp(momentum.to(wide), gradient, 1 - self.momentum)
        momentum.copy_(moved)
        return moved.lerp_(gradient, 1 - self.momentum)

    def _apply(self, value: Tensor, direction: Tensor, lr: float, decay: bool) -> None:
        if decay:
            value.mul_(1 - lr * self.weight_decay)
        value.add_(direction.to(value.dtype), alpha=-lr * SCALE * math.sqrt(max(direction.shape[-2:])))

    @staticmethod
    def _whole_orthogonalised(slot: Slot, update: Tensor) -> Tensor:
        """Of a matrix that is spread over processes, each makes the whole and keeps its own part."""
        spread = as_dtensor(slot.parameter)
        if spread is None:
            return orthogonalised(update)
        from torch.distributed.tensor import DTensor, Replicate

        whole = as_dtensor(slot.shown(update))
        assert whole is not None
        found = orthogonalised(whole.full_tensor())
        everywhere = DTensor.from_local(
            found, spread.device_mesh, [Replicate()] * spread.device_mesh.ndim, run_check=False
        )
        return local_part(everywhere.redistribute(placements=spread.placements))

    def state(self) -> list[tuple[str, Slot, Tensor]]:
        """Everything that a checkpoint needs, under its name."""
        pairs = zip(self.slots, self.buffers, strict=True)
        return [(f"muon.momentum.{slot.name}", slot, buffer) for slot, buffer in pairs]
