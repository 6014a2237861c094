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
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from deepwell.library.search.tokens import STOP_WORDS, shared_cache, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

K1 = 1.2
B = 0.75


@dataclass(frozen=True, slots=True)
class TermCounts:
    """How often a passage holds each term: ``terms`` int32 [T] numbers in a vocabulary, ``counts`` float32 [T]."""

    terms: NDArray[np.int32]
    counts: NDArray[np.float32]


@dataclass
class Vocabulary:
    """Terms and their numbers, in the order they were first seen. Only ever grows."""

    numbers: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def number(self, term: str) -> int:
        """The term's number, a new one if it is new."""
        found = self.numbers.setdefault(term, len(self.numbers))
        if found == len(self.names):
            self.names.append(term)
        return found

    def count(self, text: str) -> TermCounts:
        """Count the terms of one passage."""
        cache = shared_cache()
        number = self.number
        numbers = [number(term) for term in chain.from_iterable(map(cache.__getitem__, words(text)))]
        found, counts = np.unique(np.asarray(numbers, dtype=np.int32), return_counts=True)
        return TermCounts(found.astype(np.int32), counts.astype(np.float32))


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
        counts: Sequence[TermCounts],
        vocabulary: Vocabulary,
        *,
        idf: NDArray[np.float32] | None = None,
        mean_length: float | None = None,
    ) -> None:
        self.ids = list(ids)
        self.rows = {passage_id: row for row, passage_id in enumerate(self.ids)}
        self._counts = list(counts)
        self.vocabulary = vocabulary
        size, number = len(vocabulary.names), len(self.ids)
        sizes = np.fromiter((len(c.terms) for c in self._counts), np.int64, number)
        self.start = np.concatenate(([0], np.cumsum(sizes)))
        self.terms = np.concatenate([c.terms for c in self._counts]) if number else np.zeros(0, np.int32)
        tf = np.concatenate([c.counts for c in self._counts]) if number else np.zeros(0, np.float32)
        row = np.repeat(np.arange(number, dtype=np.int32), sizes)
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
        ids, counts = [], []
        for passage_id, text in passages:
            ids.append(passage_id)
            counts.append(vocabulary.count(text))
        return cls(ids, counts, vocabulary)

    def extended(self, passages: Iterable[tuple[str, str]], keep: Iterable[str]) -> WordIndex:
        """The index of the passages in ``keep`` that are here already, and of new ones."""
        rows = [self.rows[passage_id] for passage_id in keep if passage_id in self.rows]
        ids, counts = [self.ids[row] for row in rows], [self._counts[row] for row in rows]
        for passage_id, text in passages:
            ids.append(passage_id)
            counts.append(self.vocabulary.count(text))
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
