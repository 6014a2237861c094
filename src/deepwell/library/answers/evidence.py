"""Does the library hold an answer at all? Judged before anything is written, so that weak evidence gives no invention.

Three signals, each blind where another sees:

- ``coverage``: how much of what the question asks about one passage holds, each word weighted by its rarity among
  everything that search found. A rare word of the question that stands in none of thirty hits stands nowhere in the
  library (full-text search would have brought it up), so a question about something else cannot reach a high coverage.
- ``best``: the same for the sentence that would be the answer.
- ``meaning``: nearness of the question and the nearest sentence, which recognises an answer in other words.

Their weighted sum against one threshold decides; with words alone the first two do. Rarity is relative to what was
found and nearness relative to unrelated sentences, so neither depends on the size of the library or on the encoder's
own scale. A question for a figure or a date is doubted when no sentence on its subject holds one. Tried without gain on
fresh questions, words alone: a logistic regression over the signals here and three more (whether the best sentence has
the question's rarest word, whether the kind of answer wanted is in sight, what all passages hold together).

``benchmarks/answers.py`` prints false answers against false abstentions over the range of thresholds. What no signal
here can see is a passage on the very subject that lacks just the fact asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepwell.library.answers.cues import answer_type
from deepwell.library.answers.ranking import LENT_ABOVE, Asked, Candidate
from deepwell.library.answers.words import terms
from deepwell.library.protocols import Evidence
from deepwell.library.records import Hit

WORDS_ONLY = 0.44
WITH_MEANING = 0.48
"""Thresholds on ``Strength.score``: about one answerable question in ten is turned away, of the tuning questions."""

NO_FIGURE = 0.7
"""What is left of the score when a question asks how many or when, and no near sentence holds a figure or a date."""


@dataclass(frozen=True, slots=True)
class Strength:
    """How good the evidence is.

    Attributes:
        score: 0 to 1; comparable between questions and libraries, unlike a hit's score.
        coverage: Share of the question held by the best single passage (0 to 1).
        best: Share of the question held by the best sentence (0 to 1).
        meaning: Nearness of the question and the nearest sentence (at most 1); None when no encoder took part.
        missing: Words of the question that no hit holds.
        enough: Whether to answer.
    """

    score: float
    coverage: float
    best: float
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
    coverage = max((_coverage(asked, piece) for piece in evidence), default=0.0)
    if not asked.terms:  # nothing but function words ("who is it?") says nothing to look for
        coverage = 0.0
    everywhere = frozenset[str]().union(*groups)
    missing = tuple(term for term in asked.terms if term not in everywhere)
    best = ranked[0].signals["cover"] if ranked else 0.0
    near = [candidate.signals["meaning"] for candidate in ranked if "meaning" in candidate.signals]
    meaning = max(near, default=None)
    worded = 0.5 * coverage + 0.5 * best
    score = worded if meaning is None else 0.5 * worded + 0.5 * max(0.0, meaning)
    if answer_type(question) in ("time", "number") and not _has_figure(ranked):
        score *= NO_FIGURE
    least = threshold if threshold is not None else WORDS_ONLY if meaning is None else WITH_MEANING
    return Strength(score, coverage, best, meaning, missing, bool(evidence) and score >= least)


def _coverage(asked: Asked, piece: Evidence) -> float:
    """What a passage holds of a question, its title and headings counting in part."""
    held = frozenset(terms(piece.text))
    own = asked.cover(held)
    return own + LENT_ABOVE * (asked.cover(held | frozenset(terms(piece.about))) - own)


def _has_figure(ranked: Sequence[Candidate]) -> bool:
    """Whether a sentence that speaks of what was asked holds the kind of answer wanted."""
    said = [candidate for candidate in ranked if candidate.states][:8]
    most = max((candidate.signals["cover"] for candidate in said), default=0.0)
    near = (candidate for candidate in said if candidate.signals["cover"] >= 0.6 * most)
    return any(candidate.signals["cue"] > 0 for candidate in near)
