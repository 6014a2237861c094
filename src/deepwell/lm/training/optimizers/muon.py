"""Muon: momentum whose matrices are orthogonalised (Keller Jordan, https://kellerjordan.github.io/posts/muon/).

A gradient matrix has a few large singular values and many small ones; a step along it moves few directions. Muon takes
the nearest matrix whose singular values are all about 1, found by five Newton-Schulz iterations of a quintic: products
alone, which do well in bf16. Scaled to ``0.2 * sqrt(max(rows, columns))`` such an update has the size (RMS of its
values) of AdamW's, so that weight decay can stay as it was (Moonlight, arXiv 2502.16982, section 2.2).

Experts are stacked in one tensor and are matrices of their own; ``gate_up_proj`` holds two for each.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from deepwell.lm.model.products import cpu_multiplies
from deepwell.lm.training.optimizers.groups import Slot, as_dtensor

if TYPE_CHECKING:
    from torch.distributed.tensor.placement_types import Placement

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
        halves = 2 if slot.name.endswith("gate_up_proj") else 1
        rows, columns = slot.parameter.shape[-2] // halves, slot.parameter.shape[-1]
        alpha = -lr * SCALE * math.sqrt(max(rows, columns))
        kept = 1 - lr * self.weight_decay if slot.decay else 1.0
        if _splits_matrices(slot):
            direction = _put_together(slot, self._nesterov(gradient, momentum), rows)
            value.mul_(kept).add_(direction.to(value.dtype), alpha=alpha)
            return
        stacks = [part if part.dim() > 2 else part[None] for part in (value, gradient, momentum)]
        each = max(1, _BATCH // max(1, slot.parameter.shape[-2] * columns))
        for few in zip(*(stack.split(each) for stack in stacks), strict=True):
            direction = _orthogonalised_by(rows, self._nesterov(*few[1:]))
            few[0].mul_(kept).add_(direction.to(value.dtype), alpha=alpha)

    def _nesterov(self, gradient: Tensor, momentum: Tensor) -> Tensor:
        """Move the momentum towards the gradient; what is to be orthogonalised, in float32 or wider."""
        wide = torch.promote_types(gradient.dtype, torch.float32)
        gradient = gradient.to(wide)
        moved = torch.lerp(momentum.to(wide), gradient, 1 - self.momentum)
        momentum.copy_(moved)
        return moved.lerp_(gradient, 1 - self.momentum)

    def state(self) -> list[tuple[str, Slot, Tensor]]:
        """Everything that a checkpoint needs, under its name."""
        pairs = zip(self.slots, self.buffers, strict=True)
        return [(f"muon.momentum.{slot.name}", slot, buffer) for slot, buffer in pairs]


def _orthogonalised_by(rows: int, stack: Tensor) -> Tensor:
    """[..., n * rows, columns], of which each ``rows`` are a matrix -> the same shape."""
    return orthogonalised(stack.reshape(-1, rows, stack.shape[-1])).view(stack.shape)


def _splits_matrices(slot: Slot) -> bool:
    """Whether a process may hold parts of matrices, and not just some experts of a stack."""
    spread = as_dtensor(slot.parameter)
    return spread is not None and any(_splits_a_matrix(kind, spread.dim()) for kind in spread.placements)


def _splits_a_matrix(kind: Placement, dimensions: int) -> bool:
    return kind.is_shard() and not (dimensions > 2 and kind.is_shard(0))


def _put_together(slot: Slot, update: Tensor, rows: int) -> Tensor:
    """Each process gathers the matrices of which it holds parts, orthogonalises them, and keeps its own parts."""
    from torch.distributed.tensor import DTensor, Replicate

    spread, mine = as_dtensor(slot.parameter), as_dtensor(slot.shown(update))
    assert spread is not None and mine is not None
    whole_matrices = [Replicate() if _splits_a_matrix(kind, spread.dim()) else kind for kind in spread.placements]
    gathered = mine.redistribute(placements=whole_matrices)
    found = DTensor.from_local(
        _orthogonalised_by(rows, gathered.to_local()), spread.device_mesh, whole_matrices, run_check=False,
        shape=spread.shape, stride=spread.stride(),
    )  # fmt: skip
    return found.redistribute(placements=spread.placements).to_local()
