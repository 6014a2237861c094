"""Matrix products and the few fused operations that a network is made of, each with its own backward pass.

Two things are decided here and nowhere else.

*In what precision a product is computed.* Weights and activations are kept in the dtype of the model. A processor
without bf16 instructions multiplies bf16 at an eighth of its float32 speed (and grouped at a sixtieth), so there the
operands are widened for the product alone and the result is narrowed again: same storage, same interface, float32
accumulation. Processors with bf16 instructions, and GPUs, multiply bf16 as it is.

*What is kept for the backward pass.* Only what came in, in the dtype in which it came; whatever can be computed again
in one cheap pass (a widened copy, a gate's activation, a normalised row) is not stored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HALF = (torch.bfloat16, torch.float16)


@cache
def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for products in this dtype (AVX-512 BF16 and AMX on x86, BF16 on ARM)."""
    if dtype is torch.bfloat16:
        x86 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        arm = torch.backends.cpu.get_cpu_capability() in {"SVE256", "SVE128", "NEON"}
        return bool(x86 or (arm and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    if dtype is torch.float16:
        return bool(torch.cpu._is_amx_fp16_supported())
    return True


def widened(tensor: Tensor) -> Tensor:
    """The tensor in the dtype in which this device multiplies it."""
    if tensor.dtype in _HALF and tensor.device.type == "cpu" and not cpu_multiplies(tensor.dtype):
        return tensor.float()
    return tensor


def operand(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as it meets activations of ``dtype``: master weights in float32 are narrowed for bf16 activations."""
    if weight.dtype is dtype or (dtype in _HALF and not _multiplies(dtype, weight.device)):
        return weight
    return weight.to(dtype)


def _multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    return device.type != "cpu" or cpu_multiplies(dtype)


_scratch = threading.local()
_SCRATCH_VALUES = 2**25
"""Matrices up to this size (128 MB in float32) are widened into a buffer that is kept; larger ones into new memory."""
_FEW_ROWS = 8
"""Up to so many rows torch's bf16 product, which reads the matrix as it is, beats widening the matrix first."""


def _widened_matrix(matrix: Tensor) -> Tensor:
    """As ``widened``, but what it gives is good only until the next call on this thread.

    A network widens its matrices one after the other; new memory for each would cost more than the copy itself.
    """
    if widened(matrix[:0]).dtype is matrix.dtype or matrix.numel() > _SCRATCH_VALUES:
        return widened(matrix)
    buffer: Tensor | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.numel() < matrix.numel():
        buffer = _scratch.buffer = torch.empty(matrix.numel(), dtype=torch.float32)
    return buffer[: matrix.numel()].view(matrix.shape).copy_(matrix)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precisions become float32; float64 stays."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the dtype of ``a``."""
    return (widened(a) @ widened(b)).to(a.dtype)


class _Linear(torch.autograd.Function):
    """``x W^T + b`` that widens for the product and keeps its inputs as they came."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        wide = widened(x)
        matrix = _widened_matrix(operand(weight, x.dtype))
        return F.linear(wide, matrix, None if bias is None else bias.to(wide.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grads[0].flatten(0, -2)
        wide = widened(rows)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (wide @ _widened_matrix(operand(weight, x.dtype))).to(x.dtype).view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = (wide.t() @ widened(x.flatten(0, -2))).to(weight.dtype)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = at_least_float32(rows).sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``. ``x`` [..., in], ``weight`` [out, in], ``bias`` [out] -> [..., out] in the dtype of ``x``.

    Weights may be wider than ``x``: float32 master weights meet bf16 activations as bf16, and get float32 gradients.
    """
    few = not torch.is_grad_enabled() and x.numel() <= _FEW_ROWS * x.shape[-1]
    if weight.dtype is x.dtype and (few or widened(x) is x):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return,no-untyped-call]


class Linear(nn.Linear):
    """``torch.nn.Linear`` by the product above, or by another that is put in its place (training in FP8)."""

    product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = staticmethod(linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


def _grouped(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    """``torch.nn.functional.grouped_mm`` where it can, else (float64, rows not of whole 16 bytes) group after group.

    Two forms: rows of ``a`` [N, K] by ``b`` [E, K, M] -> [N, M]; columns of ``a`` [K, N] by rows of ``b`` [N, M] ->
    [E, K, M]. ``offsets`` [E] int32 are the ends of the groups in N.
    """
    if a.dtype is not torch.float64 and _is_aligned(a) and _is_aligned(b):
        return F.grouped_mm(a, b, offs=offsets)
    ends = offsets.tolist()
    starts = [0, *ends[:-1]]
    if b.dim() == 3:
        return torch.cat([a[start:end] @ b[group] for group, (start, end) in enumerate(zip(starts, ends, strict=True))])
    return torch.stack([a[:, start:end] @ b[start:end] for start, end in zip(starts, ends, strict=True)])


def _is_aligned(tensor: Tensor) -> bool:
    """Whether rows begin at multiples of 16 bytes, as torch's grouped product demands."""
    return all(stride == 1 or stride * tensor.element_size() % 16 == 0 for stride in tensor.stride())


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, offsets)
        matrices = _widened_matrix(operand(weight, x.dtype))
        return _grouped(widened(x), matrices.transpose(1, 2), offsets).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, offsets = ctx.saved_tensors
        wide = widened(grads[0]).contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _grouped(wide, _widened_matrix(operand(weight, x.dtype)), offsets).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = _grouped(wide.t(), widened(x), offsets).to(weight.dtype)
        return grad_x, grad_weight, None


def grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Rows that are sorted by expert, each by its own expert's matrix, in one call.

    ``x`` [N, in], ``weight`` [E, out, in], ``offsets`` [E] int32, the row at which each expert's rows end -> [N, out].
    """
    return _GroupedLinear.apply(x, weight, offsets)  # type: ignore[no-any-return,no-untyped-call]


class _SwiGLU(torch.autograd.Function):
    """Keeps gate and up alone; silu is computed again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad = grads[0]
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, elementwise (arXiv 2002.05202)."""
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return,no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """Keeps the rows and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = at_least_float32(x)
        inverse = torch.linalg.vecdot(wide, wide).unsqueeze_(-1).div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        normed: Tensor = (wide * inverse).to(x.dtype)
        return normed.mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        grad = at_least_float32(grads[0])
        normed = at_least_float32(x) * inverse
        grad_weight = grad_x = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            scaled = grad * at_least_float32(weight)
            along = torch.linalg.vecdot(scaled, normed).unsqueeze_(-1).div_(x.shape[-1])
            grad_x = scaled.addcmul_(normed, along, value=-1).mul_(inverse).to(x.dtype)
        return grad_x, grad_weight, None


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last dimension, the mean of squares in float32 (arXiv 1910.07467)."""

    def __init__(
        self, width: int, eps: float, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-any-return,no-untyped-call]


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


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and cross-entropy together, a slice of rows at a time: the logits of a batch are never all in memory.

    The gradients are found in the forward pass, while a slice's probabilities are there (as Liger does, arXiv
    2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad
        total = torch.zeros((), dtype=torch.float32 if hidden.dtype in _HALF else hidden.dtype, device=hidden.device)
        head = _widened_matrix(operand(weight, hidden.dtype))  # nothing else is widened before the last slice is done
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        grad_weight = torch.zeros_like(weight, dtype=total.dtype) if wanted[1] else None
        rows = max(16, 2**22 // weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            part = widened(hidden[start : start + rows])
            aims = labels[start : start + rows, None]
            logits = at_least_float32(part @ head.t())
            normaliser = logits.logsumexp(-1, keepdim=True)
            total += (normaliser - logits.gather(1, aims)).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            wrong = logits.sub_(normaliser).exp_()
            wrong.scatter_add_(1, aims, wrong.new_full(aims.shape, -1.0))
            wrong = wrong.to(part.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = wrong @ head
            if grad_weight is not None:
                grad_weight.addmm_(wrong.t().to(grad_weight.dtype), part.to(grad_weight.dtype))
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grads[0].to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grads[0].to(grad_weight.dtype),
            None,
        )


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy of ``hidden W^T`` against ``labels``, in float32, without the matrix of logits.

    ``hidden`` [N, h], ``weight`` [vocab, h], ``labels`` [N] int64, none of them masked -> scalar. N may be 0.
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels)  # type: ignore[no-any-return,no-untyped-call]
