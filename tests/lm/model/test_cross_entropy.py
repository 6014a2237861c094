"""The loss by slices beside the loss of all logits, and what is not computed where nobody asks for it."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from deepwell.lm.model.cross_entropy import linear_cross_entropy

from .differentiating import random


@pytest.mark.parametrize("rows", [0, 1, 7, 200])
def test_cross_entropy_by_slices_is_cross_entropy(rows: int) -> None:
    torch.manual_seed(0)
    hidden, weight = random(rows, 6), random(11, 6)
    labels = torch.randint(0, 11, (rows,))
    loss = linear_cross_entropy(hidden, weight, labels)
    plain = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    assert torch.allclose(loss, plain)
    got = torch.autograd.grad(loss * 3, (hidden, weight))
    for ours, expected in zip(got, torch.autograd.grad(plain * 3, (hidden, weight)), strict=True):
        assert torch.allclose(ours, expected)


def test_cross_entropy_in_bf16_is_summed_in_float32(instructions: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = random(64, 32, dtype=torch.bfloat16), random(100, 32, dtype=torch.bfloat16)
    labels = torch.randint(0, 100, (64,))
    loss = linear_cross_entropy(hidden, weight, labels)
    assert loss.dtype is torch.float32
    plain = F.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), rel=1e-2)
    for ours in torch.autograd.grad(loss, (hidden, weight)):
        assert ours.dtype is torch.bfloat16


def test_no_gradient_is_made_where_none_is_wanted() -> None:
    hidden, weight = random(4, 6), torch.randn(11, 6, dtype=torch.float64)
    (grad,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, torch.zeros(4, dtype=torch.int64)), (hidden,))
    assert grad.shape == hidden.shape


class Recorded(TorchDispatchMode):
    """The operations that PyTorch carries out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_loss_that_is_only_looked_at_makes_no_gradient() -> None:
    hidden, weight, labels = random(4, 6), random(11, 6), torch.zeros(4, dtype=torch.int64)
    with Recorded() as learning:
        loss = linear_cross_entropy(hidden, weight, labels)
    assert "addmm_" in learning.names
    with Recorded() as looking, torch.no_grad():
        assert linear_cross_entropy(hidden, weight, labels) == loss
    assert "addmm_" not in looking.names
