"""Which neurons of a feed-forward layer go together.

A neuron j of a SwiGLU layer adds h_j(x) d_j to the stream, d_j its column of ``down_proj``. Neurons that add much for
the same tokens should be one expert: then a token needs few experts (MoEfication, arXiv 2110.01786). Neurons that add
much for every token should always run, in a shared expert (CMoE, arXiv 2502.04416).

Shapes: N tokens, I neurons, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["balanced_clusters", "group_neurons", "unexplained"]


def group_neurons(
    activations: Tensor, down: Tensor, *, experts: int, shared: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Neurons of the shared part, and of each expert.

    Args:
        activations: [N, I], what ``down`` is given.
        down: [hidden, I].
        experts: Equal parts that the neurons make, shared ones included; divides I.
        shared: How many of the parts run for every token.
        seed: Of the first centres.

    Returns:
        Indices [shared * I / experts] and [experts - shared, I / experts], each neuron once, each row in order.
    """
    count = activations.shape[1]
    size = count // experts
    weight = down.float().norm(dim=0)
    busiest = (activations.float().square().mean(0) * weight.square()).argsort(descending=True, stable=True)
    always, others = busiest[: shared * size].sort().values, busiest[shared * size :].sort().values
    if experts == shared:
        return always, others.view(0, size)
    profiles = (unexplained(activations, always, others).abs() * weight[others]).T  # [I', N]
    profiles = profiles - profiles.mean(1, keepdim=True)
    profiles = profiles / profiles.norm(dim=1, keepdim=True).clamp_min(1e-30)
    cluster = balanced_clusters(profiles, experts - shared, seed=seed)
    return always, torch.stack([others[cluster == one] for one in range(experts - shared)])


def unexplained(activations: Tensor, always: Tensor, others: Tensor) -> Tensor:
    """What of ``others`` [m] the neurons ``always`` [n] do not tell by a linear map: [N, m] float32.

    The rest can be made up for in the columns of those that always run; only this must be routed.
    """
    rest = activations[:, others].float()
    if not len(always):
        return rest
    known = activations[:, always].float()
    gram = (known.T @ known).double()
    gram += (1e-2 * gram.diagonal().mean() + 1e-30) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return rest - known @ torch.cholesky_solve((known.T @ rest).double(), torch.linalg.cholesky(gram)).float()


def balanced_clusters(points: Tensor, clusters: int, *, rounds: int = 12, seed: int = 0) -> Tensor:
    """k-means with clusters of equal size: ``points`` [I, N] -> [I] int64, each number I / clusters times.

    A round assigns the surest points first: those whose best cluster is furthest ahead of the second best; a full
    cluster takes no more.
    """
    count = len(points)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(count, (1,), generator=generator).tolist()
    nearest = points @ points[first[0]]
    for _ in range(clusters - 1):  # each new centre is the point that is least like those before
        first.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, points @ points[first[-1]])
    centres = points[first]
    found = torch.full((count,), -1)
    for _ in range(rounds):
        before, found = found, _assign(points @ centres.T)
        if torch.equal(before, found):
            break
        sums = torch.zeros_like(centres).index_add_(0, found.to(points.device), points)
        centres = sums / sums.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return found.to(points.device)


def _assign(likeness: Tensor) -> Tensor:
    """``likeness`` [I, E] -> [I], every expert equally often."""
    count, clusters = likeness.shape
    best = likeness.topk(min(2, clusters), dim=1).values
    order = (best[:, 0] - best[:, -1]).argsort(descending=True, stable=True).tolist()
    wishes = likeness.argsort(dim=1, descending=True).tolist()
    room = [count // clusters] * clusters
    found = [0] * count
    for point in order:
        found[point] = next(one for one in wishes[point] if room[one])
        room[found[point]] -= 1
    return torch.tensor(found)
