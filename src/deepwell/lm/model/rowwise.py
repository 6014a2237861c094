"""What is done to each row by itself: the RMS norm and the gate of SwiGLU, each with its own backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from deepwell.lm.model.native import calls
from deepwell.lm.model.products import at_least_float32, compiled


class _SwiGLU(torch.autograd.Function):
    """Keeps gate and up alone; silu is computed again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        if compiled(gate, up) and gate.shape == up.shape:
            return calls.swiglu_forward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad = grads[0]
        if compiled(gate, up, grad) and gate.shape == up.shape:
            return calls.swiglu_backward(grad, gate, up)
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, elementwise (arXiv 2002.05202)."""
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return,no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """Keeps the rows and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if compiled(x) and x.shape[-1:] == weight.shape:
            out, inverse = calls.norm_forward(x, weight, eps)
            ctx.save_for_backward(x, weight, inverse)
            return out
        wide = at_least_float32(x)
        inverse = torch.linalg.vecdot(wide, wide).unsqueeze_(-1).div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        normed: Tensor = (wide * inverse).to(x.dtype)
        return normed.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        if compiled(x, grads[0]) and x.shape[-1:] == weight.shape:
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
