"""The kernel in Triton's interpreter (see tests/conftest.py) beside the product with widened weights."""

import pytest
import torch

pytest.importorskip("triton")

from deepwell.errors import ModelFormatError
from deepwell.lm.precision.fp8_products import Fp8Matrix, fp8_grouped, fp8_linear, row_tiles, tile_for


def matrix(*shape: int) -> Fp8Matrix:
    weight = torch.randn(*shape)
    weight[..., :3, :5] *= 1000  # scales differ from block to block
    weight[..., -1, :] *= 1e-6  # many of these are subnormal in FP8
    return Fp8Matrix.of(weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 40, 128), (17, 200, 300), (70, 136, 72)])
def test_the_kernel_multiplies_the_weights_that_were_rounded(
    rows: int, columns: int, depth: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weights, bias = matrix(columns, depth), torch.randn(columns).to(dtype)
    x = torch.randn(rows, depth + 8).to(dtype)[:, :depth]
    wanted = x.double() @ weights.dequantised(torch.float64).t() + bias.double()
    found = fp8_linear(x, weights, bias, kernel=True)
    assert found.dtype is dtype
    # The interpreter cuts float32 to bf16 instead of rounding it.
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error < {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 4e-4}[dtype]
    # The same numerics on a CPU.
    torch.testing.assert_close(
        fp8_linear(x, weights, bias), found, rtol=1e-5 if dtype is torch.float32 else 1e-2, atol=1e-2
    )


def test_leading_dimensions_stay() -> None:
    x = torch.randn(2, 3, 128)
    assert fp8_linear(x, matrix(40, 128), kernel=True).shape == (2, 3, 40)
    assert fp8_linear(x[:, :0], matrix(40, 128), kernel=True).shape == (2, 0, 40)


@pytest.mark.parametrize("loads", [[3, 0, 20, 1], [0, 0, 0, 40], [1, 1, 1, 1], [0, 17, 0, 0]])
def test_each_group_is_multiplied_by_its_own_matrix(loads: list[int]) -> None:
    torch.manual_seed(1)
    weights, x = matrix(4, 72, 160), torch.randn(sum(loads), 160)
    ends = torch.tensor(loads).cumsum(0).to(torch.int32)
    wanted = torch.cat([part @ one.t() for part, one in zip(x.split(loads), weights.dequantised(), strict=True)])
    for kernel in (True, False):
        torch.testing.assert_close(fp8_grouped(x, weights, ends, kernel=kernel), wanted, rtol=1e-5, atol=1e-2)


def test_tiles_of_rows_stay_within_their_group() -> None:
    group, first = row_tiles(torch.tensor([3, 3, 23, 24], dtype=torch.int32), 24, 16)
    assert group.tolist() == [0, 2, 2, 3, 4]
    assert first.tolist()[:4] == [0, 3, 19, 23]


def test_all_of_the_numbers_of_fp8_are_read() -> None:
    every = torch.arange(256).to(torch.uint8)
    every[[0x7F, 0xFF]] = 0  # the two NaN
    values = every.view(torch.float8_e4m3fn).view(1, 256)
    x = torch.eye(256)
    found = fp8_linear(x, Fp8Matrix(values, torch.ones(1, 2)), kernel=True)
    assert torch.equal(found[:, 0], values[0].float())


def test_few_rows_take_narrow_tiles() -> None:
    assert tile_for(1) == (16, 32, 4, 4)
    assert tile_for(512) == (128, 128, 8, 2)
    assert tile_for(512, (8, 0)) == (64, 128, 8, 2)
    assert all(128 % tile_for(rows)[1] == 0 for rows in range(1, 300))


def test_a_matrix_with_nan_is_refused() -> None:
    with pytest.raises(ModelFormatError, match="not finite"):
        Fp8Matrix.of(torch.full((4, 4), torch.nan))
