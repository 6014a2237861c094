"""From each arm's scores to one order.

Every candidate has its true score in every arm that applies to it (``pool.py`` completes them), so fusing is a weighted
mean of scores brought to one scale: within a search, the best candidate of an arm is 1 and its worst is 0 (min-max
over all candidates). Over 29 public collections that beats adding reciprocals of ranks on 27 (docs/measurements.md).

The weight of words and meaning is chosen for each query from how surprising the best match of the words is: how many
standard deviations it lies above what a random passage would get, for each word of the query. For prose its size
tells little about which arm is right, so both weigh the same. A term that one passage in N holds gives the root of N;
no other explanation is left than that this passage was meant, and the words decide. When even their best passage holds
hardly anything of the query, their weight falls (``trust``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

EVEN_UP_TO = 8.0
"""Deviations for each word up to which words and meaning weigh the same; few prose queries exceed them."""

EVEN_SHARE = 0.6
"""The same for a small library, as a share of the greatest surprise that N passages allow, the root of N."""

MOST = 0.9
"""The words' greatest weight."""

COVERED = 0.25
HELD = 3
"""Share of the query, and number of terms, from which the words are fully believed; see ``trust``."""


def surprise(best: float, weights: Sequence[float], idfs: Sequence[float]) -> float:
    """How many standard deviations a BM25 score lies above that of a random passage.

    Each term stands in a random passage with probability ``p = exp(-idf)`` and then adds about ``weight * idf``; terms
    are taken to be independent.

    Args:
        best: The score.
        weights: Of the query's terms that the library holds.
        idfs: Of the same terms.
    """
    gain = np.asarray(weights, dtype=np.float64) * np.asarray(idfs, dtype=np.float64)
    p = np.exp(-np.asarray(idfs, dtype=np.float64))
    spread = float(np.sqrt((gain**2 * p * (1 - p)).sum()))
    return (best - float((gain * p).sum())) / spread if spread > 0 else 0.0


def words_weight(surprised: float, library_size: int) -> float:
    """The words' share of the fused score, 0.5 to ``MOST``."""
    even = min(EVEN_UP_TO, EVEN_SHARE * max(library_size, 1) ** 0.5)
    return float(np.clip(0.5 * (max(surprised, 0.0) / even) ** 0.5, 0.5, MOST))


def trust(covered: float, held: int) -> float:
    """How far the words can be believed, 0 to 1, by what their best passage holds of the query.

    Where it holds a small part only, and few words at that, the words have found an accident (a request in prose
    among program texts), and whoever is first among accidents must not count as a perfect match. A long description
    is another matter: a small part of it is still many words.

    Args:
        covered: The share of the query's terms, by rarity, that the words' best passage holds.
        held: How many terms that are.
    """
    return min(1.0, max(covered / COVERED, held / HELD))


def spread_out(scores: NDArray[np.float32], leading: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Bring scores to 0..1 by the least and the greatest among ``leading``; nan (no score is possible) stays nan.

    All equal scores become 1: they were all found, and equally.
    """
    known = np.isfinite(scores)
    chosen = known if leading is None or not (known & leading).any() else known & leading
    low, high = float(scores[chosen].min()), float(scores[chosen].max())
    if high <= low:
        return np.asarray(np.where(known, 1.0, np.nan), dtype=np.float32)
    return np.asarray(np.clip((scores - low) / (high - low), 0.0, 1.0), dtype=np.float32)


def weighted(shares: Mapping[str, NDArray[np.float32]], weights: Mapping[str, float]) -> NDArray[np.float32]:
    """The weighted mean of each candidate's shares, [N] in 0..1.

    A candidate that an arm cannot judge (its vector is still to come, it is no picture) is judged by the others.
    """
    names = list(shares)
    table = np.stack([shares[name] for name in names])
    weight = np.asarray([weights[name] for name in names], dtype=np.float32)[:, None] * np.isfinite(table)
    total = weight.sum(axis=0)
    mixed = (np.nan_to_num(table) * weight).sum(axis=0) / np.where(total > 0, total, 1.0)
    return np.asarray(mixed, dtype=np.float32)


def standardised(
    cosines: NDArray[np.float32], groups: NDArray[np.int8], background: Mapping[int, tuple[float, float]]
) -> NDArray[np.float32]:
    """Cosines as deviations from what a random passage of the same modality has with this query.

    Vectors of pictures are averages of label vectors and lie in a cone of their own, where cosines run higher and
    closer together than between sentences (the modality gap). Measured against their own kind, a picture that fits the
    query and a paragraph that fits it as well come out alike.

    Args:
        cosines: [N].
        groups: Modality of each candidate, [N].
        background: For each modality the mean and standard deviation of the query's cosines to a random sample.
    """
    result = cosines.astype(np.float32, copy=True)
    for group, (mean, deviation) in background.items():
        chosen = groups == group
        result[chosen] = (cosines[chosen] - mean) / max(deviation, 1e-3)
    return result
