"""The network's layers made ready for generation: matrices that read the same input become one.

Nothing is copied for good: the network's own parameters become views into the fused matrices, so memory does not grow
and both see the same weights. What comes out differs from the network's own forward pass by rounding alone. There is
no backward pass: gradients are the caller's to switch off.

Shapes: n tokens of all sequences of a step in one row, h hidden, W width of a cached row, R rank of the latent,
H heads, G rotary keys, N and D the parts of a head without and with rope.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.moe import MLP, MixtureOfExperts
from deepwell.lm.model.products import at_least_float32, linear
from deepwell.lm.model.rowwise import RMSNorm
from deepwell.lm.model.transformer import Block

_HALF = (torch.bfloat16, torch.float16)


def normed(x: Tensor, norm: RMSNorm) -> Tensor:
    """What the norm makes of ``x``; by torch's own kernel where it computes the same.

    On a GPU that kernel also serves halves: it rounds once, behind the weight, and takes the place of six.
    """
    if x.dtype in _HALF and not x.is_cuda:
        return cast(Tensor, norm(x))
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)


def turn_(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rope in place: ``heads`` [n, K, D] by ``cos`` (twice) and ``sin`` (first negative) [n, 1, D], float32."""
    wide = at_least_float32(heads)
    heads.copy_(torch.addcmul(wide * cos, wide.roll(wide.shape[-1] // 2, -1), sin))


class FusedLayer:
    """One layer: what stands before the attention in one product, and what stands behind it."""

    def __init__(self, block: Block, config: ModelConfig) -> None:
        self.layer = block.layer
        self.attention = block.self_attn
        self._config = config
        self._block = block
        first = self.attention.q_proj if config.q_lora_rank is None else self.attention.q_a_proj
        # Rotary keys and, in grouped attention, queries stand side by side, so that one turn does for both.
        self._into = _fused(self.attention.kv_a_proj_with_mqa, cast(nn.Module, first))
        self._gate_up: Callable[[Tensor], Tensor] | None = None
        if isinstance(block.mlp, MLP):
            self._gate_up = _fused(block.mlp.gate_proj, block.mlp.up_proj)

    def into(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` [n, h] -> rows for the cache [n, W], queries without rope [n, H, N] and with it, turned [n, H, D]."""
        config, attention = self._config, self.attention
        width, rank = config.latent_width, config.kv_lora_rank
        out = self._into(normed(x, self._block.input_layernorm))
        if config.is_grouped:
            turn_(out[:, rank:].unflatten(1, (-1, config.qk_rope_head_dim)), cos, sin)
            queries = out[:, width:].unflatten(1, (config.num_attention_heads, config.qk_rope_head_dim))
            return out[:, :width], queries[..., :0], queries
        rows, queries = out[:, :width], out[:, width:]
        if config.latent_norm:
            rows[:, :rank] = normed(rows[:, :rank], attention.kv_a_layernorm)
        turn_(rows[:, rank:].unflatten(1, (config.rope_key_heads, config.qk_rope_head_dim)), cos, sin)
        if config.q_lora_rank is not None:
            if config.latent_norm:
                queries = normed(queries, attention.q_a_layernorm)
            queries = attention.q_b_proj(queries)
        queries = queries.unflatten(1, (config.num_attention_heads, config.qk_head_dim))
        without, turned = queries.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        turn_(turned, cos, sin)
        return rows, without, turned

    def out_of(self, x: Tensor, attended: Tensor) -> Tensor:
        """The stream [n, h] behind this layer, from that before it and what attention found [n, H * V]."""
        block = self._block
        x = x + self.attention.o_proj(attended)
        middle = normed(x, block.post_attention_layernorm)
        if self._gate_up is None:
            return x.add_(cast(MixtureOfExperts, block.mlp)(middle[None])[0][0])
        gate, up = self._gate_up(middle).chunk(2, dim=-1)
        return x.add_(cast(MLP, block.mlp).down_proj(F.silu(gate).mul_(up)))


def _fused(one: nn.Module, other: nn.Module) -> Callable[[Tensor], Tensor]:
    """What both layers make of the same input, side by side.

    Matrices of numbers become one, and the modules keep views; layers of another kind compute one after the other.
    """
    if not (isinstance(one, nn.Linear) and isinstance(other, nn.Linear)):
        return lambda x: torch.cat([one(x), other(x)], dim=-1)
    biases: list[Tensor | None] = [one.bias, other.bias]
    given = [bias for bias in biases if bias is not None]
    return partial(linear, weight=_joined(one.weight, other.weight), bias=_joined(*given) if given else None)


def _joined(one: Tensor, other: Tensor) -> Tensor:
    """Two parameters in one tensor, whose views they become. Joined twice, it is the same memory."""
    count = one.shape[0] + other.shape[0]
    beside = one.data_ptr() + one.numel() * one.element_size() == other.data_ptr()
    if beside and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr():
        return torch.as_strided(one.data, (count, *one.shape[1:]), one.stride(), one.storage_offset())
    both = torch.cat([one.data, other.data])
    one.data, other.data = both.split([one.shape[0], other.shape[0]])
    return both
