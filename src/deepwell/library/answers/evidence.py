"""Does the library hold an answer at all? Judged before anything is written, so that weak evidence gives no invention.

Two signals, each blind where the other sees:

- ``coverage``: how much of what the question asks about one passage holds, each word weighted by its rarity among
  everything that search found. A rare word of the question that stands in none of thirty hits stands nowhere in the
  library (full-text search would have brought it up), so a question about something else cannot reach a high coverage.
- ``meaning``: cosine of the question with the best sentence, which recognises an answer in other words.

Their weighted sum against one threshold decides; ``benchmarks/answers.py`` prints false answers against false
abstentions over the range of thresholds. With words alone the same rule runs on coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepwell.library.answers.ranking import Asked, Candidate
from deepwell.library.answers.words import terms
from deepwell.library.protocols import Evidence
from deepwell.library.records import Hit

WORDS_ONLY = 0.6
WITH_MEANING = 0.55
"""Thresholds on ``Strength.score``."""


@dataclass(frozen=True, slots=True)
class Strength:
    """How good the evidence is.

    Attributes:
        score: 0 to 1; comparable between questions and libraries, unlike a hit's score.
        coverage: Share of the question held by the best single passage (0 to 1).
        meaning: Cosine of the question and the nearest sentence or passage; None when no encoder took part.
        missing: Words of the question that no hit holds.
        enough: Whether to answer.
    """

    score: float
    coverage: float
    meaning: float | None
    missing: tuple[str, ...]
    enough: bool


def judge(
    question: str,
    evidence: Sequence[Evidence],
    found: Sequence[Hit],
    ranked: Sequence[Candidate],
    *,
    threshold: float | None = None,
) -> Strength:
    """Judge what was gathered.

    Args:
        question: In the person's words.
        evidence: The numbered passages.
        found: Everything search gave; decides what is rare.
        ranked: The sentences of the evidence, best first (``ranking.rank``).
        threshold: Least ``score`` that is enough; None takes the measured one.
    """
    groups = [frozenset(terms(hit.text)) for hit in found] or [frozenset(terms(piece.text)) for piece in evidence]
    asked = Asked(question, groups)
    coverage = max((asked.cover(frozenset(terms(piece.text))) for piece in evidence), default=0.0)
    if not asked.terms:  # nothing but function words ("who is it?") says nothing to look for
        coverage = 0.0
    everywhere = frozenset[str]().union(*groups)
    missing = tuple(term for term in asked.terms if term not in everywhere)
    meaning = _meaning(ranked, found)
    score = coverage if meaning is None else 0.5 * coverage + 0.5 * max(0.0, meaning)
    least = threshold if threshold is not None else WORDS_ONLY if meaning is None else WITH_MEANING
    return Strength(score, coverage, meaning, missing, bool(evidence) and score >= least)


def _meaning(ranked: Sequence[Candidate], found: Sequence[Hit]) -> float | None:
    """The best cosine: of a sentence when an encoder compared them, else of a passage as search reports it."""
    sentences = [found.signals["meaning"] for found in ranked if "meaning" in found.signals]
    if sentences:
        return max(sentences)
    passages = [hit.why["meaning"] for hit in found if -1.0 <= hit.why.get("meaning", 2.0) <= 1.0]
    return max(passages, default=None)
