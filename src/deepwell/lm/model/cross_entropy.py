"""The head and its cross-entropy as one operation, whose logits are never all in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepwell.lm.model.native import calls
from deepwell.lm.model.products import HALF, at_least_float32, compiled, matrix_for, widened


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and cross-entropy together, a slice of rows at a time: the logits of a batch are never all in memory.

    The gradients are found in the forward pass, while a slice's probabilities are there (as Liger does, arXiv
    2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, divisor: int) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.divisor = divisor
        if compiled(hidden) and weight.dtype is torch.float32 and hidden.shape[1] % 16 == 0:
            ctx.divisor = 1
            total, *found = _compiled_cross_entropy(hidden, weight, labels, divisor, wanted)
            ctx.save_for_backward(*found)
            return total
        total = torch.zeros((), dtype=torch.float32 if hidden.dtype in HALF else hidden.dtype, device=hidden.device)
        head = matrix_for(weight, hidden.dtype)  # nothing else is widened before the last slice is done
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
    @once_differentiable
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
    head = matrix_for(weight, hidden.dtype)
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
    if not torch.is_grad_enabled():  # an autograd function is not told, and would make the gradients all the same
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, labels, divisor)  # type: ignore[no-any-return,no-untyped-call]
