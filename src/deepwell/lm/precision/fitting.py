"""The scale and minimum that round a group of weights to 0..15: zero to zero, and large weights best.

Two rules: 0 lies on the grid, so that small weights do not all move the same way; and an error counts as much as its
weight's square. Neither asks for data. Least squares over all grids has less noise and costs more perplexity, and that
is what decides: ``python benchmarks/quantisation.py``.

From end to end is rarely the best range: outliers stretch the grid for all the others. So a group tries several ranges,
each narrower at one end or both, keeps the one with the least error, and refines it: with the integers fixed, the scale
has a closed form, and with the scale fixed, the integers are the nearest ones. ``benchmarks/quantisation.py --search``
prints what each of these is worth.

Every candidate is judged as it will be stored, in float16. A group that already lies on a grid of GGUF's kinds of 4
bits keeps it, and where all groups of a slab lie on Q4_1's nothing else is tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CUTS = (0.0, 0.03, 0.06, 0.1)
"""Shares of its range that a group may give up at either end."""
REFITS = 4
_SLAB = 8192
"""Groups that are fitted together: a megabyte, which stays in a core's cache through all passes."""


@dataclass(frozen=True, slots=True)
class Grid:
    """One grid a group: ``w = scale * q + minimum``, both ``[groups]`` and float32, exact in float16."""

    scale: Tensor
    minimum: Tensor

    @classmethod
    def rounded(cls, scale: Tensor, minimum: Tensor) -> Grid:
        """The grid as it will be stored."""
        return cls(scale.to(torch.float16).to(torch.float32), minimum.to(torch.float16).to(torch.float32))

    def steps(self, columns: Tensor) -> Tensor:
        """The nearest integers, ``[32, groups]``, still float32; 0 where the scale is 0."""
        per = torch.where(self.scale == 0, 0.0, 1 / self.scale)
        return torch.addcmul(-self.minimum * per, columns, per).round_().clamp_(0, 15)

    def weights(self, steps: Tensor) -> Tensor:
        """What the integers stand for, ``[32, groups]``; the product is exact, the sum is rounded once."""
        return steps.mul(self.scale).add_(self.minimum)

    def error(self, columns: Tensor) -> Tensor:
        """Sum of the squared differences, each times the weight's own square, ``[groups]``."""
        return self.weights(self.steps(columns)).sub_(columns).mul_(columns).square_().sum(dim=0)


def fit_affine(groups: Tensor, *, cuts: tuple[float, ...] = CUTS, refits: int = REFITS) -> tuple[Tensor, Grid]:
    """Integers and grids of ``groups`` [n, 32], float32 and finite.

    Args:
        groups: The weights.
        cuts: What each end of the range may give up; all pairs are tried.
        refits: Rounds of refining.

    Returns:
        ``[n, 32]`` uint8 from 0 to 15, and a grid for each group.
    """
    values = torch.empty(groups.shape, dtype=torch.uint8)
    grid = Grid(torch.empty(len(groups)), torch.empty(len(groups)))
    for start in range(0, len(groups), _SLAB):
        part = slice(start, start + _SLAB)
        # Groups lie side by side, so that every pass and every sum runs over contiguous numbers.
        columns = groups[part].t().contiguous()
        found = _fit(columns, cuts, refits)
        values[part] = found.steps(columns).to(torch.uint8).t()
        grid.scale[part], grid.minimum[part] = found.scale, found.minimum
    return values, grid


def _fit(columns: Tensor, cuts: tuple[float, ...], refits: int) -> Grid:
    low, high = columns.aminmax(dim=0)
    width = high - low
    # Q4_1: from the smallest to the largest.
    plain = Grid.rounded(width / 15, low)
    exact = plain.error(columns) == 0
    if bool(exact.all()):
        return plain
    # Q4_0: the weight that is largest in size is -8 scales, whatever its sign.
    best = _through_zero(torch.where(-low > high, low, high) / -8, torch.tensor(8.0))
    error = best.error(columns)
    if bool(error.any()):
        for begin in cuts:
            for end in cuts:
                scale = width * ((1 - begin - end) / 15)
                zero = torch.where(scale > 0, -(low + width * begin) / scale, 0.0).round_().clamp_(0, 15)
                best, error = _better(best, error, _through_zero(scale, zero), columns)
        for _ in range(refits):
            best, error = _better(best, error, _refitted(best, columns), columns)
    return Grid(torch.where(exact, plain.scale, best.scale), torch.where(exact, plain.minimum, best.minimum))


def _through_zero(scale: Tensor, zero: Tensor) -> Grid:
    """The grid on which the integer ``zero`` stands for 0."""
    scale = scale.to(torch.float16).to(torch.float32)
    return Grid.rounded(scale, -zero * scale)


def _better(best: Grid, error: Tensor, other: Grid, columns: Tensor) -> tuple[Grid, Tensor]:
    """Of two grids, group by group, the one with less error; a grid beyond float16 has NaN, and is never better."""
    others = other.error(columns)
    better = others < error
    grid = Grid(torch.where(better, other.scale, best.scale), torch.where(better, other.minimum, best.minimum))
    return grid, torch.where(better, others, error)


def _refitted(grid: Grid, columns: Tensor) -> Grid:
    """The scale through zero with the least error for these integers."""
    zero = torch.where(grid.scale == 0, 0.0, -grid.minimum / grid.scale).round_()
    steps = grid.steps(columns).sub_(zero)
    share = columns.square().mul_(steps)
    spread = share.mul(steps).sum(dim=0)
    return _through_zero(torch.where(spread > 0, share.mul_(columns).sum(dim=0) / spread, 0.0), zero)
