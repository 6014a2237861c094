"""The one object that a training loop holds: all parameters, whoever updates them.

optimizer = build(model, recipe.optimizer)
losses.total.backward()
norm = optimizer.clip(recipe.optimizer.clip)
optimizer.step(learning_rate(recipe.schedule, step, steps))
optimizer.zero_grad()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from deepwell.errors import TrainingError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training.optimizers.adamw import AdamW
from deepwell.lm.training.optimizers.groups import Slot, as_dtensor, slots
from deepwell.lm.training.optimizers.muon import Muon
from deepwell.lm.training.recipe import OptimizerSection

_NORM_CHUNK = 2**16
"""A norm sums this many squares in float32 before it sums the sums: the sum of 30 million in one go is off by 0.1 %."""


class Optimizer:
    """AdamW for some parameters, Muon for the others. See ``build``."""

    def __init__(self, found: list[Slot], section: OptimizerSection) -> None:
        self.section = section
        self.slots = found
        self.steps = 0
        """Steps taken; what bias correction counts by."""
        moments, decay = section.moments, section.weight_decay
        self._adamw = AdamW([s for s in found if s.method == "adamw"], section.betas, section.eps, decay, moments)
        self._muon = Muon([s for s in found if s.method == "muon"], section.muon_momentum, decay, moments)

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """Update all parameters that have a gradient, at ``factor`` of the section's learning rates."""
        self.steps += 1
        self._adamw.step(self.section.lr * factor, self.steps)
        self._muon.step(self.section.muon_lr * factor)

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Scale all gradients so that their norm together is ``limit`` at most; 0: measure only.

        A norm that is not finite scales nothing: whether to skip the step is the caller's decision.

        Returns:
            The norm before scaling, over all processes where gradients are spread: float32 scalar (float64 where all
            gradients are).
        """
        norm = self._norm()
        gradients = [piece for slot in self.slots for piece in slot.gradients() if piece.numel()]
        if limit and gradients:
            factor = torch.where(norm.isfinite(), (limit / norm).clamp(max=1.0), 1.0)
            if norm.device.type != "cpu" or factor < 1:
                torch._foreach_mul_(gradients, factor)
        return norm

    def zero_grad(self) -> None:
        """Forget all gradients. The next backward pass makes new ones, which costs less than adding to zeros."""
        for slot in self.slots:
            slot.parameter.grad = None

    def _norm(self) -> Tensor:
        """Of all gradients together. Those that are spread over processes are summed once for each way of spreading."""
        device = self.slots[0].parameter.device
        own: list[Tensor] = []
        spread: dict[object, tuple[Slot, list[Tensor]]] = {}
        for slot in self.slots:
            grad = slot.parameter.grad
            if grad is None:
                continue
            dtensor, pieces = as_dtensor(grad), slot.gradients()
            if dtensor is None:
                own += pieces
            else:
                spread.setdefault((dtensor.device_mesh, dtensor.placements), (slot, []))[1].extend(pieces)
        sums = [_sum_of_squares(own, device)] if own or not spread else []
        for slot, pieces in spread.values():
            sums.append(_over_processes(_sum_of_squares(pieces, device), slot))
        return torch.stack(sums).sum().sqrt()

    def state_dict(self) -> dict[str, Tensor | int]:
        """The moments as they are (not copies) by name, such as ``adamw.exp_avg.norm.weight``, and ``step``.

        Moments have the parameter's shape, or rows for the chosen experts alone; they are DTensors where it is one.
        """
        return {"step": self.steps, **{key: slot.shown(state) for key, slot, state in self._states()}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from what ``state_dict`` gave. Tensors may be whole where the moments are spread over processes.

        Raises:
            TrainingError: Something is missing, too much, or of another shape. The message names the parameter.
        """
        states = self._states()
        hint = "go on with the recipe that the run began with, or begin a new run"
        absent = [f"{key} of {slot.name}" for key, slot, _ in states if key not in state]
        unknown = sorted(set(state) - {key for key, _, _ in states} - {"step"})
        if absent or unknown:
            problem = f"lacks {absent[0]}" if absent else f"holds {unknown[0]}, which is not trained here"
            raise TrainingError(f"the saved state of the optimizer does not fit: it {problem}", hint=hint)
        steps = state.get("step")
        if not isinstance(steps, int):
            raise TrainingError("the saved state of the optimizer does not fit: it lacks its step", hint=hint)
        for key, slot, tensor in states:
            slot.take(tensor, state[key], key)
        self.steps = steps

    def _states(self) -> list[tuple[str, Slot, Tensor]]:
        return [*self._adamw.state(), *self._muon.state()]


def build(
    model: Transformer, section: OptimizerSection, *, chosen_experts: Mapping[int, Sequence[int]] | None = None
) -> Optimizer:
    """An optimizer for every parameter of ``model`` that takes gradients. Build it after weights are spread.

    Args:
        model: Its weights may be float32 (as in training), float64 or bf16.
        section: Which optimizer, with what rates.
        chosen_experts: Layers, in the order of ``model.gates()``, to the experts that alone are tuned in them.

    Raises:
        UsageError: Nothing takes gradients, or a layer or expert is named that the model does not have.
    """
    return Optimizer(slots(model, section.name, chosen_experts), section)


def _sum_of_squares(pieces: list[Tensor], device: torch.device) -> Tensor:
    """Scalar, float32 or wider."""
    chunks = [chunk for piece in pieces if piece.numel() for chunk in piece.reshape(-1).split(_NORM_CHUNK)]
    if not chunks:
        return torch.zeros((), device=device)
    if device.type != "cpu":  # sums there are trees already
        chunks = [piece for piece in pieces if piece.numel()]
    wide = torch.float64 if all(chunk.dtype is torch.float64 for chunk in chunks) else torch.float32
    norms = [norm.to(wide) for norm in torch._foreach_norm([c if c.dtype is wide else c.to(wide) for c in chunks])]
    return torch.stack(norms).square().sum()


def _over_processes(total: Tensor, slot: Slot) -> Tensor:
    """Sum what each process found in its part; what several hold alike counts once."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    grad = as_dtensor(slot.parameter.grad if slot.parameter.grad is not None else slot.parameter)
    assert grad is not None
    kinds = [Replicate() if placement.is_replicate() else Partial() for placement in grad.placements]
    return DTensor.from_local(total, grad.device_mesh, kinds, run_check=False).full_tensor()
