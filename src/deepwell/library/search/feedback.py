"""Pseudo-relevance feedback: take the first fused results as examples of what was meant, and look again.

The query's vector moves a little towards the vectors of the first results (Rocchio 1971), and the query's terms are
joined by a few that set those results apart (RM3, Abdul-Jaleel et al. 2004). Because the examples were chosen by both
arms together, each arm learns what the other knew: a synonym the words arm never saw, an exact name that blurs in a
vector.

Feedback can drift. Four measures keep it in bounds: examples count by their fused score; the query itself keeps the
greater part; a term is taken only when several examples hold it, so one document's peculiarities (author names, a
journal's header) do not become the query; and all of it shrinks when one result stands out (``trust``), because then
the query knew what it wanted and the runners-up are not examples of it.
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


def trust(scores: NDArray[np.float32]) -> float:
    """How far the first results are examples of one thing: the mean of the others' scores over the best one's.

    Near 1 when many passages fit about as well (a topic), near 0 when one fits and the rest do not (a fact, a name).

    Args:
        scores: Of the first results [K], descending.
    """
    if len(scores) < 2 or scores[0] <= 0:
        return 0.0
    return float(np.clip(scores[1:].mean() / scores[0], 0.0, 1.0))


def moved_vector(
    query: NDArray[np.float32], examples: NDArray[np.float32], scores: NDArray[np.float32], trusted: float = 1.0
) -> NDArray[np.float32]:
    """The query's vector moved towards the examples; unit length.

    Args:
        query: [dim].
        examples: [K, dim]; rows of nan have no vector and are left out.
        scores: How much each counts [K].
        trusted: Shortens the way, 0 to 1.
    """
    known = np.isfinite(examples).all(axis=1) & (scores > 0)
    if not known.any():
        return query
    shares = scores[known] / scores[known].sum()
    moved = query + trusted * PULL * (shares @ examples[known])
    length = float(np.linalg.norm(moved))
    return (moved / length).astype(np.float32) if length > 0 else query


def expanded_terms(
    index: WordIndex,
    terms: Mapping[str, float],
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    trusted: float = 1.0,
) -> dict[str, float]:
    """The query's terms, scaled to 1 in all, and new ones that the examples share.

    Args:
        index: Where the examples are counted.
        terms: The query's terms and weights.
        rows: The examples [K].
        scores: How much each counts [K].
        trusted: Lightens the new terms, 0 to 1.
    """
    total = sum(terms.values())
    own = {term: weight / total for term, weight in terms.items()} if total > 0 else {}
    chosen = scores > 0
    rows, scores = rows[chosen], scores[chosen]
    if len(rows) < HELD_BY or trusted <= 0:
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
    scale = trusted * TERM_SHARE / float(weight[best].sum())
    for position in best:
        term = index.vocabulary.names[int(found[position])]
        own[term] = own.get(term, 0.0) + float(weight[position]) * scale
    return own
