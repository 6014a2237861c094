"""An answer without a language model: the one to three sentences that answer best, copied word for word.

It satisfies ``ChatModel``, so that ``ask`` treats and checks it like any other model: its reply has the form that
``prompt`` asks for, and is labelled ``extractive`` wherever it is shown.

How many sentences: the best one always; another only when it is nearly as good and says something new (maximal marginal
relevance, Carbonell and Goldstein 1998). They are given in reading order when they come from one passage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from deepwell.library.answers.cues import answer_type
from deepwell.library.answers.guard import planted
from deepwell.library.answers.prompt import NOT_FOUND, question_of
from deepwell.library.answers.ranking import Candidate, rank
from deepwell.library.protocols import Delta, Evidence, Message, TextEncoder

MOST = 3
"""Sentences in an answer, at most."""

NEARLY = 1.5
"""A further sentence may score this much less than the best one."""

REPETITION = 4.0
"""What a sentence loses when every word of it was said already."""

_PRONOUN = re.compile(r"(?:it|he|she|they)\b", re.IGNORECASE)
_BRACKETED = re.compile(r"\s?\[\s?\d{1,3}(?:\s?[,–-]\s?\d{1,3})*\s?\]")


class Extractive:
    """A ``ChatModel`` that copies sentences from the evidence of the last user message.

    Args:
        encoder: Compares meanings beside words, when there is one.
    """

    name = "extractive"

    def __init__(self, encoder: TextEncoder | None = None) -> None:
        self.encoder = encoder

    def chat(self, messages: Sequence[Message], *, max_tokens: int = 512, temperature: float = 0.0) -> Iterator[Delta]:
        """Give the best sentences, each with the number of its passage, then the quotes; ``NOT FOUND`` without any.

        ``max_tokens`` and ``temperature`` change nothing: the reply is short and always the same.
        """
        del max_tokens, temperature
        asked = next((message for message in reversed(messages) if message.role == "user"), None)
        chosen = self.choose(question_of(asked), asked.evidence) if asked is not None else []
        if not chosen:
            yield Delta(text=NOT_FOUND)
            return
        for candidate in chosen:
            yield Delta(text=f"{as_sentence(candidate.text)} [{candidate.n}]\n")
        yield Delta(text="\nQuotes:\n")
        for candidate in chosen:
            yield Delta(text=f'[{candidate.n}] "{" ".join(candidate.text.split())}"\n')

    def choose(self, question: str, evidence: Sequence[Evidence]) -> list[Candidate]:
        """The sentences of the answer in reading order; none when no sentence shares a word or a meaning with it."""
        ranked = [found for found in rank(question, evidence, self.encoder) if not planted(found.text)]
        ranked = [found for found in ranked if found.states] or ranked
        if not ranked or not _relates(ranked[0]):
            return []
        chosen = [_leader(question, ranked)]
        pool = [found for found in ranked[:20] if ranked[0].score - found.score <= NEARLY and _relates(found)]
        if answer_type(question) in ("time", "number") and chosen[0].signals["cue"]:
            pool = [found for found in pool if found.signals["cue"]]  # without a figure it can only pad the answer
        chosen += _lead_in(chosen[0], ranked)
        pool = [found for found in pool if found not in chosen]
        while pool and len(chosen) < MOST:
            said = frozenset[str]().union(*(candidate.terms for candidate in chosen))

            def worth(candidate: Candidate, said: frozenset[str] = said) -> float:
                repeated = len(candidate.terms & said) / max(1, len(candidate.terms))
                return candidate.score - REPETITION * repeated

            best = max(pool, key=worth)
            if chosen[0].score - worth(best) > 2 * NEARLY:
                break
            chosen.append(best)
            pool.remove(best)
        return sorted(chosen, key=lambda found: (_first(chosen, found.n), found.order))


def _leader(question: str, ranked: Sequence[Candidate]) -> Candidate:
    """The best sentence; when a figure or a date is wanted and it has none, a good one that has."""
    best = ranked[0]
    if answer_type(question) not in ("time", "number") or best.signals["cue"]:
        return best
    with_figure = (found for found in ranked[:20] if found.signals["cue"] and _relates(found))
    found = next(with_figure, best)
    return found if best.score - found.score <= 2 * NEARLY else best


def _lead_in(best: Candidate, ranked: Sequence[Candidate]) -> list[Candidate]:
    """The sentence before one that begins with a pronoun: "It squeaked." does not tell what did."""
    if not _PRONOUN.match(best.text):
        return []
    before = (found for found in ranked if found.n == best.n and found.order == best.order - 1)
    return [found for found in before if found.signals["cover"] > 0]


def _relates(candidate: Candidate) -> bool:
    return candidate.signals["cover"] > 0 or candidate.signals.get("meaning", 0.0) > 0.3


def _first(chosen: Sequence[Candidate], n: int) -> int:
    """Passages in the order in which the best sentences came."""
    return next(i for i, candidate in enumerate(chosen) if candidate.n == n)


def as_sentence(text: str) -> str:
    """One line, without the document's own reference numbers, which would look like our citations."""
    return _BRACKETED.sub("", " ".join(text.split()))
