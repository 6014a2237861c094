"""Sequences of unequal length to batches without padding.

A padded batch computes on padding. Here a batch is one matrix of all its tokens, one after another: linear layers and
norms never needed to know where a text ends. Only attention does, and it runs once for each run of equally long
sequences, which sorting puts side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Batch:
    """Some sequences, longest first, as one row of tokens.

    Attributes:
        rows: [N] where each sequence stood in the caller's list.
        ids: [T] token ids of all sequences, one after another.
        positions: [T] place of each token within its sequence, from 0.
        starts: [N] where each sequence begins in ``ids``.
        runs: (first token, number of sequences, length) of each run of equally long sequences.
    """

    rows: NDArray[np.intp]
    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    starts: NDArray[np.intp]
    runs: tuple[tuple[int, int, int], ...]


def pack(sequences: Sequence[NDArray[np.int32]], budget: int) -> Iterator[Batch]:
    """Batches of at most ``budget`` tokens (a longer sequence is a batch of its own), longest sequences first.

    Every sequence must have at least one token.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.intp)
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        ends = np.cumsum(lengths[order[first:]])
        count = max(1, int(np.searchsorted(ends, budget, side="right")))
        yield _batch(sequences, order[first : first + count])
        first += count


def _batch(sequences: Sequence[NDArray[np.int32]], rows: NDArray[np.intp]) -> Batch:
    chosen = [sequences[row] for row in rows]
    lengths = np.array([len(sequence) for sequence in chosen], np.intp)
    starts = np.cumsum(lengths) - lengths
    distinct, first, counts = np.unique(lengths, return_index=True, return_counts=True)
    runs = sorted((int(starts[at]), int(n), int(length)) for length, at, n in zip(distinct, first, counts, strict=True))
    positions = np.arange(lengths.sum(), dtype=np.int32) - np.repeat(starts, lengths).astype(np.int32)
    return Batch(rows, np.concatenate(chosen), positions, starts, tuple(runs))
