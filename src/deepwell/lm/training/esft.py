"""Tuning the experts that a task uses and nothing else (ESFT, arXiv 2407.01906).

Experts specialise, so a task goes through few of them. A sample of its data is run through the network; experts are
ranked in each layer by their gate scores or by the tokens that they got; the best are chosen until their scores sum to
a share (0.1 to 0.2 in the paper); only they are updated. Router, attention and all other experts stay what they were.

    scores = rank_experts(model, batches, by="gate")        # [layers with experts, E], each row sums to 1
    chosen = choose_experts(scores, share=0.2)              # {layer: experts}
    restrict(model, chosen, tune_shared=False, tune_rest=False)
    optimizer = build(model, section, chosen_experts=chosen)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from deepwell.errors import UsageError
from deepwell.lm.model.loss import IGNORED
from deepwell.lm.model.moe import MixtureOfExperts, Routing
from deepwell.lm.model.transformer import Transformer


class Rows(Protocol):
    """Rows of the task's data, as training reads them: all [B, T] int64."""

    @property
    def tokens(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor:
        """-100 where nothing is predicted. What stands behind a row's last prediction is padding, and not counted."""

    @property
    def documents(self) -> Tensor | None: ...


@torch.no_grad()
def rank_experts(model: Transformer, batches: Iterable[Rows], by: Literal["gate", "token"] = "gate") -> Tensor:
    """How much each expert has to do with these rows (section 3.2 of the paper).

    Args:
        model: It is evaluated, and left in the mode in which it was. Loads and biases are not moved.
        batches: The sample.
        by: "gate": the mean of the gate's weights, 0 where an expert is not chosen; "token": the share of choices.

    Returns:
        float64 [G, E] on the CPU, layers in the order of ``model.gates()``; each row sums to 1, or to 0 where nothing
        came by (a module of multi-token prediction, of rows too short for it).

    Raises:
        UsageError: The network has no experts, or there is no batch.
    """
    gates = _gates(model)
    scores = torch.zeros(len(gates), model.config.n_routed_experts, dtype=torch.float64, device=model.device)
    wanted = torch.empty(0)

    def count(place: int) -> Callable[[nn.Module, Any, Routing], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], routing: Routing) -> None:
            counted = wanted[:, : inputs[0].shape[1]].reshape(-1, 1) & (routing.experts >= 0)
            weights = routing.weights if by == "gate" else torch.ones_like(routing.weights)
            scores[place].index_add_(0, routing.experts[counted], weights[counted].double())

        return hook

    was_training = model.training
    hooks = [gate.register_forward_hook(count(place)) for place, gate in enumerate(gates)]
    seen = False
    try:
        model.eval()
        for batch in batches:
            seen = True
            wanted = _counted(batch.labels)
            if len(model.mtp):  # only the loss runs the modules of multi-token prediction
                model.loss(batch.tokens, batch.labels, documents=batch.documents)
            else:
                model.hidden(batch.tokens, documents=batch.documents)
    finally:
        for handle in hooks:
            handle.remove()
        model.train(was_training)
    if not seen:
        raise UsageError("there are no rows to rank experts by")
    return (scores / scores.sum(-1, keepdim=True).clamp_min(1e-300)).cpu()


def choose_experts(scores: Tensor, share: float) -> dict[int, list[int]]:
    """The fewest experts of each layer whose scores sum to ``share`` at least: {layer: experts, ascending}.

    ``scores`` [G, E] as ``rank_experts`` gives them. Of equal experts the first is taken. A layer without scores has
    an empty list.

    Raises:
        UsageError: ``share`` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UsageError(f"share is {share}; it lies above 0 and up to 1")
    chosen: dict[int, list[int]] = {}
    for layer, row in enumerate(scores.double()):
        best, order = row.sort(descending=True, stable=True)
        short = best.cumsum(0) < share * row.sum() - 1e-6  # sums that are equal but for rounding are equal
        count = int(short.sum()) + 1 if row.sum() > 0 else 0
        chosen[layer] = sorted(order[:count].tolist())
    return chosen


def restrict(
    model: Transformer, chosen: Mapping[int, Sequence[int]], *, tune_shared: bool = False, tune_rest: bool = False
) -> None:
    """Set which parameters take gradients: stacks of experts in layers with chosen ones, and what else is asked for.

    Within a stack it is the optimizer that leaves the others alone: give it the same ``chosen``. The router is never
    tuned.

    Args:
        model: Changed in place.
        chosen: As ``choose_experts`` gives them.
        tune_shared: Also shared experts.
        tune_rest: Also attention, norms, embedding, head and dense layers.

    Raises:
        UsageError: The network has no experts, or nothing is left to be tuned.
    """
    _gates(model)
    model.requires_grad_(tune_rest)
    layers = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    for place, layer in enumerate(layers):
        layer.gate.requires_grad_(False)
        layer.experts.requires_grad_(bool(chosen.get(place)))
        if layer.shared_experts is not None:
            layer.shared_experts.requires_grad_(tune_shared)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("no expert is chosen, so there is nothing to tune")


def _gates(model: Transformer) -> list[Any]:
    gates = model.gates()
    if not gates:
        raise UsageError(
            f"{model.config.name or 'the network'} has no experts to choose from",
            hint='set model.tune to "lora" or "full"',
        )
    return list(gates)


def _counted(labels: Tensor) -> Tensor:
    """Which places come before the last prediction of their row, or make it: [B, T] bool. The others are padding."""
    predicted = (labels != IGNORED).flip(-1)
    return predicted.cummax(-1).values.flip(-1) if labels.numel() else predicted
