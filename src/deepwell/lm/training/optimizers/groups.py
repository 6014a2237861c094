"""Which parameters are updated, how, and which part of each.

Three things are settled by a parameter's name and shape, once:

- *Who updates it.* Muon orthogonalises the matrices inside of layers; the embedding, the head, the router, norms,
  biases and adapters (LoRA) are AdamW's, as in Moonlight (arXiv 2502.16982) and V4.
- *Whether it decays.* Matrices do; norms, biases and the embedding do not, and so neither does a head that is tied to
  it. The router's bias is a buffer and in nobody's hands here.
- *Which rows.* Where only some experts are tuned (ESFT, arXiv 2407.01906), the others of the stack are not touched: no
  step, no decay, no moments, no say in the norm of the gradients.

Everything else works on pieces: contiguous views of parameters, gradients and moments that belong together. Under
FSDP2 these are the local parts of DTensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from deepwell.errors import TrainingError, UsageError
from deepwell.lm.model.moe import MixtureOfExperts
from deepwell.lm.model.transformer import Transformer

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Method = Literal["adamw", "muon"]
Runs = tuple[tuple[int, int], ...]
"""Stretches [begin, end) of the first dimension."""


def as_dtensor(tensor: Tensor) -> DTensor | None:
    """The tensor, if it is spread over processes. Does not import torch.distributed where nothing else did."""
    return cast("DTensor", tensor) if hasattr(tensor, "to_local") else None


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without history."""
    spread = as_dtensor(tensor.detach())
    return tensor.detach() if spread is None else spread.to_local()


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter that is updated."""

    name: str
    parameter: nn.Parameter
    method: Method
    decay: bool
    runs: Runs | None = None
    """Of the first dimension, those that are updated; None: all."""

    @property
    def size(self) -> int:
        """How many values are updated, over all processes."""
        total = self.parameter.numel()
        if self.runs is None:
            return total
        return total // self.parameter.shape[0] * sum(end - begin for begin, end in self.runs)

    def pieces(self, tensor: Tensor) -> list[Tensor]:
        """What is updated of a tensor in the parameter's shape (itself, its gradient), as contiguous views."""
        local = local_part(tensor)
        if self.runs is None:
            return [local]
        return [local[begin:end] for begin, end in self.runs]

    def gradients(self) -> list[Tensor]:
        """Pieces of the gradient; none where there is no gradient."""
        grad = self.parameter.grad
        return [] if grad is None else self.pieces(grad)

    def state_pieces(self, state: Tensor) -> list[Tensor]:
        """What belongs to each of ``pieces`` in a state that holds the updated rows alone, one after the other."""
        if self.runs is None:
            return [state]
        return list(state.split([end - begin for begin, end in self.runs]))

    def new_state(self, moments: Literal["bf16", "f32"]) -> Tensor:
        """Zeros for every updated value, local; float32 means at least that."""
        local = local_part(self.parameter)
        dtype = torch.bfloat16 if moments == "bf16" else torch.promote_types(local.dtype, torch.float32)
        rows = local.shape[:1] if self.runs is None else (sum(end - begin for begin, end in self.runs),)
        return torch.zeros((*rows, *local.shape[1:]), dtype=dtype, device=local.device)

    def shown(self, state: Tensor) -> Tensor:
        """A state as it goes into a checkpoint: spread over processes as its parameter is."""
        spread = as_dtensor(self.parameter)
        if spread is None:
            return state
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            state, spread.device_mesh, spread.placements, run_check=False, shape=spread.shape, stride=spread.stride()
        )

    def take(self, state: Tensor, value: object, key: str) -> None:
        """Fill a state from a checkpoint's tensor: the whole of it, or one spread as ``shown`` spreads it.

        Raises:
            TrainingError: It is no tensor of the state's shape.
        """
        expected = self.shown(state).shape
        if not isinstance(value, Tensor) or value.shape != expected:
            found = f"the shape {list(value.shape)}" if isinstance(value, Tensor) else "no tensor"
            raise TrainingError(
                f"the saved state of {self.name} does not fit: {key} has {found}, and {list(expected)} is needed",
                hint="go on with the recipe that the run began with, or begin a new run",
            )
        spread = as_dtensor(self.parameter)
        if spread is not None and as_dtensor(value) is None:
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value.to(state.device), spread.device_mesh, spread.placements, src_data_rank=None)
        state.copy_(local_part(value))


def slots(model: Transformer, name: Method, chosen_experts: Mapping[int, Sequence[int]] | None = None) -> list[Slot]:
    """Every parameter of a model that takes gradients, and how it is updated.

    Args:
        model: The model.
        name: Of the recipe's optimizer; with "adamw" no parameter is Muon's.
        chosen_experts: For layers in the order of ``model.gates()``, the experts that are tuned. Stacks of experts in
            layers that are not named are left as they are. None: all experts.

    Raises:
        UsageError: Nothing takes gradients, or a layer or expert is named that the model does not have.
    """
    stacks = _expert_stacks(model)
    runs = None if chosen_experts is None else _runs(model, chosen_experts)
    gates = set(model.gates())
    routers = {f"{inner}.weight" for inner, module in model.named_modules() if module in gates}
    found: list[Slot] = []
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kept: Runs | None = None
        if runs is not None and full_name in stacks:
            kept = runs.get(stacks[full_name])
            if not kept:
                continue
            if as_dtensor(parameter) is not None:
                raise UsageError(
                    "single experts are not tuned while weights are spread over processes",
                    hint='set parallel.data = "copy"',
                )
        local = local_part(parameter)
        if not local.is_contiguous():
            raise UsageError(f"{full_name} is not contiguous in memory", hint="make it so before training")
        outer = full_name.startswith(("embed_tokens.", "lm_head.")) or full_name in routers
        adapter = full_name.endswith((".lora_a", ".lora_b"))
        method: Method = name if parameter.dim() > 1 and not outer and not adapter else "adamw"
        decay = parameter.dim() > 1 and not full_name.startswith("embed_tokens.")
        found.append(Slot(full_name, parameter, method, decay, kept))
    if not found:
        raise UsageError("no parameter of the model takes gradients, so there is nothing to train")
    return found


def _expert_stacks(model: Transformer) -> dict[str, int]:
    """Names of the stacked matrices of experts, with the place of their layer in ``model.gates()``."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)]
    return {
        f"{name}.experts.{inner}": place
        for place, (name, module) in enumerate(layers)
        for inner, _ in module.experts.named_parameters()
    }


def _runs(model: Transformer, chosen: Mapping[int, Sequence[int]]) -> dict[int, Runs]:
    """Chosen experts as stretches, so that neighbours are one piece."""
    layers, experts = len(model.gates()), model.config.n_routed_experts
    for layer, members in chosen.items():
        if not 0 <= layer < layers or any(not 0 <= expert < experts for expert in members):
            raise UsageError(
                f"experts {list(members)} of layer {layer} are chosen, and the model has {experts} experts in each of "
                f"{layers} layers"
            )
    found: dict[int, Runs] = {}
    for layer, members in chosen.items():
        ordered = sorted(set(members))
        if ordered:
            begins = [ordered[0], *(after for before, after in pairwise(ordered) if after > before + 1)]
            ends = [*(before + 1 for before, after in pairwise(ordered) if after > before + 1), ordered[-1] + 1]
            found[layer] = tuple(zip(begins, ends, strict=True))
    return found
