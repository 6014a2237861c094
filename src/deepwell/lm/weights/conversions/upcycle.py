"""Copies of a dense feed-forward layer as experts, exact at the start (sparse upcycling, arXiv 2212.05055).

Every expert is the dense layer, and the weights of those that a token takes sum to 1; so it does not matter yet which
it takes, and the network computes what it did. Training then makes the experts differ: the gate starts small and
random, so that each meets other tokens. A little noise on the copies is an option.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.conversions.rebuild import EVERY_LAYER_ONE_GROUP, rebuilt

__all__ = ["upcycle"]


@torch.no_grad()
def upcycle(model: Transformer, *, experts: int, top_k: int, noise: float = 0.0, seed: int = 0) -> Transformer:
    """``experts`` copies of each dense layer, of which a token takes ``top_k``.

    Args:
        model: All its layers are dense and without biases. It keeps its weights.
        experts: Copies.
        top_k: Of them that a token takes.
        noise: Standard deviation of what is added to each copy's matrices, as a share of their own; 0 is exact.
        seed: Of the gate and the noise.

    Raises:
        UsageError: The network has experts already or biases, or a number is out of its range.
    """
    config = model.config
    if config.n_routed_experts:
        raise UsageError("this network has experts already", hint="upcycle a network whose layers are dense")
    if config.mlp_bias:
        raise UsageError("the feed-forward layers of this network have biases, which experts have not")
    if experts < 2 or not 1 <= top_k <= experts:
        raise UsageError(f"experts ({experts}) is at least 2, and top_k ({top_k}) at least 1 and at most as many")
    if noise < 0:
        raise UsageError(f"noise is {noise}; it is a standard deviation")
    new = config.replace(
        moe_intermediate_size=config.intermediate_size,
        n_routed_experts=experts,
        n_shared_experts=0,
        num_experts_per_tok=top_k,
        norm_topk_prob=True,
        weigh_experts=True,
        **EVERY_LAYER_ONE_GROUP,
    )
    generator = torch.Generator(device=model.device).manual_seed(seed)

    def copies(tensor: Tensor) -> Tensor:
        stack = tensor.expand(experts, *tensor.shape)
        if noise:
            drawn = torch.randn(stack.shape, generator=generator, device=tensor.device, dtype=torch.float32)
            stack = stack + (noise * tensor.float().std() * drawn).to(tensor.dtype)
        return stack

    state = model.state_dict()
    changes: dict[str, Tensor | None] = {}
    for name in [name for name in state if name.endswith(".mlp.gate_proj.weight")]:
        place = name.removesuffix("gate_proj.weight")
        gate, up, down = (f"{place}{part}_proj.weight" for part in ("gate", "up", "down"))
        changes[f"{place}experts.gate_up_proj"] = copies(torch.cat([state[gate], state[up]]))
        changes[f"{place}experts.down_proj"] = copies(state[down])
        small = torch.empty(experts, config.hidden_size, device=model.device)
        changes[f"{place}gate.weight"] = small.normal_(0.0, config.initializer_range, generator=generator)
        changes[f"{place}gate.e_score_correction_bias"] = torch.zeros(experts, device=model.device)
        changes |= dict.fromkeys((gate, up, down))
    return rebuilt(model, new, changes)
