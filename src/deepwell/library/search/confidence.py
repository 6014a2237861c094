"""Whether results mean anything: signals for saying "not found" instead of showing the least bad.

A search always ranks something first. Scores are brought to 0..1 within one search, so they cannot tell. These can:

- ``coverage``: how much of the query, by its words' rarity, the best of the first passages holds. A passage that
  answers a question in the library's own words holds half of it or more; of a question about something else, the
  common words only.
- ``cosine``: the best of the first passages' cosine with the query, as the encoder gives it. What is near depends on
  the encoder, so a threshold must be measured for each.
- ``deviations``: the same as standard deviations above random passages of the library, which holds for any encoder. In
  a library about one thing every question about that thing lies some 4 above; a question about another thing can too,
  so this is a reason to doubt when it is low and not one to believe when it is high.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepwell.library.search.tokens import terms
from deepwell.library.search.understand import understand


@dataclass(frozen=True, slots=True)
class Confidence:
    """Signals about the first hits of a search; None where there is no encoder or no vector."""

    coverage: float
    cosine: float | None = None
    deviations: float | None = None


def coverage(query: str, texts: Sequence[str], rarity: Callable[[str], float]) -> float:
    """The greatest share of the query's terms, weighted by rarity, that one of the texts holds; 0 without terms."""
    wanted = {term: rarity(term) for term in understand(query).terms}
    total = sum(wanted.values())
    if total <= 0 or not texts:
        return 0.0
    return max(sum(wanted[t] for t in set(terms(text)) & wanted.keys()) for text in texts) / total
