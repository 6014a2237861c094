"""The products of FP8 training on a GPU, by the two kernels of ``fp8_training_kernels``.

The methods are those of ``fp8_emulation.Emulation``, with other layouts: what a product sums over lies together in
memory, so tiles of 128 x 1 are kept transposed, and every group of rows begins there at a multiple of 128, with
zeros between. Where groups end is never asked of the GPU. Sums are float32, and so are gradients of float32 weights.

A GPU without FP8 tensor cores (before capability 8.9) multiplies the same bare values in bf16, which is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepwell.lm.precision.fp8_products import row_tiles
from deepwell.lm.precision.fp8_tiles import TILE, Tiles


@dataclass(frozen=True, slots=True)
class Kernels:
    """The four products with a scale for each tile."""

    power_of_two: bool

    def rows(self, x: Tensor) -> Tiles:
        """``x`` [N, width] in tiles of 1 x 128."""
        values, scales = self._rounded(x, _even_tiles(x, 1), transposed=False, whole=False)
        return Tiles(values.view(torch.float8_e4m3fn), scales, torch.arange(x.shape[0] + 1), TILE)

    def columns(self, x: Tensor, offsets: Tensor | None = None) -> Tiles:
        """``x`` [N, width] in tiles of 128 x 1, transposed: values [width, T * 128], scales [width, T] for T tiles."""
        values, scales = self._rounded(x, _token_tiles(x, offsets), transposed=True, whole=False)
        return Tiles(values.view(torch.float8_e4m3fn), scales, torch.arange(x.shape[1] + 1), TILE)

    def forward(self, rows: Tiles, weight: Tensor, offsets: Tensor | None, dtype: torch.dtype) -> Tensor:
        """``x W^T``, ``rows`` being ``rows(x)``: [N, in] -> [N, out] in ``dtype``."""
        flat = weight.detach().flatten(0, -2)
        groups = flat.shape[0] // weight.shape[-2]
        values, scales = self._rounded(flat, _even_tiles(flat, groups), transposed=False, whole=True)
        out = torch.empty(rows.values.shape[0], weight.shape[-2], dtype=dtype, device=weight.device)
        by_group = (weight.shape[-2] * values.stride(0), scales.shape[0] // groups * scales.stride(0))
        return _by_rows(rows, values, scales, by_group, weight.shape[-1], out, offsets, groups)

    def grad_input(self, grad: Tensor, weight: Tensor, offsets: Tensor | None) -> Tensor:
        """``grad W``: [N, out] -> [N, in] in the dtype of ``grad``."""
        flat = weight.detach().flatten(0, -2)
        groups = flat.shape[0] // weight.shape[-2]
        values, scales = self._rounded(flat, _even_tiles(flat, groups), transposed=True, whole=True)
        out = torch.empty(grad.shape[0], weight.shape[-1], dtype=grad.dtype, device=weight.device)
        by_group = (values.shape[1] // groups, scales.shape[1] // groups)
        return _by_rows(self.rows(grad), values, scales, by_group, weight.shape[-2], out, offsets, groups)

    def grad_weight(
        self, grad: Tensor, values: Tensor, scales: Tensor, weight: Tensor, offsets: Tensor | None
    ) -> Tensor:
        """``grad^T x`` over the tokens of each group, ``values`` and ``scales`` being ``columns(x)``; as ``weight``."""
        left = self.columns(grad, offsets)
        out = torch.empty_like(weight)
        ends = _ends(grad, offsets)
        steps_end = ((ends - torch.nn.functional.pad(ends[:-1], (1, 0)) + TILE - 1) // TILE).cumsum(0).to(torch.int32)
        _multiply(
            left.values, left.scales, values, scales, (0, 0), values.shape[1], out,
            (None, None, None), steps_end, grad.shape[1], len(ends),
        )  # fmt: skip
        return out

    def _rounded(
        self, x: Tensor, tiles: tuple[Tensor, Tensor], *, transposed: bool, whole: bool
    ) -> tuple[Tensor, Tensor]:
        from deepwell.lm.precision.fp8_training_kernels import round_tiles

        if x.stride(-1) != 1:
            x = x.contiguous()
        (rows, columns), count, across = x.shape, len(tiles[0]), -(-x.shape[1] // TILE)
        values = torch.empty(
            (columns, count * TILE) if transposed else (rows, columns), dtype=torch.uint8, device=x.device
        )
        scale_shape = (count, across) if whole else (rows, across)
        if transposed:
            scale_shape = (across, count) if whole else (columns, count)
        scales = torch.empty(scale_shape, dtype=torch.float32, device=x.device)
        if count and across:
            with torch.cuda.device_of(x):
                round_tiles[(count, across)](
                    x, values, scales, *tiles, columns, x.stride(0), values.stride(0), scales.stride(0),
                    transposed=transposed, whole=whole, power_of_two=self.power_of_two,
                    has_fp8=_capability(x) >= (8, 9), block=TILE, num_warps=8,
                )  # fmt: skip
        return values, scales


def _by_rows(
    rows: Tiles, values: Tensor, scales: Tensor, by_group: tuple[int, int], depth: int, out: Tensor,
    offsets: Tensor | None, groups: int,
) -> Tensor:  # fmt: skip
    """Rows of each group by its matrix."""
    ends = _ends(out, offsets)
    if len(out):
        tile = tile_for(-(-len(out) // groups), False, _capability(out))[0]
        group, first = row_tiles(ends, len(out), tile)
        end = ends[group.clamp_max(groups - 1).long()]
        _multiply(
            rows.values, rows.scales, values, scales, by_group, depth, out, (first, end, group), None, len(out), groups
        )
    return out


def _multiply(
    left: Tensor, left_scales: Tensor, right: Tensor, right_scales: Tensor, by_group: tuple[int, int], depth: int,
    out: Tensor, tiles: tuple[Any, Any, Any], steps_end: Tensor | None, rows: int, groups: int,
) -> None:  # fmt: skip
    from deepwell.lm.precision.fp8_training_kernels import multiply_tiles
    from deepwell.lm.precision.operands import operand

    by_depth = steps_end is not None
    row_tile, column_tile, warps, stages = tile_for(
        rows if by_depth else -(-rows // groups), by_depth, _capability(out)
    )
    columns = out.shape[-1]
    down, across = -(-rows // row_tile) if by_depth else len(tiles[0]), -(-columns // column_tile)
    with torch.cuda.device_of(out):
        multiply_tiles[(down, across, groups if by_depth else 1)](
            left.view(torch.uint8), left_scales, right.view(torch.uint8), right_scales, out, *tiles, steps_end,
            rows, columns, depth, groups, left.stride(0), left_scales.stride(0), right.stride(0), by_group[0],
            right_scales.stride(0), by_group[1], by_depth=by_depth, by_block=not by_depth,
            has_fp8=_capability(out) >= (8, 9), row_tile=row_tile, column_tile=column_tile, block=TILE,
            operand=operand(torch.bfloat16), num_warps=warps, num_stages=stages,
        )  # fmt: skip


def tile_for(rows: int, by_depth: bool = False, capability: tuple[int, int] = (9, 0)) -> tuple[int, int, int, int]:
    """Rows and columns of a tile of the result, warps and stages of loading, for groups of so many rows.

    Two scales to multiply by (``by_depth``: each column of both sides has its own), or tensor cores before Hopper's
    (capability 9.0), leave no registers for the sums of the largest tile.
    """
    if rows <= 32:
        return (32, 128, 4, 4) if capability >= (9, 0) else (32, 128, 8, 2)
    if capability < (9, 0):
        return 64, 128, 8, 2
    return (64, 128, 4, 3) if rows <= 256 or by_depth else (128, 128, 8, 3)


def _even_tiles(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The tiles of ``groups`` stretches of rows of one length: their first rows, and one behind their last."""
    each = x.shape[0] // groups
    start = torch.arange(groups, device=x.device, dtype=torch.int32)[:, None] * each
    first = torch.arange(0, each, TILE, device=x.device, dtype=torch.int32)
    return (start + first).flatten(), (start + (first + TILE).clamp_max(each)).flatten()


def _token_tiles(x: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Likewise for stretches that end at ``offsets``; more tiles than are used, the others empty."""
    if offsets is None:
        return _even_tiles(x, 1)
    group, first = row_tiles(offsets, x.shape[0], TILE)
    end = torch.minimum(first + TILE, offsets[group.clamp_max(len(offsets) - 1).long()])
    return first, end.masked_fill(group == len(offsets), 0).to(torch.int32)


def _ends(x: Tensor, offsets: Tensor | None) -> Tensor:
    return torch.full((1,), x.shape[0], dtype=torch.int32, device=x.device) if offsets is None else offsets


def _capability(tensor: Tensor) -> tuple[int, int]:
    """Of the GPU that holds it; (0, 0) in Triton's interpreter."""
    return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (0, 0)
