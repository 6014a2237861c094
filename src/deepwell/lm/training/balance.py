"""Load of experts, kept even without a loss that fights the main one (V3 section 2.1.2; arXiv 2408.15664).

The gate adds a bias to each expert's score when it chooses, and weighs by scores without it. After every step the bias
of an expert that got more than the mean falls by ``speed``, and that of one that got less rises. The bias is a float32
buffer that no optimizer knows; it is saved with the weights. Loads are those of a whole step, summed over micro-batches
and processes by the caller, and are counted in training alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.transformer import Transformer


@torch.no_grad()
def update_biases(model: Transformer, loads: Tensor, speed: float) -> None:
    """Move the routers' biases against the load of a step, in place.

    Args:
        model: Gates that choose otherwise than by ``noaux_tc`` have no bias and are passed over.
        loads: [G, E], choices that each expert got, layers in the order of ``model.gates()``.
        speed: How far a bias moves; 0: not at all.

    Raises:
        UsageError: Loads of another shape.
    """
    gates = model.gates()
    expected = (len(gates), model.config.n_routed_experts if gates else 0)
    if tuple(loads.shape) != expected and (gates or loads.numel()):
        raise UsageError(f"loads have the shape {list(loads.shape)}, and the model's gates need {list(expected)}")
    if not speed:
        return
    for gate, load in zip(gates, loads, strict=False):
        if gate.config.topk_method == "noaux_tc":
            bias = gate.e_score_correction_bias
            load = load.to(bias.device, torch.float64)  # counts beyond 2^24 are still told apart
            bias.add_((load.mean() - load).sign().to(bias.dtype), alpha=speed)


def shares(loads: Tensor) -> Tensor:
    """The share of its layer's choices that each expert got: [G, E] -> float32 [G, E]; zeros where there were none."""
    total = loads.sum(-1, keepdim=True)
    return loads.float() / total.clamp_min(1)
