"""Random tensors that learn, and gradients of a function of them."""

from collections.abc import Callable

import torch
from torch import Tensor


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal values that take a gradient."""
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def grads(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """What the function gives, and its gradients by each input for one fixed gradient of the result."""
    out = function(*inputs)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, upstream)]
