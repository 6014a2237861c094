"""One latent for many heads, each weighted by what it matters.

Given J linear maps W_j of the same inputs, find the latent A x of a rank R and the maps B_j of it that make

    sum_j  tr( (W_j - B_j A)' M_j (W_j - B_j A) S_j )

small: M_j says how much each output of map j matters, S_j which inputs it meets. Were all S_j the same, a singular
value decomposition would be the answer. It is where the search starts; then the two are solved for in turn, each
exactly a least-squares problem (that for A by conjugate gradients, as its matrix is never formed).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Factors", "Targets", "factorise"]


@dataclass(frozen=True, slots=True)
class Targets:
    """J maps of X inputs to r outputs."""

    maps: Tensor
    """[J, r, X]"""
    matter: Tensor
    """[J, r, r], M: symmetric, not negative"""
    inputs: Tensor
    """[J, X, X], S: symmetric, not negative"""


@dataclass(frozen=True, slots=True)
class Factors:
    """The latent's rows, the maps back, and what is still lost."""

    down: Tensor
    """[R, X], A"""
    up: Tensor
    """[J, r, R], B"""
    losses: tuple[float, ...]
    """The sum above, as a share of what leaving out everything would cost: at the start and after each round"""


def factorise(targets: Targets, rank: int, *, rounds: int = 2, steps: int = 6, damping: float = 1e-3) -> Factors:
    """The latent of rank ``rank``.

    Args:
        targets: The maps, and what matters of them.
        rank: Width R of the latent; above X nothing more is gained, and rows of zeros are added.
        rounds: How often A and B are solved for in turn.
        steps: Of conjugate gradients in a round.
        damping: Added to the diagonals of M and S, as a share of their mean.
    """
    maps, matter, inputs = targets.maps, _damped(targets.matter, damping), _damped(targets.inputs, damping)
    width = maps.shape[-1]
    used = min(rank, width)
    weight = _mean_diagonal(matter)
    common = torch.einsum("j,jxy->xy", weight / weight.sum(), inputs)
    root, inverse_root = _roots(common)
    size = (_mean_diagonal(inputs) / common.diagonal().mean()).sqrt()[:, None, None]
    rows = torch.stack([torch.linalg.cholesky(one) for one in matter]).transpose(1, 2) @ maps @ root * size
    rows = rows.flatten(0, 1)
    _, vectors = torch.linalg.eigh((rows.T @ rows).double())
    down = vectors[:, -used:].flip(-1).T.float() @ inverse_root
    met = maps @ inputs
    whole = float(((matter @ met) * maps).sum())
    up = _solve_up(met, inputs, down)
    losses = [_loss(maps, matter, inputs, down, up) / whole]
    metric = inverse_root @ inverse_root
    for _ in range(rounds):
        down = _solve_down(met, matter, inputs, up, down, metric, steps)
        orthonormal, _ = torch.linalg.qr((down @ root).T)
        down = orthonormal.T @ inverse_root
        up = _solve_up(met, inputs, down)
        losses.append(_loss(maps, matter, inputs, down, up) / whole)
    if rank > used:
        down = torch.cat([down, down.new_zeros(rank - used, width)])
        up = torch.cat([up, up.new_zeros(*up.shape[:2], rank - used)], dim=-1)
    return Factors(down, up, tuple(losses))


def _solve_up(met: Tensor, inputs: Tensor, down: Tensor) -> Tensor:
    """B_j = W_j S_j A' (A S_j A')^-1."""
    through = down @ inputs  # [J, R, X]
    found = []
    for left, right in zip((through @ down.T).double(), (met @ down.T).double(), strict=True):
        found.append(torch.cholesky_solve(right.T, _cholesky(left)).T)
    return torch.stack(found).float()


def _solve_down(
    met: Tensor, matter: Tensor, inputs: Tensor, up: Tensor, start: Tensor, metric: Tensor, steps: int
) -> Tensor:
    """sum_j B_j' M_j B_j A S_j = sum_j B_j' M_j W_j S_j, by conjugate gradients preconditioned with the means."""
    weighed = up.transpose(1, 2) @ matter
    gram = weighed @ up  # [J, R, R]

    def apply(one: Tensor) -> Tensor:
        return (gram @ (one @ inputs)).sum(0)

    inverse = torch.cholesky_inverse(_cholesky(gram.mean(0).double())).float()
    found = start.clone()
    rest = (weighed @ met).sum(0) - apply(found)
    better = inverse @ rest @ metric
    direction, product = better, (rest * better).sum()
    for _ in range(steps):
        if not product > 0:
            break
        image = apply(direction)
        length = product / (direction * image).sum()
        found += length * direction
        rest = rest - length * image
        better = inverse @ rest @ metric
        before, product = product, (rest * better).sum()
        direction = better + product / before * direction
    return found


def _loss(maps: Tensor, matter: Tensor, inputs: Tensor, down: Tensor, up: Tensor) -> float:
    error = maps - up @ down
    return float(((matter @ error @ inputs) * error).sum())


def _mean_diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).mean(-1)


def _damped(matrices: Tensor, damping: float) -> Tensor:
    """A map that never mattered gets a trace of the others' weight, so that every matrix can be inverted."""
    mean = _mean_diagonal(matrices)
    floor = damping * mean + 1e-9 * mean.max() + 1e-30
    return matrices + floor[:, None, None] * torch.eye(matrices.shape[-1], device=matrices.device)


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric root and its inverse."""
    values, vectors = torch.linalg.eigh(matrix.double())
    values = values.clamp_min(values[-1] * 1e-7)
    return ((vectors * values.sqrt()) @ vectors.T).float(), ((vectors * values.rsqrt()) @ vectors.T).float()


def _cholesky(matrix: Tensor) -> Tensor:
    """Of a matrix that may be singular but for rounding."""
    lift = 1e-9 * (matrix.diagonal().mean() + 1e-30)
    lower: Tensor = torch.linalg.cholesky(
        matrix + lift * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    )
    return lower
