"""Mixture of experts (DeepSeekMoE; V3 section 2.1.2; V2 section 2.2).

The gate scores all experts for a token in float32; groups of experts limit the choice; a balancing bias moves the
choice and never the weights. Chosen (token, expert) pairs are sorted by expert, so that each matrix of all experts is
one grouped product, and summed back.

Shapes: N tokens, E experts, K experts a token takes, I width of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.products import Linear, grouped_linear, wide_linear
from deepwell.lm.model.rowwise import swiglu


class MLP(nn.Module):
    """A dense SwiGLU feed-forward layer; also the shared experts, which are one of their joint width."""

    def __init__(
        self,
        hidden: int,
        width: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, width, bias=bias, device=device, dtype=dtype)
        self.up_proj = Linear(hidden, width, bias=bias, device=device, dtype=dtype)
        self.down_proj = Linear(width, hidden, bias=bias, device=device, dtype=dtype)

    activation: Callable[[Tensor, Tensor], Tensor] = staticmethod(swiglu)
    """``swiglu``, or one that keeps less for the backward pass (training in FP8)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Routing:
    """Where tokens go.

    ``experts`` [N, K] int64, -1 where dynamic gating took fewer; ``weights`` [N, K] float32, 0 there; ``balance`` the
    sequence-wise balance loss times its weight, or None outside training.
    """

    experts: Tensor
    weights: Tensor
    balance: Tensor | None


class Gate(nn.Module):
    """Chooses experts and weighs them. Product, scores and bias are float32 whatever the network's dtype."""

    e_score_correction_bias: Tensor
    expert_load: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        experts = config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(experts, config.hidden_size, device=device, dtype=dtype))
        if config.topk_method == "noaux_tc":
            bias = torch.zeros(experts, device=device, dtype=torch.float32)
            self.register_buffer("e_score_correction_bias", bias)
        load = torch.zeros(experts, device=device, dtype=torch.int64)
        self.register_buffer("expert_load", load, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gate:
        """Moves with the network, but the bias keeps float32: ``.bfloat16()`` must not round it."""
        bias = self._buffers.get("e_score_correction_bias")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if bias is not None:
            moved = self.e_score_correction_bias
            self.e_score_correction_bias = moved.float() if bias.is_meta else bias.to(moved.device)
        return self

    def forward(self, x: Tensor, given: Tensor | None = None) -> Routing:
        """``x`` [B, T, hidden] -> Routing over N = B*T tokens; ``given`` [N, K]: experts to take, not to choose."""
        flat = x.flatten(0, -2)
        logits = wide_linear(flat, self.weight)
        scores = logits.sigmoid() if self.config.scoring_func == "sigmoid" else logits.softmax(-1)
        experts = self.choose(scores.detach()) if given is None else given
        weights = self.weigh(scores, experts)
        balance = None
        if self.training and torch.is_grad_enabled():
            self._count(experts)
            if self.config.aux_loss_alpha:
                balance = self._balance(scores.view(*x.shape[:-1], -1), experts.view(*x.shape[:-1], -1))
        return Routing(experts, weights, balance)

    def choose(self, scores: Tensor) -> Tensor:
        """The experts of each token: ``scores`` [N, E] -> [N, K] int64, best first, -1 where fewer are taken."""
        config = self.config
        biased = scores + self.e_score_correction_bias if config.topk_method == "noaux_tc" else scores
        if config.n_group > 1 and config.topk_method != "greedy":
            grouped = biased.unflatten(-1, (config.n_group, -1))
            if config.topk_method == "noaux_tc":
                group_scores = grouped.topk(2, dim=-1).values.sum(-1)
            else:
                group_scores = grouped.amax(-1)
            kept = group_scores.topk(config.topk_group, dim=-1).indices
            dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, kept, False)
            biased = grouped.masked_fill(dropped[..., None], -torch.inf).flatten(-2)
        gating = config.dynamic_gating
        if gating is None:
            return biased.topk(config.num_experts_per_tok, dim=-1).indices
        experts = biased.topk(gating.maximum, dim=-1).indices
        mass = scores.masked_fill(biased == -torch.inf, 0)
        share = mass.gather(1, experts).cumsum(-1) / mass.sum(-1, keepdim=True)
        enough = F.pad(share[:, :-1] >= gating.share, (1, 0))  # whether the ones before reach the share already
        enough[:, : gating.minimum] = False
        return experts.masked_fill(enough, -1)

    def weigh(self, scores: Tensor, experts: Tensor) -> Tensor:
        """The weights of the chosen experts, from scores without the bias: [N, K] in the dtype of ``scores``."""
        config = self.config
        weights = scores.gather(1, experts.clamp_min(0))
        if not config.weigh_experts:
            weights = torch.ones_like(weights)
        weights = weights.masked_fill(experts < 0, 0)
        if config.norm_topk_prob and config.weigh_experts:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * config.routed_scaling_factor

    def _count(self, experts: Tensor) -> None:
        """Add to the load, unless this is a checkpointed layer's second forward pass, inside the backward pass."""
        if torch._C._current_graph_task_id() == -1:
            taken = experts[experts >= 0].flatten()
            self.expert_load += torch.bincount(taken, minlength=self.config.n_routed_experts)

    def _balance(self, scores: Tensor, experts: Tensor) -> Tensor:
        """Sequence-wise balance loss (V3 equations 17 to 20): ``scores`` [B, T, E], ``experts`` [B, T, K]."""
        config = self.config
        chosen = torch.zeros_like(scores).scatter_add_(-1, experts.clamp_min(0), (experts >= 0).to(scores.dtype))
        tokens = scores.shape[-2]
        fraction = chosen.sum(-2) * (config.n_routed_experts / (config.num_experts_per_tok * tokens))
        probability = (scores / scores.sum(-1, keepdim=True)).mean(-2)
        return config.aux_loss_alpha * (fraction * probability).sum(-1).mean()


class Experts(nn.Module):
    """All routed experts of a layer, their matrices stacked.

    Training puts other functions in the place of ``product`` and ``activation`` to compute in FP8.
    """

    product: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(grouped_linear)
    activation: Callable[[Tensor, Tensor], Tensor] = staticmethod(swiglu)

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        count, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden, device=device, dtype=dtype))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width, device=device, dtype=dtype))

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor, *, partial: bool = False) -> Tensor:
        """The weighted sum of each token's experts, [N, hidden].

        ``x`` [N, hidden], ``experts`` and ``weights`` [N, K]; ``partial``: some of ``experts`` may be -1. Finding out
        how many would make a GPU wait, so it is asked only then.
        """
        each = experts.shape[1]
        of_pair = experts.flatten()
        order = of_pair.argsort(stable=True)
        load = of_pair.new_zeros(self.down_proj.shape[0] + 1)  # bincount would make a GPU wait
        load.scatter_add_(0, of_pair + 1, torch.ones_like(of_pair))
        offsets = load[1:].cumsum(0).to(torch.int32)
        untaken = int(load[0]) if partial else 0
        if untaken:
            order = order[untaken:]
            token = order // each
            rows = self._run(x.index_select(0, token), weights.flatten()[order], offsets)
            return torch.zeros_like(x).index_add(0, token, rows)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
        token = order // each
        sorted_rows = _Dispatch.apply(x, token, back, each)  # type: ignore[no-untyped-call]
        rows = self._run(sorted_rows, weights.flatten()[order], offsets)
        return _Combine.apply(rows, token, back, each)  # type: ignore[no-any-return,no-untyped-call]

    def _run(self, rows: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        """Sorted rows through their experts, weighted where they are narrowest: before the last product."""
        gate_up, down = self.matrices()
        gate, up = self.product(rows, gate_up, offsets).chunk(2, dim=-1)
        return self.product(self.activation(gate, up) * weights[:, None].to(rows.dtype), down, offsets)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """The matrices that are here: of all experts, or of those of this process (``deepwell.lm.parallel``)."""
        return self.gate_up_proj, self.down_proj


class _Dispatch(torch.autograd.Function):
    """Tokens to sorted pairs. Backward is a gather and a sum over K: no scattered addition, so always the same bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, back: Tensor, each: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.each = each
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return grads[0].index_select(0, back).unflatten(0, (-1, ctx.each)).sum(1), None, None, None


class _Combine(torch.autograd.Function):
    """Sorted pairs to tokens, summed: what ``_Dispatch`` does backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token: Tensor, back: Tensor, each: int) -> Tensor:
        ctx.save_for_backward(token)
        pairs: Tensor = rows.index_select(0, back).unflatten(0, (-1, each))
        return pairs.sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (token,) = ctx.saved_tensors
        return grads[0].index_select(0, token), None, None, None


class MixtureOfExperts(nn.Module):
    """Shared experts for every token, and those that the gate chooses for it."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate = Gate(config, device=device, dtype=dtype)
        self.experts = Experts(config, device=device, dtype=dtype)
        self.shared_experts = None
        if config.n_shared_experts:
            width = config.n_shared_experts * config.moe_intermediate_size
            self.shared_experts = MLP(config.hidden_size, width, device=device, dtype=dtype)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Routing]:
        """``x`` [B, T, hidden]; ``given`` [B*T, K] experts to take -> the same shape, and where the tokens went."""
        routing = self.gate(x, given)
        partial = given is not None or self.gate.config.dynamic_gating is not None
        out = self.experts(x.flatten(0, -2), routing.experts, routing.weights, partial=partial).view(x.shape)
        if self.shared_experts is not None:
            out = out + self.shared_experts(x)
        return out, routing
