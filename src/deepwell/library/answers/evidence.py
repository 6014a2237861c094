"""Does the library hold an answer at all? Judged before anything is written, so that weak evidence gives no invention.

Three signals, each blind where another sees:

- ``coverage``: how much of what the question asks about one passage holds, each word weighted by its rarity among
  everything that search found. A rare word of the question that stands in none of thirty hits stands nowhere in the
  library (full-text search would have brought it up), so a question about something else cannot reach a high coverage.
- ``best``: the same for the sentence that would be the answer.
- ``meaning``: nearness of the question and the nearest sentence, which recognises an answer in other words.

Their weighted sum against one threshold decides; with words alone the first two do. Rarity is relative to what was
found and nearness relative to unrelated sentences, so neither depends on the size of the library or on the encoder's
own scale. ``benchmarks/answers.py`` prints false answers against false abstentions over the range of thresholds. What
no signal here can see is a passage on the very subject that lacks just the fact asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepwell.library.answers.cues import answer_type
from deepwell.library.answers.ranking import Asked, Candidate
from deepwell.library.answers.words import terms
from deepwell.library.protocols import Evidence
from deepwell.library.records import Hit

WORDS_ONLY = 0.44
WITH_MEANING = 0.51
"""Thresholds on ``Strength.score``: the least at which about one answerable question in ten (seven with words alone) is
turned away."""


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
    coverage = max((asked.cover(frozenset(terms(piece.text))) for piece in evidence), default=0.0)
    if not asked.terms:  # nothing but function words ("who is it?") says nothing to look for
        coverage = 0.0
    everywhere = frozenset[str]().union(*groups)
    missing = tuple(term for term in asked.terms if term not in everywhere)
    best = ranked[0].signals["cover"] if ranked else 0.0
    near = [candidate.signals["meaning"] for candidate in ranked if "meaning" in candidate.signals]
    meaning = max(near, default=None)
    worded = 0.5 * coverage + 0.5 * best
    score = worded if meaning is None else 0.5 * worded + 0.5 * max(0.0, meaning)
    least = threshold if threshold is not None else WORDS_ONLY if meaning is None else WITH_MEANING
    return Strength(score, coverage, best, meaning, missing, bool(evidence) and score >= least)


def signals_of(
    question: str, evidence: Sequence[Evidence], found: Sequence[Hit], ranked: Sequence[Candidate]
) -> dict[str, float]:
    """What can be seen of the evidence, each 0 to 1."""
    groups = [frozenset(terms(hit.text)) for hit in found] or [frozenset(terms(piece.text)) for piece in evidence]
    asked = Asked(question, groups)
    held = [frozenset(terms(piece.text)) | frozenset(terms(piece.about)) for piece in evidence]
    shown = frozenset[str]().union(*held)
    best = max((candidate.signals["cover"] for candidate in ranked), default=0.0)
    near = [candidate for candidate in ranked[:8] if candidate.states and candidate.signals["cover"] >= 0.6 * best]
    typed = answer_type(question) in ("time", "number", "person", "place")
    cue = max((candidate.signals["cue"] for candidate in near), default=0.0)
    heaviest = max(asked.terms, key=lambda term: asked.weights[term], default="")
    top = ranked[0].terms if ranked else frozenset()
    return {
        "coverage": max(map(asked.cover, held), default=0.0),
        "best": ranked[0].signals["cover"] if ranked else 0.0,
        "shown": asked.cover(shown),
        "mean2": sum(sorted((c.signals["cover"] for c in ranked), reverse=True)[:3]) / 3,
        "typed": float(typed),
        "cue": cue if typed else 0.5,
        "topcue": ranked[0].signals["cue"] if ranked and typed else 0.5,
        "rare": float(heaviest in top),
        "rank": ranked[0].signals["rank"] if ranked else 0.0,
        "pairs": max((c.signals["pairs"] for c in ranked[:3]), default=0.0),
        "nterms": float(len(asked.terms)),
        "meaning": max((c.signals.get("meaning", 0.0) for c in ranked), default=0.0),
        "topmeaning": ranked[0].signals.get("meaning", 0.0) if ranked else 0.0,
    }
