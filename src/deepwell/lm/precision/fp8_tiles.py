"""FP8 with a scale for every tile, found while training (V3 report, section 3.3.2).

A tile's largest value right now becomes 448, the largest of ``float8_e4m3fn``; no history of earlier steps is kept. An
outlier then coarsens the 127 values beside it and not a whole tensor. Three shapes are in use:

    1 x 128     activations and their gradients, along the dimension that a product sums over
    128 x 1     the same along the tokens, for the product that sums over tokens: the gradient of a weight
    128 x 128   weights; the same blocks serve the product with W and with its transpose

and one scale for a whole tensor, to compare with. Tiles at the edges are smaller. Rows may stand in groups (experts);
no tile reaches over the end of a group.

A tile that holds a NaN or an infinity becomes NaN as a whole, scale and values: so a product says it, and the guard of
the training loop sees it.

Several passes over a tensor in PyTorch, and torch's slow way back from FP8, cost as much as a small product. So
``native/tiles.c`` does the same in C, with the same result bit for bit: on one core of a processor with AVX-512 0.4 to
0.7 ns a value in each direction. Where it was not compiled, and for tensors on a GPU, PyTorch computes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from deepwell.errors import DeepwellError
from deepwell.lm.precision.fp8 import LARGEST, SMALLEST_AMAX, _up_to_power_of_two
from deepwell.lm.precision.native.library import library

TILE = 128
_FORMATS = {torch.float32: 0, torch.bfloat16: 1}
_SHARE = 2**18
"""So many values are worth another thread."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """A matrix in FP8.

    Attributes:
        values: [rows, columns] float8_e4m3fn.
        scales: [bands, ceil(columns / width)] float32, the multiplier that undoes it.
        borders: [bands + 1] int64 on the CPU: band b of tiles is made of the rows borders[b] to borders[b + 1].
        width: Columns of a tile.
    """

    values: Tensor
    scales: Tensor
    borders: Tensor
    width: int

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values times scales, multiplied in float32 and rounded to ``dtype`` once: [rows, columns]."""
        values, fast = self.values, library()
        if fast is None or dtype not in _FORMATS or values.device.type != "cpu":
            scale = self.scales.repeat_interleave(self.width, 1)
            if len(scale) < len(values):
                scale = scale.repeat_interleave(self.borders.diff().to(values.device), 0)
            return (values.float() * scale[:, : values.shape[1]]).to(dtype)
        out = torch.empty(values.shape, dtype=dtype)

        def work(first: int, count: int) -> int:
            return int(
                fast.dw_dequantise(
                    values.data_ptr(), self.scales[first:].data_ptr(), values.shape[1],
                    self.borders[first:].data_ptr(), count, self.width, _FORMATS[dtype], out.data_ptr(),
                )
            )  # fmt: skip

        _in_parts(work, len(self.borders) - 1, values.numel())
        return out


def quantise(
    x: Tensor, height: int, width: int, *, power_of_two: bool = False, ends: tuple[int, ...] | None = None
) -> Tiles:
    """Round a matrix to FP8, tile by tile.

    Args:
        x: [rows, columns], float32 or bf16; other dtypes are widened to float32 first.
        height: Rows of a tile.
        width: Columns of a tile.
        power_of_two: Scales are powers of two, rounded up (V3.1's "ue8m0").
        ends: Rows at which groups end, the last of them the number of rows; tiles start anew behind each. Groups may be
            empty.

    Returns:
        The tiles, whose scales are the largest value of each (at least 1e-4) divided by 448 in float32.
    """
    if x.dtype not in _FORMATS:
        x = x.float()
    if x.stride(-1) != 1:
        x = x.contiguous()
    borders = tile_borders(x.shape[0], height, ends)
    bands, across = len(borders) - 1, -(-x.shape[1] // width)
    values = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(bands, across, dtype=torch.float32, device=x.device)
    if not x.numel():
        return Tiles(values, scales.fill_(SMALLEST_AMAX / LARGEST), borders, width)
    fast = library()
    if fast is None or x.device.type != "cpu":
        amax = _amax(x.float().abs(), borders, height, width)
        scales.copy_(_scale(amax, power_of_two))
        heights = borders.diff().to(x.device)
        each = scales.repeat_interleave(heights, 0).repeat_interleave(width, 1)[:, : x.shape[1]]
        return Tiles((x.float() / each).to(torch.float8_e4m3fn), scales, borders, width)

    def work(first: int, count: int) -> int:
        return int(
            fast.dw_quantise(
                x.data_ptr(), _FORMATS[x.dtype], x.stride(0), x.shape[1], borders[first:].data_ptr(), count, width,
                power_of_two, values.data_ptr(), scales[first:].data_ptr(),
            )
        )  # fmt: skip

    _in_parts(work, bands, x.numel())
    return Tiles(values, scales, borders, width)


def tile_borders(rows: int, height: int, ends: tuple[int, ...] | None = None) -> Tensor:
    """Where bands of tiles begin and end: [bands + 1] int64. See ``quantise``."""
    if ends is None:
        return torch.cat([torch.arange(0, rows, max(height, 1)), torch.tensor([rows])])
    found, start = [0], 0
    for end in ends:
        found += range(start + height, end, height)
        found += [end] if end > start else []
        start = end
    return torch.tensor(found)


def _scale(amax: Tensor, power_of_two: bool) -> Tensor:
    scale = amax.clamp(min=SMALLEST_AMAX) / LARGEST
    if power_of_two:
        scale = _up_to_power_of_two(scale)
    return scale.masked_fill(~amax.isfinite(), torch.nan)


def _amax(size: Tensor, borders: Tensor, height: int, width: int) -> Tensor:
    """The largest of each tile of ``size`` [rows, columns], none of them negative: [bands, tiles across]."""
    if width > 1:
        padded = torch.nn.functional.pad(size, (0, -size.shape[1] % width))
        size = padded.unflatten(1, (-1, width)).amax(-1)
    if height == 1:
        return size
    return torch.stack([size[begin:end].amax(0) for begin, end in pairwise(borders.tolist())])


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="fp8")


def _in_parts(work: Callable[[int, int], int], bands: int, values: int) -> None:
    """Let each of torch's threads round some of the bands; ctypes lets go of Python's lock meanwhile."""
    parts = min(torch.get_num_threads(), bands, values // _SHARE)
    if parts <= 1:
        failed = bool(work(0, bands))
    else:
        starts = [bands * part // parts for part in range(parts + 1)]
        futures = [_pool().submit(work, a, b - a) for a, b in pairwise(starts)]
        failed = any(future.result() for future in futures)
    if failed:
        raise DeepwellError("there is no memory for a row of FP8 scales")
