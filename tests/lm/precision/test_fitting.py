"""The grid of a group: never worse than Q4_0's, near the best through zero that there is, and stored as judged."""

import pytest
import torch

from deepwell.lm.precision.fitting import CUTS, REFITS, Grid, fit_affine


def drawn(count: int, seed: int = 0, tail: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randn(count, 32, generator=generator)
    return groups * torch.exp(tail * torch.randn(count, 32, generator=generator))


def error_of(groups: torch.Tensor, values: torch.Tensor, grid: Grid) -> torch.Tensor:
    wide = values.double() * grid.scale.double()[:, None] + grid.minimum.double()[:, None]
    return ((wide - groups.double()) * groups.double()).square().sum(dim=1)


def error_of_q4_0(groups: torch.Tensor) -> torch.Tensor:
    extreme = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True))[:, 0]
    grid = Grid.rounded(extreme / -8, extreme)
    steps = ((groups - grid.minimum[:, None]) / grid.scale[:, None]).round().clamp(0, 15)
    return error_of(groups, steps, grid)


@pytest.mark.parametrize("tail", [0.0, 0.7])
def test_no_group_is_worse_than_q4_0(tail: float) -> None:
    groups = drawn(2000, tail=tail)
    values, grid = fit_affine(groups)
    found, plain = error_of(groups, values, grid), error_of_q4_0(groups)
    assert bool((found <= plain * (1 + 1e-5)).all())
    assert float(found.sum() / plain.sum()) < 0.8


def test_zero_stays_zero() -> None:
    groups = drawn(500)
    groups[:, 7] = 0
    values, grid = fit_affine(groups)
    wide = values * grid.scale[:, None] + grid.minimum[:, None]
    assert bool((wide[:, 7].abs() < grid.scale.abs() * 0.01).all())  # a minimum has the precision of float16


def test_the_best_of_a_fine_search_is_hardly_better() -> None:
    groups = drawn(60)
    low, high = groups.aminmax(dim=1)
    best = error_of_q4_0(groups)
    for width in torch.linspace(0.6, 1.1, 101):
        scale = ((high - low) * width / 15).half().float()
        for zero in range(16):
            grid = Grid.rounded(scale, -zero * scale)
            best = best.minimum(error_of(groups, grid.steps(groups.t()).t(), grid))
    values, grid = fit_affine(groups)
    assert float(error_of(groups, values, grid).sum() / best.sum()) < 1.1


def test_ranges_and_refits_both_help() -> None:
    groups = drawn(3000)

    def lost(cuts: tuple[float, ...], refits: int) -> float:
        return float(error_of(groups, *fit_affine(groups, cuts=cuts, refits=refits)).sum())

    neither, ranges, refitted, both = lost((0.0,), 0), lost(CUTS, 0), lost((0.0,), REFITS), lost(CUTS, REFITS)
    assert neither > max(ranges, refitted) and min(ranges, refitted) > both


def test_slabs_do_not_show() -> None:
    groups = drawn(20_000)
    values, grid = fit_affine(groups)
    again, last = fit_affine(groups[-3000:])
    assert torch.equal(values[-3000:], again)
    assert torch.equal(grid.scale[-3000:], last.scale) and torch.equal(grid.minimum[-3000:], last.minimum)


def test_grids_are_exact_in_float16() -> None:
    _, grid = fit_affine(drawn(100) * 1e-3)
    assert torch.equal(grid.scale, grid.scale.half().float())
    assert torch.equal(grid.minimum, grid.minimum.half().float())
    assert len(fit_affine(drawn(0))[0]) == 0
