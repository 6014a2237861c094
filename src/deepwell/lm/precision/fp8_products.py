"""Products with FP8 weights that stay FP8 in memory: half the bytes of bf16, which is what decoding waits for.

Weights are e4m3 with one float32 scale for each block of 128 x 128 (see ``fp8``), inputs stay what they are. On a GPU a
Triton kernel multiplies; elsewhere weights are widened for the product. Both multiply exact weights and sum in float32,
so they differ in the order of sums alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deepwell.lm.precision.fp8 import dequantize_blocks, quantize_blocks

_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    """A matrix [out, in], or several of one shape [E, out, in].

    ``values`` float8_e4m3fn of that shape; ``scales`` float32 [ceil(out / 128), ceil(in / 128)], with E before it where
    there are several.
    """

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Fp8Matrix:
        """Round a weight [out, in] or [E, out, in] of any floating dtype.

        Raises:
            ModelFormatError: It holds a value that is not finite.
        """
        if weight.dim() == 2:
            return cls(*quantize_blocks(weight))
        each = [quantize_blocks(one) for one in weight]
        return cls(torch.stack([values for values, _ in each]), torch.stack([scales for _, scales in each]))

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights that this stands for."""
        if self.values.dim() == 2:
            return dequantize_blocks(self.values, self.scales, dtype=dtype)
        pairs = zip(self.values, self.scales, strict=True)
        return torch.stack([dequantize_blocks(values, scales, dtype=dtype) for values, scales in pairs])


def fp8_linear(x: Tensor, matrix: Fp8Matrix, bias: Tensor | None = None, *, kernel: bool | None = None) -> Tensor:
    """``x W^T + b``.

    Args:
        x: [..., in], bf16, f16 or f32.
        matrix: [out, in].
        bias: [out].
        kernel: Whether Triton multiplies; None: on a GPU.

    Returns:
        [..., out] in the dtype of ``x``.
    """
    if not (x.is_cuda if kernel is None else kernel):
        wide = F.linear(x.float(), matrix.dequantised(), None if bias is None else bias.float())
        return wide.to(x.dtype)
    out: Tensor = _launch(x.flatten(0, -2), matrix, bias, None).unflatten(0, x.shape[:-1])
    return out


def fp8_grouped(x: Tensor, matrix: Fp8Matrix, ends: Tensor, *, kernel: bool | None = None) -> Tensor:
    """Rows that stand in groups, each group by a matrix of its own.

    Args:
        x: [N, in], sorted by group.
        matrix: [E, out, in].
        ends: [E] int32: one behind the last row of each group; groups may be empty.
        kernel: As for ``fp8_linear``.

    Returns:
        [N, out] in the dtype of ``x``.
    """
    if not (x.is_cuda if kernel is None else kernel):
        out, start = x.new_empty(x.shape[0], matrix.values.shape[1]), 0
        for index, end in enumerate(ends.tolist()):
            if end > start:
                one = Fp8Matrix(matrix.values[index], matrix.scales[index])
                out[start:end] = fp8_linear(x[start:end], one, kernel=False)
            start = end
        return out
    return _launch(x, matrix, None, ends)


def row_tiles(ends: Tensor, rows: int, row_tile: int) -> tuple[Tensor, Tensor]:
    """Tiles of rows that stay within a group, found without asking the GPU how many there are.

    Args:
        ends: [E] int32.
        rows: In all groups together.
        row_tile: Rows of a tile; the last tile of a group may have fewer.

    Returns:
        The group of each tile and its first row, both int32 [rows // row_tile + E], more than are ever needed: those
        behind the last have the group E.
    """
    starts = F.pad(ends[:-1], (1, 0))
    tiles = (ends - starts + row_tile - 1) // row_tile
    tile_ends = tiles.cumsum(0)
    tile = torch.arange(rows // row_tile + ends.shape[0], device=ends.device)
    group = torch.searchsorted(tile_ends, tile, right=True)
    known = group.clamp_max(ends.shape[0] - 1)
    first = starts[known] + (tile - (tile_ends - tiles)[known]) * row_tile
    return group.to(torch.int32), first.to(torch.int32)


def tile_for(rows: int, capability: tuple[int, int] = (9, 0)) -> tuple[int, int, int, int]:
    """Rows and columns of a tile, warps and stages of loading, for a product of so many rows.

    Before Hopper (capability 9.0), sums of a larger tile do not fit into the registers.
    """
    if rows <= 16:
        return 16, 32, 4, 4  # many programs, because reading the weights is all there is to do
    if rows <= 64:
        return 32, 64, 4, 3 if capability >= (9, 0) else 2
    return (128, 128, 8, 2) if capability >= (9, 0) else (64, 128, 8, 2)


def _launch(x: Tensor, matrix: Fp8Matrix, bias: Tensor | None, ends: Tensor | None) -> Tensor:
    import triton

    from deepwell.lm.precision.fp8_kernels import multiply_blocks
    from deepwell.lm.precision.operands import operand

    if x.stride(-1) != 1:
        x = x.contiguous()
    rows, depth = x.shape
    columns = matrix.values.shape[-2]
    groups = 1 if ends is None else ends.shape[0]
    out = x.new_empty(rows, columns)
    if not rows:
        return out
    capability = torch.cuda.get_device_capability(x.device) if x.is_cuda else (0, 0)
    row_tile, column_tile, warps, stages = tile_for(-(-rows // groups), capability)
    tile_group = tile_first = ends
    tiles = -(-rows // row_tile)
    if ends is not None:
        tile_group, tile_first = row_tiles(ends, rows, row_tile)
        tiles = tile_group.shape[0]
    with torch.cuda.device_of(x):
        multiply_blocks[(triton.cdiv(columns, column_tile), tiles)](
            x,
            matrix.values.view(torch.uint8),
            matrix.scales,
            bias,
            out,
            tile_group,
            tile_first,
            ends,
            rows,
            columns,
            depth,
            groups,
            x.stride(0),
            matrix.scales.shape[-2],
            matrix.scales.shape[-1],
            grouped=ends is not None,
            has_bias=bias is not None,
            has_fp8=capability >= (8, 9),
            row_tile=row_tile,
            column_tile=column_tile,
            block=_BLOCK,
            operand=operand(x.dtype),
            num_warps=warps,
            num_stages=stages,
        )
    return out
