"""Matrices in the panels that the compiled products read (``linear.c`` has the layouts).

A matrix keeps its own memory alive, and the structure that points to it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from deepwell.lm.engine.native import library as native
from deepwell.lm.engine.pages import Pages
from deepwell.lm.precision.integers import GROUP, QuantisedMatrix, quantise

Format = Literal["f32", "bf16", "int8", "int4"]
_NUMBERS = {"f32": native.F32, "bf16": native.BF16, "int8": native.INT8, "int4": native.INT4}
_AT_ONCE = 2**24
"""Weights that are quantised at once, so that a large matrix needs little memory beside itself."""


@dataclass(frozen=True, slots=True)
class Panels:
    """Matrices of one shape and format, side by side: ``structures[i]`` is the i-th."""

    format: Format
    outputs: int
    inputs: int
    structures: Any
    owned: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.owned)


def panels(
    weights: Sequence[Tensor],
    format: Format,
    biases: Sequence[Tensor | None] = (),
    pages: Pages | None = None,
    *,
    where: str = "the matrix",
) -> Panels:
    """``weights`` [out, in] each, of any float dtype, and their biases [out] -> what the products read.

    ``pages`` is where they are put; None: apart from all others. ``where`` is what messages call them.
    """
    pages = pages or Pages()
    outputs, inputs = weights[0].shape
    structures = (native.Matrix * len(weights))()
    owned: list[Tensor] = []
    for index, weight in enumerate(weights):
        packed = _packed(weight.detach(), format, pages, where)
        bias = biases[index] if biases else None
        kept = None if bias is None else bias.detach().float().contiguous().clone()
        owned += [packed] if kept is None else [packed, kept]
        structures[index] = native.Matrix(
            _NUMBERS[format], inputs, outputs, 0, packed.data_ptr(), 0 if kept is None else kept.data_ptr()
        )
    return Panels(format, outputs, inputs, structures, tuple(owned))


def pointer(structures: Any, index: int = 0) -> int:
    """The address of one of several structures."""
    return ctypes.addressof(structures) + index * ctypes.sizeof(structures._type_)


def _packed(weight: Tensor, format: Format, pages: Pages, where: str) -> Tensor:
    if format in ("f32", "bf16"):
        dtype = torch.float32 if format == "f32" else torch.bfloat16
        rows = F.pad(weight, (0, 0, 0, -weight.shape[0] % native.PANEL))
        packed = pages.take(rows.numel(), dtype=dtype)
        shape = (-1, weight.shape[1], native.PANEL)
        packed.view(shape).copy_(rows.unflatten(0, (-1, native.PANEL)).transpose(1, 2))
        return packed
    bits = 8 if format == "int8" else 4
    groups = -(-weight.shape[1] // GROUP)
    count = -(-weight.shape[0] // native.PANEL)
    bytes_each = groups * (GROUP * native.PANEL * bits // 8 + native.PANEL * (2 if bits == 8 else 4))
    packed = pages.take(count * bytes_each, dtype=torch.uint8)
    step = max(1, _AT_ONCE // (groups * GROUP * native.PANEL))
    for first in range(0, count, step):
        rows = weight[first * native.PANEL : (first + step) * native.PANEL].float()
        padded = F.pad(rows, (0, groups * GROUP - rows.shape[1], 0, -rows.shape[0] % native.PANEL))
        made = _int8(quantise(padded, 8, where=where)) if bits == 8 else _int4(quantise(padded, 4, where=where))
        packed[first * bytes_each : first * bytes_each + made.numel()] = made.flatten()
    return packed


def _int8(matrix: QuantisedMatrix) -> Tensor:
    """[panels, groups, 544] uint8: pairs of inputs, each as 16 outputs x 2; then the scales."""
    values = matrix.values.view(-1, native.PANEL, matrix.shape[1] // GROUP, GROUP // 2, 2)
    weights = values.permute(0, 2, 3, 1, 4).flatten(2).view(torch.uint8)
    return torch.cat([weights, _numbers(matrix.scales)], dim=-1)


def _int4(matrix: QuantisedMatrix) -> Tensor:
    """[panels, groups, 320] uint8: two halves of 8 outputs, each 4 x 32 bytes; then scales and minima."""
    # [panels, half, output, groups, low or high, j, i]
    values = matrix.values.view(-1, 2, native.PANEL // 2, matrix.shape[1] // GROUP, 2, GROUP // 8, 4)
    low, high = values.permute(4, 0, 3, 1, 5, 2, 6)  # each [panels, groups, half, j, output, i]
    assert matrix.minima is not None
    weights = (low | high << 4).flatten(2)
    return torch.cat([weights, _numbers(matrix.scales), _numbers(matrix.minima)], dim=-1)


def _numbers(values: Tensor) -> Tensor:
    """float16 [out, groups] -> their bytes [panels, groups, 32]."""
    return values.view(-1, native.PANEL, values.shape[1]).transpose(1, 2).contiguous().view(torch.uint8)
