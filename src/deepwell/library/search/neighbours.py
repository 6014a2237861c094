"""Passages that are alike answer the same queries: each score is mixed with those of the most similar candidates.

The cluster hypothesis (van Rijsbergen 1979), as score regularisation (Diaz 2005, "Regularizing ad hoc retrieval
scores"): a passage whose nearest neighbours fit the query well is probably good itself though it says it in other
words, and one that stands alone among them was probably matched by accident.

Likeness is the mean of two cosines: of the passages' vectors, and of their BM25 weights. Vectors alone see what a
passage is about, words alone what it names; on each of three test collections the mean of both was better than
vectors alone, and better than words alone on two (docs/measurements.md).

Only the first candidates are mixed, with each other. A mean of their scores is never below the least of them, so no
passage after them moves up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deepwell.library.search.wordindex import K1, B

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deepwell.library.search.wordindex import WordIndex

AMONG = 60
"""First candidates that are compared with each other."""
NEIGHBOURS = 8
LENT = 0.4
"""The neighbours' part in a passage's score."""


def smoothed(scores: NDArray[np.float32], likeness: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each score with ``LENT`` of it replaced by the mean of its neighbours' scores, weighted by likeness.

    Args:
        scores: [K].
        likeness: [K, K] of the passages, 0 for nothing in common; the diagonal is ignored.
    """
    count = min(NEIGHBOURS, len(scores) - 1)
    if count < 1:
        return scores
    weight = np.clip(likeness, 0.0, None).astype(np.float32)
    np.fill_diagonal(weight, 0.0)
    nearest = np.argpartition(-weight, count - 1, axis=1)[:, :count]
    weight = np.take_along_axis(weight, nearest, axis=1)
    total = weight.sum(axis=1)
    around = (weight * scores[nearest]).sum(axis=1) / np.where(total > 0, total, 1.0)
    # A passage that is like no other keeps its score.
    return np.where(total > 0, (1 - LENT) * scores + LENT * around, scores).astype(np.float32)


def likeness_of_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines [K, K] of unit vectors [K, dim]; nan where one has no vector."""
    return np.asarray(vectors @ vectors.T, dtype=np.float32)


def likeness_of_words(index: WordIndex, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Cosines [K, K] of the passages' BM25 weights, stop words left out.

    Args:
        index: Where they are counted.
        rows: Of the passages [K].
    """
    parts = [slice(index.start[row], index.start[row + 1]) for row in rows]
    numbers = np.concatenate([index.terms[part] for part in parts])
    tf = np.concatenate([index.tf[part] for part in parts])
    place = np.repeat(np.arange(len(rows)), [part.stop - part.start for part in parts])
    norm = K1 * (1 - B + B * index.length[rows] / index.mean_length)
    weights = np.where(index.is_stop[numbers], 0.0, index.idf[numbers] * tf / (tf + norm[place]))
    length = np.sqrt(np.bincount(place, weights=weights**2, minlength=len(rows)))
    weights = weights / np.where(length > 0, length, 1.0)[place]
    # A term that one passage holds alone adds to its length and to no likeness.
    _, column, held = np.unique(numbers, return_inverse=True, return_counts=True)
    shared = held > 1
    column_of = np.cumsum(shared) - 1
    kept = shared[column]
    table = np.zeros((len(rows), int(shared.sum())), dtype=np.float32)
    table[place[kept], column_of[column[kept]]] = weights[kept]
    return table @ table.T


def likeness(
    vectors: NDArray[np.float32] | None, index: WordIndex | None, rows: NDArray[np.int64] | None
) -> NDArray[np.float32] | None:
    """The mean of what is known of the two likenesses; None when nothing is."""
    by_vectors = None if vectors is None or not vectors.size else likeness_of_vectors(vectors)
    by_words = None if index is None or rows is None else likeness_of_words(index, rows)
    if by_vectors is None or by_words is None:
        only = by_words if by_vectors is None else by_vectors
        return None if only is None else np.nan_to_num(only)
    return np.where(np.isfinite(by_vectors), (by_vectors + by_words) / 2, by_words)
