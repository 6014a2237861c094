"""The arms of a search: each finds its own best passages; then every candidate is scored by every arm.

- ``words``    BM25 of the query's words, and of what was said in a recording given as the query;
- ``meaning``  cosine of the query's vector in space ``text``, where pictures and sounds stand by their labels (ConSE);
- ``likeness`` cosine of a picture's vector to those of other pictures, in space ``image``;
- ``sight``    cosine of the query's words to pictures, when the image encoder knows words too (SigLIP 2);
- ``sound``    cosine of a recording's sound tags, in space ``text``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deepwell.library.search.wordindex import WordIndex
    from deepwell.library.store import Scope, Store

DEPTH = 100
"""Passages that each arm contributes, at least."""


@dataclass
class VectorArm:
    """A query vector in a space."""

    name: str
    space: str
    vector: NDArray[np.float32]
    weight: float = 1.0
    scopes: Sequence[Scope | None] = (None,)
    found: dict[str, float] = field(default_factory=dict)

    def retrieve(self, store: Store, limit: int) -> None:
        """Find the nearest passages; in each scope, when there are several, so that no modality is crowded out."""
        for scope in self.scopes:
            ranked = store.nearest(self.space, self.vector, limit=limit, within=scope)
            self.found.update(zip(ranked.ids, map(float, ranked.scores), strict=True))


@dataclass
class WordsArm:
    """Weighted terms. ``index`` is the resident index, or one over the candidates after ``complete``."""

    terms: Mapping[str, float]
    match_text: str
    index: WordIndex | None
    allowed: NDArray[np.bool_] | None = None
    found: dict[str, float] = field(default_factory=dict)
    weight: float | None = None
    _scored: tuple[WordIndex, Mapping[str, float], NDArray[np.float32]] | None = None

    def scores(self) -> NDArray[np.float32]:
        """BM25 of every passage of the index for the terms, float32 [N]; computed once for the same terms."""
        assert self.index is not None
        kept = self._scored
        if kept is None or kept[0] is not self.index or kept[1] is not self.terms:
            kept = self._scored = (self.index, self.terms, self.index.scores(self.terms))
        return kept[2]

    def best(self, limit: int) -> dict[str, float]:
        """The passages of the index with the best scores above zero."""
        assert self.index is not None
        return best(self.index, self.scores(), limit, self.allowed)

    def retrieve(self, store: Store, limit: int, within: Scope | None) -> None:
        """Find the passages with the best BM25 scores."""
        if self.index is not None:
            self.found.update(self.best(limit))
        elif self.match_text:
            ranked = store.match(self.match_text, limit=limit, within=within)
            self.found.update(zip(ranked.ids, map(float, ranked.scores), strict=True))


def best(
    index: WordIndex, scores: NDArray[np.float32], limit: int, allowed: NDArray[np.bool_] | None
) -> dict[str, float]:
    """The passages of an index with the best scores [N] above zero."""
    if allowed is not None:
        scores = np.where(allowed, scores, 0.0)
    rows = np.flatnonzero(scores > 0)
    if len(rows) > limit:
        rows = rows[np.argpartition(-scores[rows], limit - 1)[:limit]]
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    return {index.ids[row]: float(scores[row]) for row in rows}
