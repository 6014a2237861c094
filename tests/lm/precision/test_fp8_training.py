"""FP8 products beside exact ones: results, gradients, what is kept."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deepwell.lm.precision import fp8_emulation, fp8_training
from deepwell.lm.precision.fp8_training import Fp8Products

WAYS = [
    Fp8Products(),
    Fp8Products(power_of_two=True),
    Fp8Products(keep="bf16"),
    Fp8Products(scaling="tensor"),
]


def likeness(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.detach().double().flatten(), b.detach().double().flatten(), dim=0))


def kept_bytes(run: Any, *weights: Tensor) -> int:
    """Bytes of everything that a backward pass waits with, the weights apart."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in {weight.untyped_storage().data_ptr() for weight in weights}:
            seen[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    assert result is not None
    return sum(seen.values())


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(256, 256, 128), (130, 200, 72), (1, 16, 300)])
def test_results_and_gradients_lie_near_the_exact_ones(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, how: Fp8Products
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, rows, inputs).to(dtype).requires_grad_()
    weight, bias = torch.randn(outputs, inputs, requires_grad=True), torch.randn(outputs, requires_grad=True)
    out = how.linear(x, weight, bias)
    exact_x, exact_weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = F.linear(exact_x, exact_weight, bias.detach().double())
    grad = torch.randn_like(exact)
    exact.backward(grad)
    out.backward(grad.to(dtype))
    assert x.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    assert (out.dtype, x.grad.dtype, weight.grad.dtype, bias.grad.dtype) == (dtype, dtype, torch.float32, torch.float32)
    for found, wanted in ((out, exact), (x.grad, exact_x.grad), (weight.grad, exact_weight.grad)):
        assert found.shape == wanted.shape
        assert 0.99 < likeness(found, wanted) < 1 - 1e-6  # FP8 it is
    assert likeness(bias.grad, grad.sum((0, 1))) > 0.9999


def test_a_product_is_that_of_the_rounded_operands() -> None:
    """With power-of-two scales what bf16 multiplies is exact; with others it is near."""
    torch.manual_seed(1)
    x, weight = torch.randn(64, 384).bfloat16(), torch.randn(200, 384)
    for power_of_two, limit in ((True, 2.0**-8), (False, 2.0**-7)):
        products = fp8_emulation.Emulation(True, power_of_two)
        wanted = products.rows(x).dequantised().double() @ products.matrices(weight).dequantised().double().t()
        found = Fp8Products(power_of_two=power_of_two).linear(x, weight)
        assert float((found.double() - wanted).norm() / wanted.norm()) < limit
        exact = Fp8Products(power_of_two=power_of_two).linear(x.float(), weight)
        assert float((exact.double() - wanted).norm() / wanted.norm()) < 1e-6


def test_sums_over_tokens_have_tiles_along_the_tokens() -> None:
    """An outlier in one channel costs the gradients of other channels nothing."""
    torch.manual_seed(2)
    x, grad = torch.randn(256, 128), torch.randn(256, 64)
    x[:, 3] *= 1e6
    exact = grad.double().t() @ x.double()
    found = {}
    for scaling in ("block", "tensor"):
        weight = torch.zeros(64, 128, requires_grad=True)
        Fp8Products(scaling=scaling).linear(x, weight).backward(grad)
        assert weight.grad is not None
        found[scaling] = likeness(weight.grad[:, 4:], exact[:, 4:])
    assert found["block"] > 0.999
    assert found["tensor"] < 0.9


@pytest.mark.parametrize("how", WAYS[:3])
@pytest.mark.parametrize("loads", [[3, 0, 150, 1], [0, 0, 0, 40], [128, 128, 0, 7], [0, 0, 0, 0]])
def test_experts_are_linear_layers_of_their_own(loads: list[int], how: Fp8Products) -> None:
    torch.manual_seed(3)
    x = torch.randn(sum(loads), 160, requires_grad=True)
    weight = torch.randn(4, 72, 160, requires_grad=True)
    offsets = torch.tensor(loads).cumsum(0).to(torch.int32)
    grad = torch.randn(sum(loads), 72)
    out = how.grouped(x, weight, offsets)
    out.backward(grad)
    assert x.grad is not None
    assert weight.grad is not None
    for expert, (part, back, end) in enumerate(zip(x.split(loads), grad.split(loads), offsets.tolist(), strict=True)):
        alone, matrix = part.detach().clone().requires_grad_(), weight.detach()[expert].clone().requires_grad_()
        wanted = how.linear(alone, matrix)
        wanted.backward(back)
        assert alone.grad is not None
        assert matrix.grad is not None
        span = slice(end - loads[expert], end)
        torch.testing.assert_close(out[span], wanted)
        torch.testing.assert_close(x.grad[span], alone.grad)
        torch.testing.assert_close(weight.grad[expert], matrix.grad)


@pytest.mark.parametrize("keep", ["fp8", "bf16"])
def test_swiglu_recomputes_from_what_it_kept(keep: Any) -> None:
    torch.manual_seed(4)
    joint = torch.randn(70, 400).bfloat16().requires_grad_()
    gate, up = joint.chunk(2, dim=-1)  # as experts have them: not contiguous
    out = Fp8Products(keep=keep).swiglu(gate, up)
    assert torch.equal(out, F.silu(gate) * up)  # the forward pass is exact
    grad = torch.randn(70, 200).bfloat16()
    out.backward(grad)
    exact = joint.detach().double().requires_grad_()
    one, other = exact.chunk(2, dim=-1)
    (F.silu(one) * other).backward(grad.double())
    assert joint.grad is not None
    assert exact.grad is not None
    assert likeness(joint.grad, exact.grad) > 0.998


def test_what_is_kept_is_half_of_bf16() -> None:
    x = torch.randn(1024, 512).bfloat16().requires_grad_()
    weight = torch.randn(256, 512, requires_grad=True)
    half = kept_bytes(lambda: Fp8Products().linear(x * 1, weight), weight)
    whole = kept_bytes(lambda: Fp8Products(keep="bf16").linear(x * 1, weight), weight)
    assert whole == 1024 * 512 * 2
    assert half == 1024 * 512 + 1024 // 128 * 512 * 4  # one byte a value, four a tile
    gate, up = torch.randn(2, 1024, 512).bfloat16().requires_grad_().unbind()
    assert kept_bytes(lambda: Fp8Products().swiglu(gate * 1, up * 1)) == 2 * (1024 * 512 + 1024 * 4 * 4)


def test_an_input_of_several_matrices_is_rounded_and_kept_once() -> None:
    x = torch.randn(256, 128).bfloat16().requires_grad_()
    first, second = torch.randn(2, 64, 128).requires_grad_().unbind()
    how = Fp8Products()
    once = kept_bytes(lambda: how.linear(x * 1, first), first)

    def both() -> tuple[Tensor, Tensor]:
        shared = x * 1
        return how.linear(shared, first), how.linear(shared, second)

    assert kept_bytes(both, first) == once


def test_an_input_that_was_changed_is_rounded_again() -> None:
    x, weight = torch.randn(8, 128), torch.randn(16, 128)
    how = Fp8Products()
    before = how.linear(x, weight)
    x.mul_(-2)
    torch.testing.assert_close(how.linear(x, weight), before * -2)
    assert torch.equal(
        Fp8Products(power_of_two=True).linear(x, weight), Fp8Products(power_of_two=True).linear(x, weight)
    )


def test_without_gradients_nothing_is_kept_and_inference_mode_works() -> None:
    x, weight = torch.randn(8, 128).bfloat16(), torch.randn(16, 128)
    wanted = Fp8Products().linear(x, weight)
    with torch.inference_mode():
        again = x.clone()
        assert torch.equal(Fp8Products().linear(again, weight), wanted)
    frozen = x.clone().requires_grad_()
    assert kept_bytes(lambda: Fp8Products().linear(frozen, weight), weight) == 0  # the base under an adapter
    Fp8Products().linear(frozen, weight).sum().backward()
    assert frozen.grad is not None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    x, weight = torch.randn(200, 256), torch.randn(64, 256, requires_grad=True)
    x[5, 7] = bad
    out = Fp8Products().linear(x, weight)
    assert out[5].isnan().all()
    assert out[:5].isfinite().all()
    assert out[6:].isfinite().all()
    out.backward(torch.ones_like(out))
    assert weight.grad is not None
    assert weight.grad[:, 7].isnan().all()
    grown = torch.randn(4, 256, requires_grad=True)
    back = torch.ones(4, 64)
    back[2, 3] = bad
    Fp8Products().linear(grown, weight).backward(back)
    assert grown.grad is not None
    assert grown.grad.isnan().any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("shape", [(0, 128), (2, 0, 128), (3, 2, 128)])
def test_leading_dimensions_stay_and_there_may_be_no_rows(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(40, 128, requires_grad=True)
    out = Fp8Products().linear(x, weight)
    assert out.shape == (*shape[:-1], 40)
    out.sum().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.shape == shape
    assert bool(weight.grad.any()) == (x.numel() > 0)


def test_a_processor_without_bf16_products_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(64, 256).bfloat16(), torch.randn(32, 256)
    wanted = Fp8Products(power_of_two=True).linear(x, weight)
    monkeypatch.setattr(fp8_emulation, "_multiplies_bf16", lambda: False)
    found = Fp8Products(power_of_two=True).linear(x, weight)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)


def test_a_pass_without_gradients_rounds_nothing_for_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def columns(*_: Any) -> Any:
        raise AssertionError("asked for")

    monkeypatch.setattr(fp8_emulation.Emulation, "columns", columns)
    x, weight = torch.randn(4, 32).bfloat16(), torch.randn(16, 32, requires_grad=True)
    with torch.no_grad():
        assert Fp8Products().linear(x, weight).shape == (4, 16)
    with pytest.raises(AssertionError, match="asked for"):
        Fp8Products().linear(x, weight)


def test_tiles_of_an_input_that_is_gone_are_let_go() -> None:
    products, weight = Fp8Products(), torch.randn(16, 32)
    x = torch.randn(4, 32).bfloat16()
    products.linear(x, weight)
    tiles = weakref.ref(fp8_training._remembered.inputs[-1])
    products.linear(x, weight)
    assert tiles() is fp8_training._remembered.inputs[-1]
    del x
    products.linear(torch.randn(4, 32).bfloat16(), weight)
    assert tiles() is None
