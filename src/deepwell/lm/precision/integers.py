"""Weights of 8 or 4 bits, with a scale of their own for every 32 numbers of a row.

A row of a matrix is cut into groups of 32 along the input. A group keeps small integers and one or two float16:

- 8 bits, symmetric: ``w = scale * q`` with ``q`` from -127 to 127; 8.5 bits a weight.
- 4 bits, affine: ``w = scale * q + minimum`` with ``q`` from 0 to 15; 5 bits a weight.

These are the grids of GGUF's Q8_0 and Q4_1, and Q4_0 is the case of Q4_1 whose minimum is eight scales below zero: a
matrix read from such a file comes back exactly, so nothing is lost by keeping it small in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepwell.errors import ModelFormatError, UsageError
from deepwell.lm.precision.fitting import fit_affine

GROUP = 32
"""Weights that share a scale."""
LARGEST = 65504.0
"""The largest finite float16; a group's minimum is one of its weights."""


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """A matrix in groups of small integers.

    Attributes:
        values: ``[out, in]``; int8 from -127 to 127, or for 4 bits uint8 from 0 to 15, one a byte (whoever computes
            with them packs two into one as its instructions like them).
        scales: ``[out, in / 32]``, float16, may be negative.
        minima: ``[out, in / 32]``, float16; None for 8 bits.
    """

    values: Tensor
    scales: Tensor
    minima: Tensor | None

    @property
    def bits(self) -> int:
        """Bits of one value: 8 or 4."""
        return 8 if self.minima is None else 4

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def bytes(self) -> int:
        """Size with the values packed: 34 bytes a group of 8 bits, 20 a group of 4."""
        minima = 0 if self.minima is None else self.minima.numel()
        return self.values.numel() * self.bits // 8 + 2 * (self.scales.numel() + minima)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights back, ``[out, in]``, computed in float32 and rounded to ``dtype`` once."""
        rows, columns = self.values.shape
        weights = self.values.view(rows, columns // GROUP, GROUP).to(torch.float32)
        weights.mul_(self.scales.to(torch.float32).unsqueeze(-1))
        if self.minima is not None:
            weights.add_(self.minima.to(torch.float32).unsqueeze(-1))
        return weights.view(rows, columns).to(dtype)


@dataclass(frozen=True, slots=True)
class QuantisationError:
    """How far rounded weights are from what they were; sums of these are of all their matrices together.

    Attributes:
        lost: Sum of the squared differences.
        power: Sum of the squared weights.
    """

    lost: float = 0.0
    power: float = 0.0

    @property
    def relative(self) -> float:
        """Root mean square of the differences over that of the weights."""
        return math.sqrt(self.lost / self.power) if self.power else 0.0

    @property
    def snr_db(self) -> float:
        """Signal to noise in decibels; 6 more halve the error. Infinite where nothing is lost."""
        return 10 * math.log10(self.power / self.lost) if self.lost else math.inf

    def __add__(self, other: QuantisationError) -> QuantisationError:
        return QuantisationError(self.lost + other.lost, self.power + other.power)


def error_of(weight: Tensor, quantised: QuantisedMatrix) -> QuantisationError:
    """What ``quantise`` lost of ``weight`` [out, in]."""
    wide = weight.to(torch.float32)
    lost = quantised.dequantised().sub_(wide).square_().sum(dtype=torch.float64)
    return QuantisationError(float(lost), float(wide.square().sum(dtype=torch.float64)))


def quantise(weight: Tensor, bits: int, *, where: str = "the matrix") -> QuantisedMatrix:
    """Round a matrix to groups of integers.

    Args:
        weight: ``[out, in]``, any floating dtype; ``in`` a multiple of 32 (the caller pads narrower ones with zeros).
        bits: 8 or 4.
        where: What to call the matrix in messages: file and tensor.

    Raises:
        ModelFormatError: The matrix holds NaN, an infinity or a number no float16 scale reaches.
        UsageError: ``bits`` is neither 8 nor 4, or the shape does not fit.
    """
    if bits not in (4, 8):
        raise UsageError(f"weights of {bits} bits do not exist here", hint="choose 8 or 4")
    if weight.dim() != 2 or weight.shape[1] % GROUP:
        raise UsageError(
            f"{where} has the shape {list(weight.shape)}: rows are cut into groups of {GROUP}",
            hint=f"pad the input with zeros to a multiple of {GROUP}",
        )
    groups = weight.to(torch.float32).reshape(weight.shape[0], weight.shape[1] // GROUP, GROUP)
    largest = groups.abs().amax() if groups.numel() else torch.zeros(())
    if not bool(largest <= LARGEST):  # also NaN
        raise ModelFormatError(
            f"{where} holds {float(largest)}: no float16 scale fits",
            hint="the weights are damaged; training that diverged leaves such values",
        )
    return _symmetric(groups) if bits == 8 else _affine(groups)


def _symmetric(groups: Tensor) -> QuantisedMatrix:
    """Eight bits: the largest of a group becomes 127."""
    scales = (groups.abs().amax(dim=-1) / 127).to(torch.float16)
    values = (groups * _reciprocal(scales)).round_().clamp_(-127, 127).to(torch.int8)
    return QuantisedMatrix(values.flatten(1), scales, None)


def _affine(groups: Tensor) -> QuantisedMatrix:
    """Four bits: the grid with the least error."""
    values, grid = fit_affine(groups.flatten(0, 1))
    scales, minima = (one.to(torch.float16).view(groups.shape[:2]) for one in (grid.scale, grid.minimum))
    return QuantisedMatrix(values.view(groups.shape).flatten(1), scales, minima)


def _reciprocal(scales: Tensor) -> Tensor:
    """``[..., 1]``: one over each scale, and 0 where the scale is 0, so that a group of equal weights becomes 0s."""
    wide = scales.to(torch.float32).unsqueeze(-1)
    return torch.where(wide == 0, 0.0, 1 / wide)
