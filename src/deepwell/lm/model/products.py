"""Matrix products and the few fused operations that a network is made of, each with its own backward pass.

Two things are decided here and nowhere else.

*In what precision a product is computed.* Weights and activations are kept in the dtype of the model. A processor
without bf16 instructions multiplies bf16 at an eighth of its float32 speed (and grouped at a sixtieth), so there the
operands are widened for the product alone and the result is narrowed again: same storage, same interface, float32
accumulation. Processors with bf16 instructions, and GPUs, multiply bf16 as it is.

*By whom it is computed.* Where the package's compiled kernels suit (``native``: bf16 on an x86 processor with bf16
instructions), they take what PyTorch does in many passes: attention, norms, gates, the softmax of the loss, and the
gradients of float32 weights, which they sum in float32. The rest, and all of it elsewhere, is PyTorch's.

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

from deepwell.lm.model.native import calls

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


def _compiled(*tensors: Tensor) -> bool:
    """Whether the compiled kernels take these."""
    return cpu_multiplies(torch.bfloat16) and calls.available(*tensors)


_scratch = threading.local()
_SCRATCH_VALUES = 2**25
"""Matrices up to this size (64 MB in bf16) are converted into a buffer that is kept; larger ones into new memory."""
_FEW_ROWS = 8
"""Up to so many rows torch's bf16 product, which reads the matrix as it is, beats widening the matrix first."""


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
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
        buffer = _scratch.buffer = torch.empty(size, dtype=torch.uint8)
    return buffer[:size].view(dtype).view(weight.shape)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precisions become float32; float64 stays."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the dtype of ``a``."""
    return (widened(a) @ widened(b)).to(a.dtype)


def _outer(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """``left^T right`` in ``dtype``: the gradient of a weight. [K, M], [K, N] -> [M, N]."""
    if dtype is torch.float32 and right.shape[1] % 16 == 0 and _compiled(left, right):
        total = torch.empty(left.shape[1], right.shape[1])
        calls.outer(left, right, total)
        return total
    return (widened(left).t() @ widened(right)).to(dtype)


class _Linear(torch.autograd.Function):
    """``x W^T + b`` that widens for the product and keeps its inputs as they came."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        wide = widened(x)
        matrix = _matrix(weight, x.dtype)
        return F.linear(wide, matrix, None if bias is None else bias.to(wide.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grads[0].flatten(0, -2)
        wide = widened(rows)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (wide @ _matrix(weight, x.dtype)).to(x.dtype).view(x.shape)
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
    if weight.dtype is torch.float32 and right.shape[1] % 16 == 0 and _compiled(left, right):
        total = torch.empty(weight.shape)
        ends = offsets.tolist()
        for part, start, end in zip(total, [0, *ends[:-1]], ends, strict=True):
            calls.outer(left[start:end], right[start:end], part)
        return total
    return _grouped(widened(left).contiguous().t(), widened(right), offsets).to(weight.dtype)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, offsets)
        if cpu_multiplies(torch.bfloat16) and calls.suits_grouped(x, weight):
            return calls.grouped(x, weight, offsets, _room(weight, x.dtype), turned=True)
        matrices = _matrix(weight, x.dtype)
        return _grouped(widened(x), matrices.transpose(1, 2), offsets).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, offsets = ctx.saved_tensors
        wide = widened(grads[0]).contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0] and cpu_multiplies(torch.bfloat16) and calls.suits_grouped(wide, weight):
            grad_x = calls.grouped(wide, weight, offsets, _room(weight, x.dtype), turned=False)
        elif ctx.needs_input_grad[0]:
            grad_x = _grouped(wide, _matrix(weight, x.dtype), offsets).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = _grouped_outer(grads[0], x, offsets, weight)
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
        if _compiled(gate, up):
            return calls.swiglu_forward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad = grads[0]
        if _compiled(gate, up, grad):
            return calls.swiglu_backward(grad, gate, up)
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, elementwise (arXiv 2002.05202)."""
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return,no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """Keeps the rows and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if _compiled(x):
            out, inverse = calls.norm_forward(x, weight, eps)
            ctx.save_for_backward(x, weight, inverse)
            return out
        wide = at_least_float32(x)
        inverse = torch.linalg.vecdot(wide, wide).unsqueeze_(-1).div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        normed: Tensor = (wide * inverse).to(x.dtype)
        return normed.mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        if _compiled(x, grads[0]):
            found = calls.norm_backward(grads[0], x, weight, inverse, *ctx.needs_input_grad[:2])
            return found[0], None if found[1] is None else found[1].to(weight.dtype), None
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
    if cpu_multiplies(torch.bfloat16) and calls.suits_attention(query, key, value, causal):
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


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and cross-entropy together, a slice of rows at a time: the logits of a batch are never all in memory.

    The gradients are found in the forward pass, while a slice's probabilities are there (as Liger does, arXiv
    2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, divisor: int) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.divisor = divisor
        if _compiled(hidden) and weight.dtype is torch.float32 and hidden.shape[1] % 16 == 0:
            ctx.divisor = 1
            total, *found = _compiled_cross_entropy(hidden, weight, labels, divisor, wanted)
            ctx.save_for_backward(*found)
            return total
        total = torch.zeros((), dtype=torch.float32 if hidden.dtype in _HALF else hidden.dtype, device=hidden.device)
        head = _matrix(weight, hidden.dtype)  # nothing else is widened before the last slice is done
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
        return total / divisor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        times = grads[0] / ctx.divisor
        if times.device.type == "cpu" and times == 1:  # as in training: spares a pass over a large matrix
            return grad_hidden, grad_weight, None, None
        return (
            None if grad_hidden is None else grad_hidden * times.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * times.to(grad_weight.dtype),
            None,
            None,
        )


def _compiled_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, divisor: int, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss divided, and the gradients of what is wanted. Logits are bf16 and become their gradients in place."""
    head = _matrix(weight, hidden.dtype)
    grad_hidden = torch.empty_like(hidden) if wanted[0] else None
    grad_weight = torch.zeros_like(weight) if wanted[1] else None
    rows = min(max(16, 2**25 // weight.shape[0]), max(hidden.shape[0], 1))
    buffer = hidden.new_empty(rows, weight.shape[0])
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, hidden.shape[0], rows):
        part = hidden[start : start + rows]
        logits = torch.mm(part, head.t(), out=buffer[: part.shape[0]])
        total += calls.entropy_rows(logits, labels[start : start + rows], 1 / divisor, any(wanted[:2])).sum()
        if grad_hidden is not None:
            torch.mm(logits, head, out=grad_hidden[start : start + rows])
        if grad_weight is not None:
            calls.outer(logits, part, grad_weight, add=True)
    return total / divisor, grad_hidden, grad_weight


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, divisor: int = 1) -> Tensor:
    """Summed cross-entropy of ``hidden W^T`` against ``labels`` over ``divisor``, in float32, logits never all at once.

    ``hidden`` [N, h], ``weight`` [vocab, h], ``labels`` [N] int64, none of them masked -> scalar. N may be 0.
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels, divisor)  # type: ignore[no-any-return,no-untyped-call]
