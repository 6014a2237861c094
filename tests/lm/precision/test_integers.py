"""Weights of 8 and 4 bits: GGUF's own grids come back exactly, and the error is what the bits allow."""

import math

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from deepwell.errors import ModelFormatError, UsageError
from deepwell.lm.precision.integers import GROUP, QuantisationError, QuantisedMatrix, error_of, quantise


def normal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.04


def through_gguf(weight: torch.Tensor, kind: Kind) -> torch.Tensor:
    """Rounded and widened again by the gguf package, which is not ours."""
    return torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), kind), kind).astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "bits"), [(Kind.Q8_0, 8), (Kind.Q4_0, 4), (Kind.Q4_1, 4)], ids=["Q8_0", "Q4_0", "Q4_1"]
)
def test_what_came_from_a_gguf_file_is_exact(kind: Kind, bits: int) -> None:
    # More groups than one slab; sizes over all that float16 scales hold without becoming subnormal.
    weight = through_gguf(normal(300, 1024) * torch.logspace(-2, 4, 300)[:, None], kind)
    quantised = quantise(weight, bits)
    assert torch.equal(quantised.dequantised(), weight)
    error = error_of(weight, quantised)
    assert (error.lost, error.relative, error.snr_db) == (0, 0, math.inf)
    assert error.power == pytest.approx(float(weight.double().square().sum()))


def test_one_slab_of_a_grid_beside_others_stays_exact() -> None:
    grid, plain = through_gguf(normal(64, 64), Kind.Q4_1), normal(64, 64, seed=1)
    quantised = quantise(torch.cat((grid, plain)), 4).dequantised()
    assert torch.equal(quantised[:64], grid)
    assert not torch.equal(quantised[64:], plain)


def test_shapes_dtypes_and_bytes() -> None:
    weight = normal(3, 96)
    eight, four = quantise(weight, 8), quantise(weight, 4)
    assert (eight.values.dtype, four.values.dtype) == (torch.int8, torch.uint8)
    assert eight.shape == four.shape == weight.shape == eight.values.shape == four.values.shape
    assert eight.scales.shape == four.scales.shape == (3, 96 // GROUP)
    assert eight.scales.dtype == four.scales.dtype == torch.float16
    assert eight.minima is None and four.minima is not None and four.minima.dtype == torch.float16
    assert (eight.bits, four.bits) == (8, 4)
    assert (eight.bytes, four.bytes) == (9 * 34, 9 * 20)
    assert int(eight.values.abs().max()) == 127 and int(four.values.max()) == 15


def test_the_weights_are_computed_in_float32_and_rounded_once() -> None:
    quantised = QuantisedMatrix(
        torch.arange(32, dtype=torch.uint8)[None] % 16, torch.tensor([[0.1]]).half(), torch.tensor([[-3.0]]).half()
    )
    wanted = [float(np.float16(0.1)) * (value % 16) - 3 for value in range(32)]
    assert torch.equal(quantised.dequantised(), torch.tensor([wanted]))
    assert torch.equal(quantised.dequantised(torch.bfloat16), torch.tensor([wanted]).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_weight_is_within_half_a_step(dtype: torch.dtype) -> None:
    weight = normal(40, 64).to(dtype)
    quantised = quantise(weight, 8)
    off = (quantised.dequantised() - weight.float()).abs().view(40, 2, 32).amax(-1)
    # Half a step, and what the largest loses to a scale that float16 rounded down.
    assert bool((off <= quantised.scales.float() * (0.5 + 127 * 2**-11)).all())


def test_the_error_is_what_the_bits_allow() -> None:
    weight = normal(256, 1024)
    eight, four = error_of(weight, quantise(weight, 8)), error_of(weight, quantise(weight, 4))
    assert eight.snr_db == pytest.approx(45.3, abs=0.5)
    assert four.snr_db > through_error(weight, Kind.Q4_0).snr_db + 0.5  # which is 20.5
    assert four.relative == pytest.approx(10 ** (-four.snr_db / 20))


def through_error(weight: torch.Tensor, kind: Kind) -> QuantisationError:
    lost = (through_gguf(weight, kind) - weight).double().square().sum()
    return QuantisationError(float(lost), float(weight.double().square().sum()))


def test_errors_add_up() -> None:
    parts = [normal(8, 64, seed) * scale for seed, scale in ((1, 1.0), (2, 30.0))]
    apart = [error_of(part, quantise(part, 4)) for part in parts]
    together = torch.cat(parts)
    whole = error_of(together, quantise(together, 4))
    total = sum(apart, QuantisationError())
    assert (total.lost, total.power) == pytest.approx((whole.lost, whole.power))


@pytest.mark.parametrize("bits", [8, 4])
def test_groups_of_equal_weights_and_no_rows(bits: int) -> None:
    flat = torch.tensor([0.0, 0.5, -2.0, 6e4])[:, None].expand(4, 32)
    assert torch.allclose(quantise(flat, bits).dequantised(), flat, rtol=5e-4)
    assert quantise(torch.empty(0, 64), bits).dequantised().shape == (0, 64)
    assert error_of(torch.zeros(2, 32), quantise(torch.zeros(2, 32), bits)).relative == 0
    assert QuantisationError().snr_db == math.inf


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_too_small_for_a_scale_become_zero_or_their_minimum(bits: int) -> None:
    tiny = normal(4, 32) * 1e-8
    assert float((quantise(tiny, bits).dequantised() - tiny).abs().max()) <= 2**-25


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 7e4])
def test_numbers_beyond_float16_are_refused(bits: int, bad: float) -> None:
    weight = normal(4, 64)
    weight[2, 40] = bad
    with pytest.raises(ModelFormatError, match=r"layers\.0\.mlp holds -?(nan|inf|70000)"):
        quantise(weight, bits, where="layers.0.mlp")


def test_the_largest_float16_is_not_refused() -> None:
    weight = torch.tensor([65504.0, -65504.0]).repeat(16)[None]
    for bits in (8, 4):
        assert bool(quantise(weight, bits).dequantised().isfinite().all())


def test_other_bits_and_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="weights of 5 bits"):
        quantise(normal(2, 32), 5)
    with pytest.raises(UsageError, match=r"shape \[2, 48\].*groups of 32"):
        quantise(normal(2, 48), 8)
    with pytest.raises(UsageError, match="groups of 32"):
        quantise(torch.zeros(32), 8)
