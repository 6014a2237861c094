"""Candidates of one search, and the score that each gets: from every arm, on one scale, mixed, and lifted.

    arms ──> raw scores of every candidate ──> shares of 0 to 1 ──> weighted sum ──> smoothed, lifted

A candidate that one arm found is scored by all of them, so that no score is missing when they are mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from deepwell.library.search import fuse, neighbours
from deepwell.library.search.arms import DEPTH, VectorArm, WordsArm
from deepwell.library.search.pool import index_pool
from deepwell.library.search.resident import Resident
from deepwell.library.search.understand import Intent, normal
from deepwell.library.store.rows import content_of, searchable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deepwell.library.search.wordindex import WordIndex
    from deepwell.library.store import Store

_LITERAL_BONUS = 1.0
_LITERALS_CHECKED = 30
_NAME_BONUS = 1.0


@dataclass
class Pool:
    """Candidates of one search as rows of arrays."""

    ids: list[str]
    modality: NDArray[np.int8]
    leading: NDArray[np.bool_]
    raw: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    shares: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    score: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    vectors: NDArray[np.float32] | None = None

    @cached_property
    def rows(self) -> dict[str, int]:
        return {passage_id: row for row, passage_id in enumerate(self.ids)}


class Scoring:
    """Scores candidates over a store, with the statistics that a searcher keeps in memory."""

    def __init__(self, store: Store, resident: Resident) -> None:
        self._store = store
        self._resident = resident

    def pool(self, lists: Sequence[Iterable[str]]) -> Pool:
        """Candidates from the arms' lists. The first ``DEPTH`` of each set the scale, however many were asked for."""
        census = self._resident.census()
        leaders = {i for found in lists for i in islice(found, DEPTH)}
        unique = [i for i in dict.fromkeys(chain.from_iterable(lists)) if i in census.numbers]
        modality = census.modality[[census.numbers[i] for i in unique]] if unique else np.zeros(0, np.int8)
        return Pool(unique, modality, np.fromiter((i in leaders for i in unique), dtype=bool, count=len(unique)))

    def complete_words(self, words: WordsArm, pool: Pool) -> None:
        """Index the candidates' own words, where no index holds them: a cold process."""
        if words.index is None:
            texts = {p.passage_id: searchable(p.text, p.place) for p in self._store.passages(pool.ids)}
            size = len(self._resident.census().ids)
            ids = [i for i in pool.ids if i in texts]
            words.index = index_pool(ids, [texts[i] for i in ids], words.terms, words.found, size)

    def score(
        self, pool: Pool, words: WordsArm | None, arms: Sequence[VectorArm], intent: Intent, *, smooth: bool = False
    ) -> None:
        """Fill in every arm's score for every candidate, bring them to one scale, and mix them."""
        weights: dict[str, float] = {}
        share_of_words = 0.5 if words is not None else 0.0
        if words is not None and words.index is not None:
            index = words.index
            rows = np.asarray([index.rows.get(i, -1) for i in pool.ids], dtype=np.int64)
            raw = np.where(rows >= 0, words.scores()[rows], 0.0).astype(np.float32)
            pool.raw["words"] = raw
            if raw.max(initial=0.0) > 0:
                if words.weight is None:
                    words.weight = self._words_weight(words, float(raw.max()), int(rows[int(raw.argmax())]))
                share_of_words = words.weight
                pool.shares["words"] = fuse.spread_out(raw, pool.leading)
                weights["words"] = share_of_words
        for arm in arms:
            vectors = self._store.vectors(arm.space, pool.ids)
            raw = (vectors @ arm.vector).astype(np.float32) if vectors.shape[1] == len(arm.vector) else _nothing(pool)
            if arm.name == "meaning":
                pool.vectors = vectors
            pool.raw[arm.name] = raw
            if np.isfinite(raw).any():
                pool.shares[arm.name] = fuse.spread_out(self._calibrated(raw, arm, pool), pool.leading)
                weights[arm.name] = arm.weight * (1 - share_of_words)
        if not pool.shares:
            pool.score = np.zeros(len(pool.ids), np.float32)
            return
        pool.score = fuse.weighted(self._imputed(pool), weights)
        if smooth:
            self._smooth(pool, words.index if words is not None else None)
        self._lift_literals(pool, intent)

    def _smooth(self, pool: Pool, index: WordIndex | None) -> None:
        """Mix the scores of the first text passages with those of their likes."""
        first = np.argsort(-pool.score, kind="stable")[: neighbours.AMONG]
        first = first[pool.modality[first] == 0]
        if not len(first):
            return
        rows = None
        if index is not None:
            rows = np.asarray([index.rows.get(pool.ids[row], -1) for row in first], dtype=np.int64)
            rows = rows if (rows >= 0).all() else None
        alike = neighbours.likeness(pool.vectors[first] if pool.vectors is not None else None, index, rows)
        if alike is not None:
            pool.score[first] = neighbours.smoothed(pool.score[first], alike)

    def _words_weight(self, words: WordsArm, best_score: float, best_row: int) -> float:
        """From the query's own terms: what feedback adds says nothing about how exact the query was."""
        assert words.index is not None
        known = [(weight, words.index.rarity(t)) for t, weight in words.terms.items() if len(words.index.holds(t))]
        surprised = fuse.surprise(best_score, [weight for weight, _ in known], [idf for _, idf in known])
        weight = fuse.words_weight(surprised / max(len(words.terms), 1) ** 0.5, len(self._resident.census().ids))
        rarity = {term: words.index.rarity(term) for term in words.terms}
        held = [term for term in rarity if best_row in words.index.holds(term)]
        covered = sum(rarity[term] for term in held) / max(sum(rarity.values()), 1e-9)
        return weight * fuse.trust(covered, len(held))

    def _calibrated(self, raw: NDArray[np.float32], arm: VectorArm, pool: Pool) -> NDArray[np.float32]:
        present = np.unique(pool.modality[np.isfinite(raw)])
        if len(present) < 2:
            return raw
        background = {}
        for modality in present:
            sample = self._resident.background(arm.space, int(modality))
            if len(sample) >= 8:
                company = sample @ arm.vector
                background[int(modality)] = (float(company.mean()), float(company.std()))
        return fuse.standardised(raw, pool.modality, background) if len(background) == len(present) else raw

    def _imputed(self, pool: Pool) -> dict[str, NDArray[np.float32]]:
        """Shares, where a picture or sound that holds none of the words is given half its meaning's share for them.

        Labels are a handful of class names: that they do not hold a word says little, unlike for a page of text.
        """
        shares = dict(pool.shares)
        if "words" in shares and "meaning" in shares:
            mute = (pool.modality != 0) & (pool.raw["words"] <= 0)
            shares["words"] = np.where(mute, 0.5 * np.nan_to_num(shares["meaning"]), shares["words"])
        return shares

    def _lift_literals(self, pool: Pool, intent: Intent) -> None:
        """Put passages that hold a quoted phrase or a name letter for letter before those that do not."""
        if not intent.literals or "words" not in pool.raw:
            return
        order = np.argsort(-pool.raw["words"], kind="stable")[:_LITERALS_CHECKED]
        rows = [row for row in order if pool.raw["words"][row] > 0]
        texts = {p.passage_id: normal(p.text) for p in self._store.passages([pool.ids[row] for row in rows])}
        for row in rows:
            text = texts.get(pool.ids[row], "")
            held = sum(meant for literal, meant in intent.literals.items() if literal in text)
            pool.score[row] += _LITERAL_BONUS * held / max(len(intent.literals), 1)
        pool.score /= max(float(pool.score.max()), 1.0)

    def lift_named(self, pool: Pool, names: Mapping[str, float]) -> None:
        """Lift the best passage of each file that the query names: to the front if it is all of the name, else less."""
        if not names:
            return
        best: dict[str, int] = {}
        for row, passage_id in enumerate(pool.ids):
            content = content_of(passage_id)
            if content in names and (content not in best or pool.score[row] > pool.score[best[content]]):
                best[content] = row
        share = np.zeros(len(pool.ids), np.float32)
        for content, row in best.items():
            share[row] = names[content]
        pool.shares["name"] = share
        pool.score = pool.score + _NAME_BONUS * share**2
        pool.score /= max(float(pool.score.max()), 1.0)


def _nothing(pool: Pool) -> NDArray[np.float32]:
    return np.full(len(pool.ids), np.nan, dtype=np.float32)
