"""Tiles against a plain loop in float64, and the compiled rounding against PyTorch's, bit for bit."""

import math

import pytest
import torch
from torch import Tensor

from deepwell.lm.precision.fp8_tiles import Tiles, quantise, tile_borders
from deepwell.lm.precision.native.library import library

SHAPES = [(1, 128), (128, 1), (128, 128), (300, 200)]

compiled = pytest.mark.skipif(library() is None, reason="installed without a C compiler")


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def values_of_fp8() -> list[float]:
    """All finite values of e4m3, from the definition of the format."""
    small = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    return small + [
        (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        for exponent in range(1, 16)
        for mantissa in range(8)
        if (exponent, mantissa) != (15, 7)
    ]


def rounded(number: float) -> float:
    """The nearest value of e4m3, the one with the even bit pattern where two are as near."""
    table = values_of_fp8()
    size = abs(number)
    best = min(range(len(table)), key=lambda index: (abs(table[index] - size), index % 2))
    return math.copysign(table[best], number)


def written_out(x: Tensor, height: int, width: int, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """Values (unscaled) and scales, one tile after the other."""
    rows, columns = x.shape
    values = torch.zeros(rows, columns)
    scales = torch.zeros(-(-rows // height), -(-columns // width))
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            tile = x[top : top + height, left : left + width].float()
            scale = torch.tensor(max(float(tile.abs().max()), 1e-4)).div(448)
            if power_of_two:
                scale = torch.tensor(2.0 ** math.ceil(math.log2(float(scale))))
            scales[top // height, left // width] = scale
            each = [rounded(float(one)) for one in (tile / scale).flatten()]
            values[top : top + height, left : left + width] = torch.tensor(each).view(tile.shape)
    return values, scales


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setenv("DEEPWELL_NATIVE", "off")
    elif library() is None:
        pytest.skip("installed without a C compiler")
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 16), (16, 1), (16, 16), (21, 37)])
def test_tiles_are_those_of_a_plain_loop(height: int, width: int, power_of_two: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(21, 37) * torch.randn(21, 1).exp()).to(dtype)  # partial tiles at both edges
    x[3] = 0
    x[5] *= 1e-9
    tiles = quantise(x, height, width, power_of_two=power_of_two)
    values, scales = written_out(x, height, width, power_of_two)
    assert torch.equal(tiles.scales, scales)
    assert torch.equal(tiles.values.float(), values)
    wide = scales.repeat_interleave(height, 0)[:21].repeat_interleave(width, 1)[:, :37]
    assert torch.equal(tiles.dequantised(), values * wide)
    assert torch.equal(tiles.dequantised(torch.bfloat16), (values * wide).bfloat16())
    if power_of_two:
        assert torch.equal(tiles.dequantised(torch.bfloat16).float(), values * wide)  # exact


@compiled
@pytest.mark.parametrize("scale", [1.0, 3.7e-5, 1 / 3])
def test_every_bf16_is_rounded_as_torch_rounds_it(scale: float) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = every[every.isfinite()]
    for x in (finite, finite.float() * scale, every[every.float().abs() < 2.0**-100]):
        inside = x[x.float().abs() <= 448][:, None]
        tiles = quantise(torch.cat([inside, inside.new_tensor([[448.0]])]), 2**17, 1)  # so the scale is 1
        assert float(tiles.scales) == 1
        assert torch.equal(bits(tiles.values[:-1]), bits(inside.float().to(torch.float8_e4m3fn)))


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_compiled_and_not_give_the_same_bits(
    height: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    x = (torch.randn(300, 200) * torch.randn(300, 1).mul(6).exp()).to(dtype)
    x[7, 9], x[150, 180], x[299, 0] = torch.inf, torch.nan, -torch.inf
    for power_of_two in (False, True):
        for ends in (None, (0, 5, 5, 140, 300)):
            found: list[tuple[Tiles, Tensor, Tensor]] = []
            for native in ("auto", "off"):
                monkeypatch.setenv("DEEPWELL_NATIVE", native)
                tiles = quantise(x[:, :150], height, width, power_of_two=power_of_two, ends=ends)
                found.append((tiles, tiles.dequantised(), tiles.dequantised(torch.bfloat16)))
            (one, *wide), (other, *also_wide) = found
            assert torch.equal(bits(one.values) & 0x7F, bits(other.values) & 0x7F)  # a NaN may have either sign
            assert torch.equal(one.dequantised().nan_to_num(), other.dequantised().nan_to_num())
            assert torch.equal(one.scales.nan_to_num(), other.scales.nan_to_num())
            for a, b in zip(wide, also_wide, strict=True):
                assert torch.equal(a.nan_to_num(), b.nan_to_num())
                assert torch.equal(a.isnan(), b.isnan())


@pytest.mark.usefixtures("way")
def test_all_values_come_back() -> None:
    every = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)[None]
    tiles = Tiles(every, torch.full((1, 2), 0.5), torch.tensor([0, 1]), 128)
    for dtype in (torch.float32, torch.bfloat16):
        found = tiles.dequantised(dtype).float()
        assert torch.equal(found.isnan(), every.float().isnan())
        assert torch.equal(found.nan_to_num(), every.float().mul(0.5).nan_to_num())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_tile_with_a_value_that_is_not_finite_is_nan_and_no_other(bad: float) -> None:
    x = torch.ones(4, 300)
    x[1, 130] = bad
    tiles = quantise(x, 1, 128)
    expected = torch.zeros(4, 300, dtype=torch.bool)
    expected[1, 128:256] = True
    assert torch.equal(tiles.dequantised().isnan(), expected)
    assert torch.equal(tiles.scales.isnan().nonzero(), torch.tensor([[1, 1]]))


@pytest.mark.usefixtures("way")
def test_a_tile_of_zeros_is_zero_and_has_a_scale() -> None:
    tiles = quantise(torch.zeros(3, 130), 1, 128)
    assert not tiles.dequantised().any()
    assert torch.equal(tiles.scales, torch.full((3, 2), 1e-4) / 448)


@pytest.mark.usefixtures("way")
def test_nothing_has_tiles_too() -> None:
    assert quantise(torch.zeros(0, 130), 1, 128).dequantised().shape == (0, 130)
    assert quantise(torch.zeros(0, 130), 128, 1, ends=(0, 0)).scales.shape == (0, 130)


def test_tiles_start_anew_behind_each_group() -> None:
    assert tile_borders(300, 128).tolist() == [0, 128, 256, 300]
    assert tile_borders(256, 128).tolist() == [0, 128, 256]
    assert tile_borders(300, 128, (0, 130, 130, 300)).tolist() == [0, 128, 130, 258, 300]
    x = torch.randn(300, 4)
    together = quantise(x, 128, 1, ends=(130, 300))
    apart = [quantise(part, 128, 1) for part in x.split([130, 170])]
    assert torch.equal(together.dequantised(), torch.cat([one.dequantised() for one in apart]))


@compiled
def test_threads_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1200, 512)
    alone = quantise(x, 1, 128)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shared = quantise(x, 1, 128)
    assert torch.equal(bits(alone.values), bits(shared.values))
    assert torch.equal(alone.scales, shared.scales)
    assert torch.equal(alone.dequantised(), shared.dequantised())
