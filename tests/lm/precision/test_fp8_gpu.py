"""The kernels of FP8 training in Triton's interpreter (see tests/conftest.py) beside the emulation."""

import pytest
import torch

pytest.importorskip("triton")

from deepwell.lm.precision.fp8_emulation import Emulation
from deepwell.lm.precision.fp8_gpu import Kernels, tile_for


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(128, 128), (130, 200), (3, 72)])
def test_rows_and_columns_are_rounded_to_the_same_bits(rows: int, width: int, power_of_two: bool) -> None:
    torch.manual_seed(0)
    x = (torch.randn(rows, width) * torch.randn(rows, 1).mul(4).exp())[:, : width - 8].bfloat16()
    kernels, wanted = Kernels(power_of_two), Emulation(True, power_of_two)
    ours, theirs = kernels.rows(x), wanted.rows(x)
    assert torch.equal(bits(ours.values), bits(theirs.values))
    assert torch.equal(ours.scales, theirs.scales)
    assert torch.equal(ours.dequantised(torch.bfloat16), theirs.dequantised(torch.bfloat16))
    turned, plain = kernels.columns(x), wanted.columns(x)
    assert torch.equal(bits(turned.values[:, :rows]), bits(plain.values.view(torch.uint8).t()))
    assert not bits(turned.values[:, rows:]).any()
    assert torch.equal(turned.scales.t(), plain.scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(130, 200, 72), (5, 128, 136)])
def test_the_three_products_of_a_linear_layer(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x, grad = torch.randn(rows, inputs).to(dtype), torch.randn(rows, outputs).to(dtype)
    weight = torch.randn(outputs, inputs)
    compare(x, grad, weight, None)


@pytest.mark.parametrize("loads", [[3, 0, 140, 1], [0, 0, 0, 40]])
def test_the_three_products_of_experts(loads: list[int]) -> None:
    torch.manual_seed(2)
    x, grad, weight = torch.randn(sum(loads), 160), torch.randn(sum(loads), 72), torch.randn(4, 72, 160)
    compare(x, grad, weight, torch.tensor(loads).cumsum(0).to(torch.int32))


def compare(x: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor | None) -> None:
    """Of the same rounded operands, so no more apart than sums in another order (and bf16's last bit)."""
    kernels, emulation = Kernels(True), Emulation(True, True)
    limit = 1e-6 if x.dtype is torch.float32 else 2e-2
    for ours, theirs in (
        (
            kernels.forward(kernels.rows(x), weight, offsets, x.dtype),
            emulation.forward(emulation.rows(x), weight, offsets, x.dtype),
        ),
        (kernels.grad_input(grad, weight, offsets), emulation.grad_input(grad, weight, offsets)),
        tuple(
            one.grad_weight(grad, kept.values, kept.scales, weight, offsets)
            for one in (kernels, emulation)
            for kept in (one.columns(x, offsets),)
        ),
    ):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
        assert float(error) < limit


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    x, weight = torch.randn(5, 256), torch.randn(16, 256)
    x[2, 200] = bad
    kernels = Kernels(False)
    out = kernels.forward(kernels.rows(x), weight, None, torch.float32)
    assert out.isnan().any(1).tolist() == [False, False, True, False, False]
    assert kernels.columns(x).scales.isnan().any(1).nonzero().flatten().tolist() == [200]


def test_no_rows_make_no_result_and_zero_gradients() -> None:
    kernels, x, weight = Kernels(False), torch.randn(0, 128), torch.randn(16, 128)
    assert kernels.forward(kernels.rows(x), weight, None, torch.float32).shape == (0, 16)
    kept = kernels.columns(x)
    assert not kernels.grad_weight(torch.randn(0, 16), kept.values, kept.scales, weight, None).any()


def test_fewer_rows_and_older_gpus_take_smaller_tiles() -> None:
    assert [tile_for(rows)[:2] for rows in (1, 200, 5000)] == [(32, 128), (64, 128), (128, 128)]
    assert tile_for(5000, by_depth=True)[0] == 64
    assert tile_for(5000, capability=(8, 0))[0] == 64
