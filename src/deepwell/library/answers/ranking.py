"""Which sentence of the evidence answers the question? Signals that each have a reason, added up.

For every sentence:

- ``cover``: which of the question's content words it holds, weighted by how rare each is among the gathered sentences
  (a word that every passage holds tells nothing); a word of the same family counts in part;
  and a sentence that points back ("It opened in 1932") is read together with the one before, which names its subject;
- ``context``: the same for the sentence with both its neighbours;
- ``pairs``: neighbouring words of the question that stand side by side in the sentence too ("severn bridge");
- ``rank``: what search thought of its passage, as one over its place;
- ``meaning``: nearness of question and sentence, when a text encoder is at hand;
- ``cue``: the kind of answer asked for is there (a date for "when"), and is not merely repeated from the question;
- ``shape``: questions, references and fragments make poor answers; headings, the description of a table, the head of a
  letter and a classifier's labels make none, unless nothing else is there (``kinds.py``).

What stands above a sentence, the headings and the title of its file, is lent to it as well: a scanned page of 1911 need
not repeat its year.

The weights start from a logistic regression on two very different sets (encyclopaedia questions, COVID-19 papers) and
are rounded to what serves both. The optimum is flat: halving or doubling any one of them moves the hit rate by about
two points at most.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from deepwell.library.answers import cues, kinds
from deepwell.library.answers.sentences import Span, split_sentences
from deepwell.library.answers.words import near_match, rarity, terms, weight_of
from deepwell.library.protocols import Evidence, TextEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENCODED = 32
"""Sentences whose meaning is compared: the best ones by words, so that a question costs one small batch."""

NEAR = 0.6
"""What a word of the same family is worth, beside 1 for the word itself."""

LENT = 0.5
"""What a word is worth that stands only in the sentence before one that points back to it."""

LENT_ABOVE = 0.35
"""What a word is worth that stands only in a heading above the sentence or in the title of its file."""

WEIGHTS = {"cover": 4.5, "context": 0.4, "rank": 0.8, "meaning": 5.0, "cue": 0.8, "shape": 1.5, "pairs": 0.8}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence that might answer.

    Attributes:
        n: The evidence it stands in.
        order: Its place among that evidence's sentences.
        span: Where it stands in the evidence's text.
        text: Its characters.
        score: Higher is better; only differences count.
        signals: Each signal's value, by name.
        terms: Its content words.
        states: Whether it says something by itself, unlike a heading or a list of labels.
    """

    n: int
    order: int
    span: Span
    text: str
    score: float
    signals: dict[str, float]
    terms: frozenset[str]
    states: bool = True


class Asked:
    """A question's content words and what each is worth among the gathered sentences."""

    def __init__(self, question: str, groups: Sequence[frozenset[str]]) -> None:
        in_order = terms(cues.without_asking(question))
        self.terms = tuple(dict.fromkeys(in_order))
        self.pairs = frozenset(pairwise(in_order))
        idf = rarity(groups)
        unseen = max(idf.values(), default=1.0)
        self.weights = {term: weight_of(term, idf, unseen) for term in self.terms}
        self.total = sum(self.weights.values()) or 1.0

    def cover(self, words: frozenset[str]) -> float:
        """Share of the question's weight that ``words`` hold (0 to 1)."""
        gained = 0.0
        for term in self.terms:
            if term in words:
                gained += self.weights[term]
            elif near_match(term, words):
                gained += NEAR * self.weights[term]
        return gained / self.total


def rank(question: str, evidence: Sequence[Evidence], encoder: TextEncoder | None = None) -> list[Candidate]:
    """Every sentence of ``evidence``, best first."""
    found = [(piece, index, span) for piece in evidence for index, span in enumerate(split_sentences(piece.text))]
    if not found:
        return []
    in_order = [terms(span.of(piece.text)) for piece, _, span in found]
    words = [frozenset(sentence) for sentence in in_order]
    asked = Asked(question, words)
    wanted = cues.answer_type(question)
    above = kinds.above(evidence, found)
    states = kinds.states(question, evidence, found)
    ranks = {piece.n: 1.0 / (1 + position) for position, piece in enumerate(evidence)}

    rows: list[dict[str, float]] = []
    for i, (piece, order, span) in enumerate(found):
        text = span.of(piece.text)
        around = words[i]
        if i and found[i - 1][0].n == piece.n:
            around |= words[i - 1]
        if i + 1 < len(found) and found[i + 1][0].n == piece.n:
            around |= words[i + 1]
        cover = asked.cover(words[i])
        if order and _POINTS_BACK.match(text):
            cover += LENT * (asked.cover(words[i] | words[i - 1]) - cover)
        if lent := above[i] - words[i]:
            cover += LENT_ABOVE * (asked.cover(words[i] | lent) - asked.cover(words[i]))
        ordered = in_order[i]
        pairs = len(asked.pairs & frozenset(pairwise(ordered)))
        rows.append(
            {
                "cover": cover,
                "context": asked.cover(around),
                "rank": ranks[piece.n],
                "cue": cues.cue(wanted, question, text),
                "shape": shape(text, len(words[i])) if states[i] else -2.0,
                "pairs": pairs / max(1, len(asked.pairs)),
            }
        )
    scores = [_total(row) for row in rows]
    if encoder is not None:
        best = sorted(range(len(found)), key=lambda i: -scores[i])[:ENCODED]
        cosines = similarity(question, [_with_subject(found, i) for i in best], encoder)
        floor = float(cosines.min())  # what was not compared is taken to mean no more than the least of those that were
        for row in rows:
            row["meaning"] = floor
        for i, cosine in zip(best, cosines, strict=True):
            rows[i]["meaning"] = float(cosine)
        scores = [_total(row) for row in rows]
    candidates = [
        Candidate(piece.n, index, span, span.of(piece.text), score, row, held, says)
        for (piece, index, span), row, score, held, says in zip(found, rows, scores, words, states, strict=True)
    ]
    return sorted(candidates, key=lambda candidate: -candidate.score)


def _with_subject(found: Sequence[tuple[Evidence, int, Span]], i: int) -> str:
    """A sentence as it is compared in meaning: one that points back together with the sentence before it."""
    piece, order, span = found[i]
    if order and _POINTS_BACK.match(span.of(piece.text)):
        span = Span(found[i - 1][2].start, span.end)
    return span.of(piece.text)


def _total(signals: dict[str, float]) -> float:
    return sum(WEIGHTS[name] * value for name, value in signals.items())


def similarity(question: str, texts: Sequence[str], encoder: TextEncoder) -> NDArray[np.float32]:
    """Nearness of the question to each text [N]: 1 the same, 0 as near as to a sentence about something else.

    Cosines of unrelated texts are about 0 with one encoder and 0.7 with another, so they are measured for this question
    and taken as zero.
    """
    asked = encoder.encode([question], query=True)[0]
    unrelated = float((_background(encoder) @ asked).mean())
    cosines = encoder.encode(list(texts)) @ asked
    nearness: NDArray[np.float32] = (cosines - unrelated) / max(1e-6, 1.0 - unrelated)
    return nearness


_UNRELATED = (
    "The cat slept on the warm window sill all afternoon.",
    "Add two spoons of sugar and stir until it dissolves.",
    "The train to the coast leaves from platform nine.",
    "She bought a blue coat at the market last winter.",
    "The committee approved the budget for the new school.",
    "Heavy rain is expected in the northern valleys tonight.",
    "He tuned the violin before the concert began.",
    "The server restarts whenever its memory runs out.",
    "Both teams scored in the second half of the match.",
    "The old oak lost a branch in the storm.",
    "Interest rates rose for the third time this year.",
    "The cell membrane controls what enters and leaves.",
)
_backgrounds: dict[str, NDArray[np.float32]] = {}


def _background(encoder: TextEncoder) -> NDArray[np.float32]:
    """Vectors of sentences about nothing in particular, encoded once for each encoder."""
    if encoder.fingerprint not in _backgrounds:
        _backgrounds[encoder.fingerprint] = encoder.encode(list(_UNRELATED))
    return _backgrounds[encoder.fingerprint]


class Remembering:
    """A ``TextEncoder`` that encodes each text once; for the length of one question, whose steps compare the same."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.name, self.fingerprint, self.dim = encoder.name, encoder.fingerprint, encoder.dim
        self._encoder = encoder
        self._known: dict[tuple[str, bool], NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Unit vectors [N, dim]."""
        new = [text for text in dict.fromkeys(texts) if (text, query) not in self._known]
        if new:
            for text, vector in zip(new, self._encoder.encode(new, query=query), strict=True):
                self._known[text, query] = vector
        if not texts:
            return self._encoder.encode([], query=query)
        return np.stack([self._known[text, query] for text in texts])


_POINTS_BACK = re.compile(r"(?:it|its|he|his|she|her|they|their|this|these|that|those|here|there)\b", re.IGNORECASE)

_REFERENCE = re.compile(
    r"https?://|\bdoi\b|et al\.,? \(?\d{4}|^\W*(?:figure|fig|table|supplementary|copyright|license|sha)\b",
    re.IGNORECASE,
)


def shape(text: str, content_words: int) -> float:
    """How little a text looks like a statement, from -1 (a fragment, heading, question or reference) to 0."""
    stripped = text.rstrip()
    badness = 0.0
    if content_words < 3:
        badness += 0.6
    if stripped.endswith(("?", "？")):
        badness += 1.0
    if stripped.startswith("#") or (
        len(stripped) < 60 and stripped[-1:].isalnum() and not re.search(r"\d|[:：]", stripped)
    ):
        badness += 0.4
    if _REFERENCE.search(stripped):
        badness += 0.4
    return -min(1.0, badness)
