"""Pseudo-relevance feedback: take the first fused results as examples of what was meant, and look again.

The query's vector moves a little towards the vectors of the first results (Rocchio 1971), and the query's terms are
joined by a few that set those results apart (RM3, Abdul-Jaleel et al. 2004). Because the examples were chosen by both
arms together, each arm learns what the other knew: a synonym the words arm never saw, an exact name that blurs in a
vector.

Feedback can drift. Three measures keep it in bounds:

- examples count by their fused score, and the query itself keeps the greater part;
- a term is taken only when several examples hold it, so one document's peculiarities (author names, a journal's
  header) do not become the query;
- the first few results of the first pass keep their places (``KEPT``). Feedback is for what comes after the answer;
  where one passage is all there is to find, it could only harm. With this, prose questions with one right passage
  lost nothing and topics kept their gain; descriptions that look for code still lose (docs/measurements.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deepwell.library.search.wordindex import WordIndex

EXAMPLES = 5
"""First results taken as examples for the vector."""
PULL = 0.5
"""Length of the examples' mean beside the query's unit vector."""
TERM_EXAMPLES = 10
TERMS = 20
TERM_SHARE = 0.3
"""Weight of all new terms together beside 1 for the query's own."""
HELD_BY = 3
"""Examples that must hold a term before it is taken."""
KEPT = 3
"""First results of the first pass that stay where they are."""


def moved_vector(
    query: NDArray[np.float32], examples: NDArray[np.float32], scores: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The query's vector moved towards the examples; unit length.

    Args:
        query: [dim].
        examples: [K, dim]; rows of nan have no vector and are left out.
        scores: How much each counts [K].
    """
    known = np.isfinite(examples).all(axis=1) & (scores > 0)
    if not known.any():
        return query
    shares = scores[known] / scores[known].sum()
    moved = query + PULL * (shares @ examples[known])
    length = float(np.linalg.norm(moved))
    return (moved / length).astype(np.float32) if length > 0 else query


def expanded_terms(
    index: WordIndex,
    terms: Mapping[str, float],
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> dict[str, float]:
    """The query's terms, scaled to 1 in all, and new ones that the examples share.

    Args:
        index: Where the examples are counted.
        terms: The query's terms and weights.
        rows: The examples [K].
        scores: How much each counts [K].
    """
    total = sum(terms.values())
    own = {term: weight / total for term, weight in terms.items()} if total > 0 else {}
    chosen = scores > 0
    rows, scores = rows[chosen], scores[chosen]
    if len(rows) < HELD_BY:
        return own
    shares = scores / scores.sum()
    pairs = [index.share(int(row)) for row in rows]
    numbers = np.concatenate([n for n, _ in pairs])
    values = np.concatenate([share * part for share, (_, part) in zip(shares, pairs, strict=True)])
    found, place, held = np.unique(numbers, return_inverse=True, return_counts=True)
    weight = np.bincount(place, weights=values) * index.idf[found]
    weight[(held < HELD_BY) | index.is_stop[found]] = 0.0
    best = np.argsort(-weight, kind="stable")[:TERMS]
    best = best[weight[best] > 0]
    if not len(best):
        return own
    scale = TERM_SHARE / float(weight[best].sum())
    for position in best:
        term = index.vocabulary.names[int(found[position])]
        own[term] = own.get(term, 0.0) + float(weight[position]) * scale
    return own


def keep_first(scores: NDArray[np.float32], first: NDArray[np.int64], first_scores: NDArray[np.float32]) -> None:
    """Put rows ``first`` back on top, in their order, with their scores; the others are scaled to stay below. In place.

    Args:
        scores: Of all candidates after feedback [N].
        first: Rows of the first results before it [K], best first.
        first_scores: Their scores then [K].
    """
    if not len(first):
        return
    others = np.ones(len(scores), dtype=bool)
    others[first] = False
    ceiling = float(first_scores[-1])
    top = float(scores[others].max(initial=0.0))
    if top > 0 and top >= ceiling:
        scores[others] *= 0.999 * ceiling / top
    scores[first] = first_scores
