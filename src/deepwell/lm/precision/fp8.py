"""FP8 weights with one scale for every block, as DeepSeek's checkpoints hold them.

A matrix is cut into blocks of 128 x 128 (those at the edges are smaller: 576 rows make 5 rows of blocks). Each block is
divided by one float32 so that its largest value becomes 448, the largest that ``float8_e4m3fn`` can say, and is then
rounded to those 8 bits. The file keeps the float32s beside the matrix as ``weight_scale_inv``; in spite of its name it
is what one *multiplies* by to get the weights back (V3 report, section 3.3; ``kernel.py`` of the published inference
code). V3.1 and later restrict the scales to powers of two ("ue8m0"), rounded up so that nothing overflows.

Both functions work through one row of blocks after the other, so beside their result they hold a few megabytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepwell.errors import ModelFileError, ModelFormatError

LARGEST = 448.0
"""The largest finite value of ``float8_e4m3fn``."""
SMALLEST_AMAX = 1e-4
"""A block whose largest value lies below this is scaled as if it were this: a block of zeros has a scale too."""
_SIGN_AND_VALUE = -0x4080
"""Clears what widening a negative number to 16 bits put between its sign and the rest."""


def quantize_blocks(
    w: Tensor, *, block: tuple[int, int] = (128, 128), power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """Cut a matrix into blocks and round each to FP8 with a scale of its own.

    Args:
        w: ``[rows, columns]``, any floating dtype.
        block: Rows and columns of a block.
        power_of_two: Round each scale up to a power of two.

    Returns:
        ``[rows, columns]`` in ``float8_e4m3fn``, and ``scale_inv`` ``[ceil(rows / 128), ceil(columns / 128)]`` in
        float32, the multiplier that undoes it.

    Raises:
        ModelFormatError: The matrix holds a value that is not finite.
    """
    rows, columns = w.shape
    quantized = torch.empty(w.shape, dtype=torch.float8_e4m3fn, device=w.device)
    scale_inv = torch.empty(scale_shape((rows, columns), block), dtype=torch.float32, device=w.device)
    for index, begin in enumerate(range(0, rows, block[0])):
        band = w[begin : begin + block[0]].to(torch.float32)
        column_amax = band.abs().amax(dim=0)
        padded = torch.nn.functional.pad(column_amax, (0, -columns % block[1]))
        amax = padded.view(-1, block[1]).amax(dim=1)
        if not bool(amax.isfinite().all()):
            raise ModelFormatError(
                f"rows {begin} to {begin + len(band)} hold a value that is not finite: no scale fits",
                hint="the weights are damaged; training that diverged leaves such values",
            )
        scale = amax.clamp(min=SMALLEST_AMAX) / LARGEST
        if power_of_two:
            scale = _up_to_power_of_two(scale)
        scale_inv[index] = scale
        quantized[begin : begin + block[0]] = (band / _by_column(scale, block[1], columns)).to(torch.float8_e4m3fn)
    return quantized, scale_inv


def dequantize_blocks(
    q: Tensor, scale_inv: Tensor, *, dtype: torch.dtype, block: tuple[int, int] = (128, 128), where: str = "the matrix"
) -> Tensor:
    """Multiply each block by its scale, in float32.

    Args:
        q: ``[rows, columns]``, ``float8_e4m3fn``.
        scale_inv: ``[ceil(rows / 128), ceil(columns / 128)]``, float32.
        dtype: Of the result; the product is rounded to it once.
        block: Rows and columns of a block.
        where: What to call the matrix in messages: file and tensor.

    Returns:
        ``[rows, columns]`` in ``dtype``.

    Raises:
        ModelFileError: There are too few or too many scales, or one is NaN, infinite or negative.
    """
    check_scales(scale_inv, (q.shape[0], q.shape[1]), block=block, where=where)
    weights = torch.empty(q.shape, dtype=dtype, device=q.device)
    if not q.numel():
        return weights
    # The bytes of NaN are 127, the largest with a sign, and 255, the largest without.
    plain = int(q.view(torch.int8).max()) < 127 and int(q.view(torch.uint8).max()) < 255
    product = _vector_product if plain and float(scale_inv.max()) < 2.0**100 else _any_product
    for index, begin in enumerate(range(0, q.shape[0], block[0])):
        scale = _by_column(scale_inv[index], block[1], q.shape[1])
        weights[begin : begin + block[0]] = product(q[begin : begin + block[0]], scale)
    return weights


def check_scales(scale_inv: Tensor, shape: tuple[int, int], *, block: tuple[int, int], where: str) -> None:
    """Refuse scales that cannot belong to a matrix of this shape.

    Raises:
        ModelFileError: The shape does not fit, or a scale is NaN, infinite or negative; names the first such block.
    """
    expected = scale_shape(shape, block)
    if tuple(scale_inv.shape) != expected:
        raise ModelFileError(
            f"{where}: {list(scale_inv.shape)} scales, and a matrix of {list(shape)} in blocks of {list(block)} "
            f"has {list(expected)}",
            hint="check weight_block_size of quantization_config in config.json, or fetch the file again",
        )
    bad = ~(scale_inv.isfinite() & (scale_inv >= 0))
    if bool(bad.any()):
        row, column = (int(value) for value in bad.nonzero()[0])
        raise ModelFileError(
            f"{where}: the scale of block ({row}, {column}) is {float(scale_inv[row, column])}",
            hint="the file is damaged: fetch it again",
        )


def scale_shape(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks a matrix has, down and across; partial blocks count."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def _by_column(scale: Tensor, width: int, columns: int) -> Tensor:
    """The scales of one row of blocks, repeated for each column: ``[columns]``."""
    return scale.repeat_interleave(width)[:columns]


def _any_product(q: Tensor, scale: Tensor) -> Tensor:
    """``q`` in float32, each column times its scale, rounded once."""
    return q.to(torch.float32).mul_(scale)


def _vector_product(q: Tensor, scale: Tensor) -> Tensor:
    """The same values where no NaN is, 7 times as fast.

    torch converts FP8 one number at a time. Its bits, moved up by 7, are a float16 that is 256 times too small, and
    float16 converts in vectors. NaN alone has no such float16.
    """
    half = q.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(_SIGN_AND_VALUE)
    return half.view(torch.float16).to(torch.float32).mul_(scale * 256)


def _up_to_power_of_two(scale: Tensor) -> Tensor:
    """2 ** ceil(log2(scale)), exact: the exponent is read, not computed by a logarithm that could round."""
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2 ** exponent, mantissa in [0.5, 1)
    return torch.ldexp(torch.ones_like(scale), torch.where(mantissa == 0.5, exponent - 1, exponent))
