"""Matrix products, each with its own backward pass: a matrix for all rows, or one for each group of rows.

Two things are decided here and nowhere else, for the other fused operations too (``rowwise``, ``attending``,
``cross_entropy``).

*In what precision a product is computed.* Weights and activations are kept in the dtype of the model. A processor
without bf16 instructions multiplies bf16 at an eighth of its float32 speed (and grouped at a sixtieth), so there the
operands are widened for the product alone and the result is narrowed again: same storage, same interface, float32
accumulation. Processors with bf16 instructions, and GPUs, multiply bf16 as it is.

*By whom it is computed.* Where the package's compiled kernels suit (``native``: bf16 on an x86 processor with bf16
instructions), they take what PyTorch does in many passes: attention, norms, gates, the softmax of the loss, and the
gradients of float32 weights, which they sum in float32. The rest, and all of it elsewhere, is PyTorch's.

All of these operations keep for the backward pass only what came in, in the dtype in which it came; whatever can be
computed again in one cheap pass (a widened copy, a gate's activation, a normalised row) is not stored. In front of a
frozen matrix nothing is. Their gradients cannot be differentiated once more: that is an error, and not a wrong number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from deepwell.lm.model.native import calls

HALF = (torch.bfloat16, torch.float16)


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
    if tensor.dtype in HALF and tensor.device.type == "cpu" and not cpu_multiplies(tensor.dtype):
        return tensor.float()
    return tensor


def operand(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as it meets activations of ``dtype``: master weights in float32 are narrowed for bf16 activations."""
    if weight.dtype is dtype or (dtype in HALF and not _multiplies(dtype, weight.device)):
        return weight
    return weight.to(dtype)


def _multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    return device.type != "cpu" or cpu_multiplies(dtype)


def compiled(*tensors: Tensor) -> bool:
    """Whether the compiled kernels take these."""
    return cpu_multiplies(torch.bfloat16) and calls.available(*tensors)


_scratch = threading.local()
_SCRATCH_VALUES = 2**25
"""Matrices up to this size (64 MB in bf16) are converted into a buffer that is kept; larger ones into new memory."""
_FEW_ROWS = 8
"""Up to so many rows torch's bf16 product, which reads the matrix as it is, beats widening the matrix first."""


def matrix_for(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight as it is multiplied with activations of ``dtype``; good only until the next call on this thread.

    A network converts its matrices one after the other; new memory for each would cost more than the copy itself.
    """
    target = widened(operand(weight[:0], dtype)).dtype
    if target is weight.dtype or weight.device.type != "cpu" or weight.numel() > _SCRATCH_VALUES:
        return widened(operand(weight, dtype))
    return _room(weight, target).copy_(weight)


def _room(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for a matrix in ``dtype``, in its shape: the thread's buffer, unless the matrix is too large for it."""
    size = weight.numel() * dtype.itemsize
    if weight.numel() > _SCRATCH_VALUES:
        return weight.new_empty(weight.shape, dtype=dtype)
    buffer: Tensor | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.numel() < size:
        buffer = _scratch.buffer = torch.empty(size, dtype=torch.uint8, device="cpu")
    return buffer[:size].view(dtype).view(weight.shape)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precisions become float32; float64 stays."""
    return tensor.float() if tensor.dtype in HALF else tensor


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the dtype of ``a``."""
    return (widened(a) @ widened(b)).to(a.dtype)


def _outer(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """``left^T right`` in ``dtype``: the gradient of a weight. [K, M], [K, N] -> [M, N]."""
    if dtype is torch.float32 and right.shape[1] % 16 == 0 and compiled(left, right):
        total = left.new_empty(left.shape[1], right.shape[1], dtype=dtype)
        calls.outer(left, right, total)
        return total
    return (widened(left).t() @ widened(right)).to(dtype)


class _Linear(torch.autograd.Function):
    """``x W^T + b`` that widens for the product and keeps its inputs as they came."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shape, ctx.dtype, ctx.has_bias = x.shape, x.dtype, bias is not None
        wide = widened(x)
        matrix = matrix_for(weight, x.dtype)
        return F.linear(wide, matrix, None if bias is None else bias.to(wide.dtype)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grads[0].flatten(0, -2)
        wide = widened(rows)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (wide @ matrix_for(weight, ctx.dtype)).to(ctx.dtype).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = _outer(rows, x.flatten(0, -2), weight.dtype)
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


class _WideLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.dtype = x.dtype
        return F.linear(at_least_float32(x), at_least_float32(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = (grads[0] @ at_least_float32(weight)).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = (grads[0].t() @ at_least_float32(x)).to(weight.dtype)
        return grad_x, grad_weight


def wide_linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x W^T`` in float32 or wider whatever came in: ``x`` [N, in], ``weight`` [out, in] -> [N, out].

    What is kept for the backward pass is ``x`` as it came, not widened.
    """
    return _WideLinear.apply(x, weight)  # type: ignore[no-any-return,no-untyped-call]


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


def _grouped_outer(left: Tensor, right: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """The gradient of ``weight`` [E, M, N], a group after the other: [K, M], [K, N] -> [E, M, N]."""
    if weight.dtype is torch.float32 and right.shape[1] % 16 == 0 and compiled(left, right):
        total = torch.empty_like(weight, memory_format=torch.contiguous_format)
        ends = offsets.tolist()
        for part, start, end in zip(total, [0, *ends[:-1]], ends, strict=True):
            calls.outer(left[start:end], right[start:end], part)
        return total
    return _grouped(widened(left).contiguous().t(), widened(right), offsets).to(weight.dtype)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, offsets)
        ctx.dtype = x.dtype
        if compiled(x) and calls.suits_grouped(weight, x.shape[1], turned=True):
            return calls.grouped(x, weight, offsets, _room(weight, x.dtype), turned=True)
        matrices = matrix_for(weight, x.dtype)
        return _grouped(widened(x), matrices.transpose(1, 2), offsets).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, offsets = ctx.saved_tensors
        wide = widened(grads[0]).contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0] and compiled(wide) and calls.suits_grouped(weight, wide.shape[1], turned=False):
            grad_x = calls.grouped(wide, weight, offsets, _room(weight, ctx.dtype), turned=False)
        elif ctx.needs_input_grad[0]:
            grad_x = _grouped(wide, matrix_for(weight, ctx.dtype), offsets).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = _grouped_outer(grads[0], x, offsets, weight)
        return grad_x, grad_weight, None


def grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Rows that are sorted by expert, each by its own expert's matrix, in one call.

    ``x`` [N, in], ``weight`` [E, out, in], ``offsets`` [E] int32, the row at which each expert's rows end -> [N, out].
    """
    return _GroupedLinear.apply(x, weight, offsets)  # type: ignore[no-any-return,no-untyped-call]
