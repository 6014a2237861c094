"""The products of FP8 training where no FP8 instructions are: on a CPU (``fp8_gpu`` has the same for a GPU).

Operands are rounded to FP8 tile by tile, exactly as a GPU would round them, and then multiplied as what they stand for,
value times scale, with float32 sums. What differs from FP8 hardware that promotes its sums every 128 values (V3 section
3.3.2):

- with scales that are powers of two, value times scale is exact in bf16: the order of sums alone;
- with float32 scales and bf16 activations, value times scale is rounded to bf16 once more, by at most 1/512 of itself,
  where rounding to FP8 took up to 1/16: on random numbers of any depth 0.28 % off the product of the rounded operands
  (0.17 % of it from rounding the result to bf16), and FP8 as a whole 3.7 % off the exact product either way.
  Multiplying in float32 would take four times as long; with float32 activations it is done, and nothing is rounded
  twice;
- a gradient of a weight leaves the product in the dtype of the activations, as from PyTorch's bf16 product. (The
  kernels for a GPU, and the compiled ones for bf16, leave float32.)

Every function takes rows [N, ...]; ``offsets`` [E] int32 are the ends of groups of rows, each with its own matrix of
``weight`` [E, out, in], or None for one matrix [out, in].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from deepwell.lm.precision.fp8_tiles import TILE, Tiles, quantise, tile_borders


@dataclass(frozen=True, slots=True)
class Emulation:
    """The four products, for one way of scaling: a scale for each tile, or one for a tensor."""

    blocks: bool
    power_of_two: bool

    def rows(self, x: Tensor) -> Tiles:
        """``x`` [N, width] in tiles of 1 x 128."""
        return self._whole(x) if not self.blocks else quantise(x, 1, TILE, power_of_two=self.power_of_two)

    def columns(self, x: Tensor, offsets: Tensor | None = None) -> Tiles:
        """``x`` [N, width] in tiles of 128 x 1, none of which reaches over the end of a group."""
        if not self.blocks:
            return self._whole(x)
        return quantise(x, TILE, 1, power_of_two=self.power_of_two, ends=_ends(offsets))

    def matrices(self, weight: Tensor) -> Tiles:
        """``weight`` [out, in] or [E, out, in] in blocks of 128 x 128, as one matrix [E * out, in]."""
        flat = weight.detach().flatten(0, -2)
        if not self.blocks:
            return self._whole(flat)
        ends = None if weight.dim() == 2 else tuple(range(weight.shape[1], flat.shape[0] + 1, weight.shape[1]))
        return quantise(flat, TILE, TILE, power_of_two=self.power_of_two, ends=ends)

    def forward(self, rows: Tiles, weight: Tensor, offsets: Tensor | None, dtype: torch.dtype) -> Tensor:
        """``x W^T``, ``rows`` being ``rows(x)``: [N, in] -> [N, out], in ``dtype`` or float32."""
        dtype = _operand(dtype, weight.device)
        return _by_group(rows.dequantised(dtype), self._wide(weight, dtype).transpose(-1, -2), offsets)

    def grad_input(self, grad: Tensor, weight: Tensor, offsets: Tensor | None) -> Tensor:
        """``grad W``: [N, out] -> [N, in]."""
        dtype = _operand(grad.dtype, grad.device)
        return _by_group(self.rows(grad).dequantised(dtype), self._wide(weight, dtype), offsets)

    def grad_weight(
        self, grad: Tensor, values: Tensor, scales: Tensor, weight: Tensor, offsets: Tensor | None
    ) -> Tensor:
        """``grad^T x`` over the tokens of each group, ``values`` and ``scales`` being ``columns(x)``; as ``weight``."""
        dtype, ends = _operand(grad.dtype, grad.device), _ends(offsets)
        height = TILE if self.blocks else values.shape[0]
        borders = tile_borders(values.shape[0], height, ends if self.blocks else None)
        x = Tiles(values, scales, borders, 1 if self.blocks else values.shape[1]).dequantised(dtype)
        wide = self.columns(grad, offsets).dequantised(dtype)
        if ends is None:
            return (wide.t() @ x).to(weight.dtype)
        found = torch.empty_like(weight)
        for group, (start, end) in enumerate(pairwise((0, *ends))):
            found[group] = wide[start:end].t() @ x[start:end]
        return found

    def _wide(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return self.matrices(weight).dequantised(dtype).view(weight.shape)

    def _whole(self, x: Tensor) -> Tiles:
        return quantise(x, max(x.shape[0], 1), x.shape[1], power_of_two=self.power_of_two)


def _by_group(rows: Tensor, matrices: Tensor, offsets: Tensor | None) -> Tensor:
    """``rows`` [N, K] by ``matrices`` [K, M], or each group by its own of [E, K, M]."""
    ends = _ends(offsets)
    if ends is None:
        return rows @ matrices
    out = rows.new_empty(rows.shape[0], matrices.shape[-1])
    for group, (start, end) in enumerate(pairwise((0, *ends))):
        if end > start:
            torch.mm(rows[start:end], matrices[group], out=out[start:end])
    return out


def _ends(offsets: Tensor | None) -> tuple[int, ...] | None:
    return None if offsets is None else tuple(offsets.tolist())


@cache
def _multiplies_bf16() -> bool:
    arm = torch.backends.cpu.get_cpu_capability() in {"SVE256", "SVE128", "NEON"}
    return bool(
        torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
        or (arm and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _operand(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In which dtype operands that stand for activations of ``dtype`` are multiplied."""
    fast = device.type != "cpu" or _multiplies_bf16()
    return torch.bfloat16 if dtype is torch.bfloat16 and fast else torch.float32
