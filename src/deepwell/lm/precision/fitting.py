"""The scale and minimum that round a group of weights to 0..15 with the least squared error.

From the smallest weight to the largest is rarely best: outliers stretch the grid for all the others. So a group tries
several ranges, each narrower at one end or both, and keeps the one with the least error; then it is refined as k-means
would: with the integers fixed, scale and minimum have a closed form (a line through 32 points by least squares), and
with those fixed, the integers are the nearest ones. On SmolLM2's matrices the ranges are worth 0.7 dB, refining 0.3
more, and a search twenty times as long another 0.15: ``python benchmarks/quantisation.py --search``.

Every candidate is judged as it will be stored, with scale and minimum in float16, so a group that already lies on such
a grid keeps it: the two grids of GGUF's 4-bit kinds are tried first, and where all groups of a slab are exact on one of
them nothing else is.
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
        """Sum of the squared differences, ``[groups]``."""
        return self.weights(self.steps(columns)).sub_(columns).square_().sum(dim=0)


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
    # Q4_0: the weight that is largest in size is -8 scales, whatever its sign.
    extreme = torch.where(-low > high, low, high)
    best = Grid.rounded(extreme / -8, extreme)
    error = best.error(columns)
    # Q4_1: from the smallest to the largest.
    best, error = _better(best, error, Grid.rounded(width / 15, low), columns)
    if not bool(error.any()):
        return best
    for begin in cuts:
        for end in cuts:
            if begin or end:
                narrower = Grid.rounded(width * ((1 - begin - end) / 15), low + width * begin)
                best, error = _better(best, error, narrower, columns)
    total = columns.sum(dim=0)
    for _ in range(refits):
        best, error = _better(best, error, _refitted(best.steps(columns), columns, total), columns)
    return best


def _better(best: Grid, error: Tensor, other: Grid, columns: Tensor) -> tuple[Grid, Tensor]:
    """Of two grids, group by group, the one with less error; a grid beyond float16 has NaN, and is never better."""
    others = other.error(columns)
    better = others < error
    grid = Grid(torch.where(better, other.scale, best.scale), torch.where(better, other.minimum, best.minimum))
    return grid, torch.where(better, others, error)


def _refitted(steps: Tensor, columns: Tensor, total: Tensor) -> Grid:
    """The line through the points (integer, weight) by least squares; flat where all integers are the same."""
    count = len(columns)
    first, second = steps.sum(dim=0), steps.square().sum(dim=0)
    spread = count * second - first * first
    both = steps.mul(columns).sum(dim=0)
    scale = torch.where(spread > 0, (count * both - first * total) / spread, 0.0)
    return Grid.rounded(scale, (total - scale * first) / count)
