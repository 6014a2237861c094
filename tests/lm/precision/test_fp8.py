"""FP8 with block scales: equal bit for bit to a plain loop over blocks."""

import math

import pytest
import torch

from deepwell.errors import ModelFileError, ModelFormatError
from deepwell.lm.precision.fp8 import check_scales, dequantize_blocks, quantize_blocks, scale_shape


def _plain_quantize(w: torch.Tensor, block: tuple[int, int], power_of_two: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule of kernel.py, block by block and nothing else."""
    rows, columns = math.ceil(w.shape[0] / block[0]), math.ceil(w.shape[1] / block[1])
    q = torch.empty(w.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            part = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            values = w[part].float()
            scale = values.abs().max().clamp(min=1e-4) / 448
            if power_of_two:
                scale = torch.tensor(2.0 ** math.ceil(math.log2(scale.item())))
            q[part] = (values / scale).to(torch.float8_e4m3fn)
            scales[i, j] = scale
    return q, scales


def _plain_dequantize(
    q: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, block: tuple[int, int]
) -> torch.Tensor:
    w = torch.empty(q.shape, dtype=dtype)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            w[part] = (q[part].float() * scales[i, j]).to(dtype)
    return w


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[values.element_size()])


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize(
    ("shape", "block"),
    [((576, 256), (128, 128)), ((1, 1), (128, 128)), ((130, 127), (128, 128)), ((64, 96), (32, 32)), ((7, 9), (4, 2))],
)
def test_equals_a_plain_loop_bit_for_bit(shape: tuple[int, int], block: tuple[int, int], power_of_two: bool) -> None:
    generator = torch.Generator().manual_seed(shape[0])
    w = torch.randn(shape, generator=generator) * torch.logspace(-6, 3, shape[1])
    w[: block[0], : block[1]] = 0
    q, scales = quantize_blocks(w, block=block, power_of_two=power_of_two)
    plain_q, plain_scales = _plain_quantize(w, block, power_of_two)
    assert torch.equal(_bits(q), _bits(plain_q))
    assert torch.equal(scales, plain_scales)
    assert tuple(scales.shape) == scale_shape(shape, block)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weights = dequantize_blocks(q, scales, dtype=dtype, block=block)
        assert weights.dtype == dtype
        assert torch.equal(_bits(weights), _bits(_plain_dequantize(q, scales, dtype, block)))


def test_576_rows_make_five_blocks_and_zeros_stay_zero() -> None:
    q, scales = quantize_blocks(torch.zeros(576, 256))
    assert scales.shape == (5, 2)
    assert torch.equal(dequantize_blocks(q, scales, dtype=torch.float32), torch.zeros(576, 256))


def test_the_scale_multiplies() -> None:
    w = torch.full((128, 128), 896.0)
    q, scales = quantize_blocks(w)
    assert scales.item() == 2.0
    assert torch.equal(dequantize_blocks(q, scales, dtype=torch.float32), w)


def test_a_power_of_two_scale_is_kept_and_any_other_rounds_up() -> None:
    for amax, expected in ((448.0, 1.0), (449.0, 2.0), (448 * 0.3, 0.5), (448 * 2.0**-20, 2.0**-20)):
        assert quantize_blocks(torch.full((1, 1), amax), power_of_two=True)[1].item() == expected


def test_values_are_kept_to_a_sixteenth_and_a_second_round_trip_changes_nothing() -> None:
    w = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    once = dequantize_blocks(*quantize_blocks(w, power_of_two=True), dtype=torch.float32)
    error = (once - w).abs()
    assert bool((error <= w.abs() / 16 + 448 * 2.0**-17).all())
    assert torch.equal(dequantize_blocks(*quantize_blocks(once, power_of_two=True), dtype=torch.float32), once)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_scale_that_is_no_scale_is_refused_with_its_block(bad: float) -> None:
    q, scales = quantize_blocks(torch.randn(300, 200))
    scales[2, 1] = bad
    with pytest.raises(ModelFileError, match=r"shard\.safetensors: w: the scale of block \(2, 1\)"):
        dequantize_blocks(q, scales, dtype=torch.float32, where="shard.safetensors: w")


def test_scales_of_another_matrix_are_refused() -> None:
    q, scales = quantize_blocks(torch.randn(576, 128))
    with pytest.raises(ModelFileError, match=r"\[4, 1\] scales.*has \[5, 1\]"):
        dequantize_blocks(q, scales[:4], dtype=torch.float32)
    with pytest.raises(ModelFileError, match="block_size"):
        check_scales(scales, (576, 128), block=(64, 64), where="w")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    w = torch.zeros(300, 10)
    w[140, 3] = bad
    with pytest.raises(ModelFormatError, match="rows 128 to 256"):
        quantize_blocks(w)


@pytest.mark.parametrize("scale", [1.0, 3.7e-5, 2.0**-140, 2.0**110])
@pytest.mark.parametrize("finite", [True, False])
def test_each_of_the_256_values_is_exact(scale: float, finite: bool) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    if finite:
        every = every[(every & 127) != 127]
    q = every.view(torch.float8_e4m3fn)[None]
    weights = dequantize_blocks(q, torch.full((1, 2), scale)[:, : -(-len(every) // 128)], dtype=torch.float32)
    expected = q.float() * torch.tensor(scale)
    assert torch.equal(weights.isnan(), expected.isnan())
    assert torch.equal(_bits(weights.nan_to_num()), _bits(expected.nan_to_num()))
    assert finite != bool(weights.isnan().any())
