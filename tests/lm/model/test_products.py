"""Every product against the plain one, forward and backward, in float64 and where operands are widened."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deepwell.lm.model.attending import attend
from deepwell.lm.model.cross_entropy import linear_cross_entropy
from deepwell.lm.model.products import (
    Linear,
    at_least_float32,
    cpu_multiplies,
    grouped_linear,
    linear,
    matmul,
    wide_linear,
    widened,
)
from deepwell.lm.model.rowwise import RMSNorm, swiglu

from .differentiating import grads, random


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Where the tensors lie that are kept for a backward pass."""

    def __init__(self) -> None:
        self.places: list[int] = []
        super().__init__(self.pack, lambda tensor: tensor)

    def __enter__(self) -> "Kept":  # type: ignore[override]
        super().__enter__()
        return self

    def pack(self, tensor: Tensor) -> Tensor:
        self.places.append(tensor.data_ptr())
        return tensor


def test_only_half_precision_on_a_processor_without_instructions_is_widened(instructions: bool) -> None:
    half = torch.zeros(2, dtype=torch.bfloat16)
    assert (widened(half) is half) == instructions
    wide = torch.zeros(2, dtype=torch.float64)
    assert widened(wide) is wide
    assert widened(half.to("meta")).dtype is torch.bfloat16
    assert at_least_float32(half).dtype is torch.float32
    assert at_least_float32(wide) is wide


def test_float32_needs_no_instructions() -> None:
    assert cpu_multiplies(torch.float32)
    assert isinstance(cpu_multiplies(torch.bfloat16), bool)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_in_bf16_is_the_product_of_what_is_stored(instructions: bool, bias: bool) -> None:
    torch.manual_seed(0)
    inputs = [random(2, 3, 32, dtype=torch.bfloat16), random(16, 32, dtype=torch.bfloat16)]
    inputs += [random(16, dtype=torch.bfloat16)] if bias else []
    got = grads(linear, *inputs)
    expected = grads(F.linear, *[x.detach().double().requires_grad_() for x in inputs])
    for ours, plain in zip(got, expected, strict=True):
        assert ours.dtype is torch.bfloat16
        assert torch.allclose(ours.double(), plain, rtol=2e-2, atol=1e-1)


def test_a_linear_layer_is_torchs_with_this_product() -> None:
    layer = Linear(4, 3)
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_a_few_rows_are_multiplied_as_they_are_stored(instructions: bool) -> None:
    x, weight = torch.randn(3, 32).bfloat16(), torch.randn(16, 32).bfloat16()
    with torch.no_grad():
        few, many = linear(x, weight), linear(x.repeat(9, 1), weight)
    assert few.dtype is torch.bfloat16
    assert torch.allclose(few.double(), many[:3].double(), rtol=2e-2, atol=2e-2)


def test_what_is_widened_in_turn_does_not_mix(instructions: bool) -> None:
    """Matrices are widened into one buffer: a smaller one after a larger one, and the larger one again."""
    large, small = random(16, 32, dtype=torch.bfloat16), random(4, 16, dtype=torch.bfloat16)
    x = random(20, 32, dtype=torch.bfloat16)
    got = grads(lambda x, a, b: linear(linear(x, a), b), x, large, small)
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, large, small)]
    for ours, plain in zip(got, grads(lambda x, a, b: x @ a.T @ b.T, *wide), strict=True):
        assert torch.allclose(ours.double(), plain, rtol=5e-2, atol=1.0)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_wide_product_is_float32_or_wider_and_keeps_what_came(dtype: torch.dtype, stored: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = random(20, 32, dtype=dtype), random(6, 32, dtype=stored)
    with Kept() as kept:
        out = wide_linear(x, weight)
    assert set(kept.places) == {x.data_ptr(), weight.data_ptr()}
    wide = torch.promote_types(dtype, torch.float32)
    assert out.dtype is wide
    expected = grads(lambda x, w: F.linear(x.to(wide), w.to(wide)), x, weight)
    for ours, plain in zip(grads(wide_linear, x, weight), expected, strict=True):
        assert ours.dtype is plain.dtype
        assert torch.allclose(ours, plain, rtol=1e-2 if plain.dtype is torch.bfloat16 else 1e-5, atol=1e-5)


def test_matmul_keeps_its_dtype(instructions: bool) -> None:
    a, b = torch.randn(3, 4, dtype=torch.bfloat16), torch.randn(4, 5, dtype=torch.bfloat16)
    out = matmul(a, b)
    assert out.dtype is torch.bfloat16
    assert torch.allclose(out.double(), a.double() @ b.double(), rtol=2e-2, atol=2e-2)


def loop(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    ends = offsets.tolist()
    parts = zip([0, *ends[:-1]], ends, strict=True)
    return torch.cat([x[start:end] @ weight[expert].T for expert, (start, end) in enumerate(parts)])


@pytest.mark.parametrize("widths", [(8, 12), (5, 3)], ids=["aligned", "odd"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ends", [[0, 7, 7, 20], [20, 20, 20, 20], [5, 10, 15, 20]])
def test_grouped_linear_is_a_loop_over_experts(
    instructions: bool, ends: list[int], dtype: torch.dtype, widths: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    inside, outside = widths
    x, weight = random(20, inside, dtype=dtype), random(4, outside, inside, dtype=dtype)
    offsets = torch.tensor(ends, dtype=torch.int32)
    got = grads(lambda x, w: grouped_linear(x, w, offsets), x, weight)
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    expected = grads(lambda x, w: loop(x, w, offsets), *wide)
    close = 5e-2 if dtype is torch.bfloat16 else 1e-5
    for ours, plain in zip(got, expected, strict=True):
        assert ours.dtype is dtype
        assert torch.allclose(ours.double(), plain, rtol=close, atol=close)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_is_kept_in_front_of_a_frozen_matrix(instructions: bool, grouped: bool, frozen: bool) -> None:
    torch.manual_seed(0)
    x = random(20, 32, dtype=torch.bfloat16)
    weight = torch.randn(2, 16, 32) if grouped else torch.randn(16, 32)
    weight.requires_grad_(not frozen)
    with Kept() as kept:
        ends = torch.tensor([9, 20], dtype=torch.int32)
        out = grouped_linear(x, weight, ends) if grouped else linear(x, weight)
    assert (x.data_ptr() in kept.places) != frozen
    out.sum().backward()
    wide = weight.double()
    parts = [wide[0].sum(0).expand(9, -1), wide[1].sum(0).expand(11, -1)] if grouped else [wide.sum(0).expand(20, -1)]
    assert x.grad is not None
    assert torch.allclose(x.grad.double(), torch.cat(parts), rtol=5e-2, atol=1e-1)


@pytest.mark.parametrize("name", ["linear", "grouped_linear", "swiglu", "norm", "attention", "cross-entropy"])
def test_a_gradient_of_a_gradient_is_refused(name: str) -> None:
    """Most kernels are beyond autograd: it would take what they give for a constant."""
    x = random(16, 16, dtype=torch.bfloat16)
    weight = torch.randn(16, 16, requires_grad=True)
    runs: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: linear(x, weight),
        "grouped_linear": lambda: grouped_linear(x, weight[None], torch.tensor([16], dtype=torch.int32)),
        "swiglu": lambda: swiglu(x, x),
        "norm": lambda: RMSNorm(16, 1e-5)(x),
        "attention": lambda: attend(*(x[None, None],) * 3, scale=0.25, causal=True),
        "cross-entropy": lambda: linear_cross_entropy(x, weight, torch.zeros(16, dtype=torch.int64)),
    }
    (grad,) = torch.autograd.grad(runs[name]().float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice|not implemented"):
        grad.sum().backward()
