"""Key heads mixed so that few pairs carry what position means.

Read each pair of a key (dimensions j and j + F, turned together at frequency f) as one complex number. Turning by
position multiplies it by a phase, so it may be mixed with the same pair of the other heads by any complex G x G matrix
before or after turning alike; queries take the inverse mix, and scores stay what they were. Of all mixes that of the
principal components, weighted by the queries' energy, puts most into its first pair (RoRoPE of TransMLA, arXiv
2502.07864, section 4.2). The pairs that are kept become the one rotary key that all heads share. The others stop to
turn, and are multiplied by their mean turn instead.

Shapes: F pairs of a head, G key heads, H query heads, X inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.weights.conversions.calibration import AttentionStatistics, Projections

__all__ = ["PairMix", "SharedKey", "choose_pairs", "mix_pairs", "share_key"]


@dataclass(frozen=True, slots=True)
class PairMix:
    """The principal components of every pair over key heads, in one layer."""

    energy: Tensor
    """[F, G] float32, falling"""
    basis: Tensor
    """[F, G, G] complex64; columns are components"""
    weight: Tensor
    """[F, G] what each key head is multiplied by before it is mixed: the root of its queries' energy"""
    coherence: Tensor
    """[F] how much of a pair is left when it stops to turn: 1 all, 0 nothing"""


@dataclass(frozen=True, slots=True)
class SharedKey:
    """One layer's rotary part, and what is left to the latent. P kept pairs, N dimensions that stop to turn."""

    key: Tensor
    """[2P, X] rows of the one rotary key"""
    query: Tensor
    """[H, 2P, X]"""
    still_key: Tensor
    """[H, N, X] for each query head the key that the latent must give"""
    still_query: Tensor
    """[H, N, X]"""
    kept: Tensor
    """[N] which of the head's dimensions they were"""


def as_complex(rows: Tensor) -> Tensor:
    """``rows`` [..., 2F, X] -> [..., F, X] complex64."""
    first, second = rows.chunk(2, dim=-2)
    return torch.complex(first, second)


def as_real(rows: Tensor) -> Tensor:
    """``rows`` [..., F, X] complex -> [..., 2F, X]."""
    return torch.cat([rows.real, rows.imag], dim=-2)


def mix_pairs(matrices: Projections, seen: AttentionStatistics) -> PairMix:
    """The components of one layer."""
    key = as_complex(matrices.key)
    groups, pairs, _ = key.shape
    heads = seen.energy.shape[0]
    moments = seen.looked_at.to(torch.complex64) / heads
    covariance = torch.einsum("gfx,xy,pfy->fgp", key, moments, key.conj())
    spread = seen.queries.diagonal(dim1=-2, dim2=-1).unflatten(-1, (2, pairs)).sum(-2)  # [H, F]
    weight = spread.unflatten(0, (groups, -1)).sum(1).T.sqrt()
    weight = weight.clamp_min(weight.max() * 1e-6)
    covariance = weight[:, :, None] * covariance * weight[:, None, :]
    energy, basis = torch.linalg.eigh(covariance.to(torch.complex128))
    coherence = seen.turned.sum(0).abs() / seen.energy.sum(0).clamp_min(1e-30)
    return PairMix(
        energy.flip(-1).clamp_min(0).float(), basis.flip(-1).to(torch.complex64), weight, coherence.clamp(max=1)
    )


def choose_pairs(mixes: list[PairMix], pairs: int) -> Tensor:
    """How many components of each frequency to keep, the same in all layers: [F] int64 that sum to ``pairs``.

    As many as there are frequencies: one of each, so that the frequencies stay those of the original. Otherwise those
    that lose most when they stop to turn.

    Raises:
        UsageError: There are not so many.
    """
    frequencies, groups = mixes[0].energy.shape
    if not 1 <= pairs <= frequencies * groups:
        raise UsageError(
            f"rope_dims is {2 * pairs}; {groups} key heads of {2 * frequencies} dimensions can keep 2 to "
            f"{2 * frequencies * groups}"
        )
    if pairs == frequencies:
        return torch.ones(frequencies, dtype=torch.int64)
    lost = torch.stack([mix.energy * (1 - mix.coherence.square())[:, None] for mix in mixes]).sum(0)
    best = lost.flatten().topk(pairs).indices
    return torch.bincount(best // groups, minlength=frequencies)


def share_key(matrices: Projections, seen: AttentionStatistics, mix: PairMix, counts: Tensor) -> SharedKey:
    """Take ``counts`` [F] components of each frequency out of the keys of one layer."""
    key, query = as_complex(matrices.key), as_complex(matrices.query)
    groups = len(key)
    each = len(query) // groups
    left = key.clone()
    shared, asked = [], []
    for pair, count in enumerate(counts.tolist()):
        for component in range(count):
            direction = mix.basis[pair, :, component]
            one = (direction.conj() * mix.weight[pair]) @ key[:, pair]  # [X]
            back = direction / mix.weight[pair]  # [G]: what this component gives to each key head
            shared.append(one)
            asked.append(back.conj().repeat_interleave(each)[:, None] * query[:, pair])
            left[:, pair] -= back[:, None] * one
    turn = seen.turned / seen.energy.clamp_min(1e-30)  # [H, F]
    still = torch.nonzero(counts < groups).flatten()
    still_key = (left.repeat_interleave(each, dim=0) * turn[..., None])[:, still]
    return SharedKey(
        key=as_real(torch.stack(shared)),
        query=as_real(torch.stack(asked, dim=1)),
        still_key=as_real(still_key),
        still_query=as_real(query[:, still]),
        kept=torch.cat([still, still + key.shape[1]]),
    )
