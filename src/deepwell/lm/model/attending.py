"""Scaled dot-product attention, by whichever kernel keeps no T x T matrix.

Three of them: the package's compiled one (bf16 on an x86 processor with bf16 instructions), torch's flash kernel on
widened operands (bf16 on other processors), and torch's own choice (float32, float64, GPUs).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from deepwell.lm.model.native import calls
from deepwell.lm.model.products import compiled, widened


class _CompiledAttention(torch.autograd.Function):
    """Attention by the compiled kernels."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        out, normaliser = calls.attention_forward(query, key, value, mask, causal, scale)
        ctx.save_for_backward(query, key, value, out, normaliser, mask)
        ctx.causal, ctx.scale = causal, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, normaliser, mask = ctx.saved_tensors
        found = calls.attention_backward(grads[0], query, key, value, out, normaliser, mask, ctx.causal, ctx.scale)
        return *found, None, None, None


class _FlashOnCPU(torch.autograd.Function):
    """The CPU's flash kernel on widened operands, of which the narrow ones are kept."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            widened(query), widened(key), widened(value), 0.0, causal, attn_mask=mask, scale=scale
        )
        narrow: Tensor = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, narrow, normaliser, mask)
        ctx.causal, ctx.scale = causal, scale
        return narrow

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, normaliser, mask = ctx.saved_tensors
        wide = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *map(widened, (grads[0], query, key, value, out)),
            normaliser,
            0.0,
            ctx.causal,
            attn_mask=mask,
            scale=ctx.scale,
        )
        return *(grad.to(query.dtype) for grad in wide), None, None, None


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool, mask: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention without the T x T matrix in memory.

    ``query`` [B, H, T, K], ``key`` [B, G, S, K], ``value`` [B, G, S, V] with G dividing H; ``mask`` [.., T, S] bool,
    True where a query may look, or None; ``causal`` only where T == S. -> [B, H, T, V] in the dtype of ``query``.
    """
    plain = mask is None or mask.dtype is torch.bool
    if plain and compiled(query, key, value) and calls.suits_attention(query, key, value, causal):
        return _CompiledAttention.apply(query, key, value, mask, causal, scale)  # type: ignore[no-any-return,no-untyped-call]
    width = value.shape[-1]
    if width < query.shape[-1] and query.device.type == "cpu":
        # The CPU's flash kernel wants one width; without it all T x T scores would be stored.
        value = F.pad(value, (0, query.shape[-1] - width))
    if widened(query[:0]).dtype is not query.dtype:
        each = query.shape[1] // key.shape[1]
        if each > 1:
            key, value = key.repeat_interleave(each, 1), value.repeat_interleave(each, 1)
        bias = None if mask is None else torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        out: Tensor = _FlashOnCPU.apply(query, key, value, bias, causal, scale)  # type: ignore[no-untyped-call]
        return out[..., :width]
    grouped = key.shape[1] != query.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return out[..., :width]
