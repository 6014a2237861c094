"""BM25 in memory: which passages hold which terms, as three flat arrays.

The store has a full-text index on disk, which every process can ask at once. This index is for processes that stay:
it answers in a fraction of a millisecond, scores any passage for any weighted terms (so a passage that only the vectors
found gets its true score for the words too), and knows how rare a term is, which the store's does not tell.

The scores are those of Robertson's BM25 with the constants of Lucene (k1 1.2, b 0.75):

    score(d) = sum over terms t of  weight(t) * idf(t) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / mean length))

Built from a pool of candidates instead of the whole library it gives the same scores when it is told the library's
statistics; see ``pool.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from deepwell.library.search.tokens import shared_cache, words
from deepwell.library.store.words import STOP_WORDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

K1 = 1.2
B = 0.75


_AT_ONCE = 2_000
"""Passages whose terms are counted in one sort. It bounds memory, and numpy lets other threads run while it sorts."""


@dataclass(frozen=True, slots=True)
class TermCounts:
    """How often N passages hold each term, one passage after another.

    Attributes:
        sizes: int64 [N], different terms of each passage.
        terms: int32 [T], numbers in a vocabulary, ascending within a passage.
        counts: float32 [T].
    """

    sizes: NDArray[np.int64]
    terms: NDArray[np.int32]
    counts: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence[TermCounts]) -> TermCounts:
        """One after another; there must be at least one part."""
        return cls(
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.terms for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )


class _Numbers(dict[str, int]):
    """A new term gets the next number."""

    def __missing__(self, term: str) -> int:
        number = self[term] = len(self)
        return number


@dataclass
class Vocabulary:
    """Terms and their numbers, in the order they were first seen. Only ever grows."""

    numbers: dict[str, int] = field(default_factory=_Numbers)
    names: list[str] = field(default_factory=list)

    def count(self, texts: Sequence[str]) -> TermCounts:
        """Count the terms of passages."""
        parts = [self._count(texts[first : first + _AT_ONCE]) for first in range(0, max(len(texts), 1), _AT_ONCE)]
        self.names.extend(islice(self.numbers, len(self.names), None))
        return TermCounts.joined(parts)

    def _count(self, texts: Sequence[str]) -> TermCounts:
        terms_of, number_of = shared_cache().__getitem__, self.numbers.__getitem__
        numbers: list[int] = []
        ends = []
        for text in texts:
            numbers.extend(map(number_of, chain.from_iterable(map(terms_of, words(text)))))
            ends.append(len(numbers))
        row = np.repeat(np.arange(len(texts)), np.diff(ends, prepend=0)) if texts else np.zeros(0, np.int64)
        found, counts = np.unique((row << 32) | np.asarray(numbers, dtype=np.int64), return_counts=True)
        sizes = np.bincount(found >> 32, minlength=len(texts))
        return TermCounts(sizes, (found & 0xFFFFFFFF).astype(np.int32), counts.astype(np.float32))


class WordIndex:
    """An immutable index over N passages; ``extended`` gives a new one that shares what did not change.

    Attributes:
        ids: Passage ids [N].
        rows: Passage id to row.
        idf: float32 [V], how telling each term is.
        length: float32 [N], words that are not stop words.
    """

    def __init__(
        self,
        ids: Sequence[str],
        counts: TermCounts,
        vocabulary: Vocabulary,
        *,
        idf: NDArray[np.float32] | None = None,
        mean_length: float | None = None,
    ) -> None:
        self.ids = list(ids)
        self.rows = {passage_id: row for row, passage_id in enumerate(self.ids)}
        self.vocabulary = vocabulary
        size, number = len(vocabulary.names), len(self.ids)
        self.start = np.concatenate(([0], np.cumsum(counts.sizes)))
        self.terms = counts.terms
        tf = counts.counts
        row = np.repeat(np.arange(number, dtype=np.int32), counts.sizes)
        self.is_stop = np.zeros(size, dtype=bool)
        self.is_stop[[vocabulary.numbers[word] for word in STOP_WORDS if word in vocabulary.numbers]] = True
        self.length = np.bincount(row, weights=tf * ~self.is_stop[self.terms], minlength=number).astype(np.float32)
        self.tf = tf
        frequency = np.bincount(self.terms, minlength=size)
        self.idf = _idf(frequency, number) if idf is None else idf
        mean = mean_length if mean_length is not None else float(self.length.mean()) if number else 1.0
        self.mean_length = max(mean, 1.0)
        weight = tf * (K1 + 1) / (tf + K1 * (1 - B + B * self.length[row] / self.mean_length))
        order = np.argsort(self.terms, kind="stable")
        self._posting_row = row[order]
        self._posting_weight = weight[order].astype(np.float32)
        self._posting_start = np.concatenate(([0], np.cumsum(frequency)))

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def build(cls, passages: Iterable[tuple[str, str]]) -> WordIndex:
        """Index (passage id, text) pairs."""
        vocabulary = Vocabulary()
        pairs = list(passages)
        return cls([i for i, _ in pairs], vocabulary.count([text for _, text in pairs]), vocabulary)

    def extended(self, passages: Iterable[tuple[str, str]], keep: Iterable[str]) -> WordIndex:
        """The index of the passages in ``keep`` that are here already, and of new ones."""
        rows = np.asarray([self.rows[i] for i in keep if i in self.rows], dtype=np.int64)
        new = list(passages)
        ids = [*(self.ids[row] for row in rows), *(passage_id for passage_id, _ in new)]
        sizes = np.diff(self.start)[rows]
        # Places of the kept passages' terms: each one's first place, and steps of one from there.
        places = np.repeat(self.start[rows] - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
        kept = TermCounts(sizes, self.terms[places], self.tf[places])
        counts = TermCounts.joined([kept, self.vocabulary.count([text for _, text in new])])
        return WordIndex(ids, counts, self.vocabulary)

    def scores(self, weights: Mapping[str, float]) -> NDArray[np.float32]:
        """BM25 of every passage for weighted terms, float32 [N]; 0 where none of them stands."""
        rows, parts = [], []
        for term, weight in weights.items():
            number = self._number(term)
            if number is None or weight == 0:
                continue
            part = slice(self._posting_start[number], self._posting_start[number + 1])
            rows.append(self._posting_row[part])
            parts.append(self._posting_weight[part] * (weight * self.idf[number]))
        if not rows:
            return np.zeros(len(self.ids), dtype=np.float32)
        # One pass over all postings: several times as fast as an indexed addition for each term.
        total = np.bincount(np.concatenate(rows), weights=np.concatenate(parts), minlength=len(self.ids))
        return total.astype(np.float32)

    def rarity(self, term: str) -> float:
        """The term's idf; that of a term in no passage when it is unknown."""
        number = self._number(term)
        return float(self.idf[number]) if number is not None else float(_idf(np.zeros(1), len(self.ids))[0])

    def holds(self, term: str) -> NDArray[np.int32]:
        """Rows of the passages that hold a term."""
        number = self._number(term)
        if number is None:
            return np.zeros(0, np.int32)
        return self._posting_row[self._posting_start[number] : self._posting_start[number + 1]]

    def share(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """A passage's term numbers and the share of its words that each makes up."""
        part = slice(self.start[row], self.start[row + 1])
        return self.terms[part], self.tf[part] / max(float(self.length[row]), 1.0)

    def _number(self, term: str) -> int | None:
        # The vocabulary may have grown for a newer index; numbers beyond this index's own are unknown to it.
        number = self.vocabulary.numbers.get(term)
        return number if number is not None and number < len(self.idf) else None


def _idf(frequency: NDArray[np.int64] | NDArray[np.float64], number: int) -> NDArray[np.float32]:
    return np.log(1 + (number - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
