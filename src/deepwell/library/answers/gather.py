"""Evidence for a question: the best passages, each once, within what a model can read.

Passages come in search's order. One that repeats most of another (overlapping windows, copies of a file) is left out,
and so is one that no longer fits; sentences planted to give orders to a machine are taken out of the text a model sees.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepwell.library.answers import guard
from deepwell.library.answers.kinds import of_pictures
from deepwell.library.answers.ranking import Asked
from deepwell.library.answers.sentences import Span, split_sentences
from deepwell.library.answers.verify import Passage
from deepwell.library.answers.words import CJK, terms, with_iso_dates, words
from deepwell.library.protocols import Evidence
from deepwell.library.records import Filters, Hit, Query, Results

Search = Callable[[Query], Results]

REPEATS = 0.8
"""A passage of which this share stands in one already taken is a repetition."""

_SENTENCE_END = re.compile(r"[.!?。！？](?:\s|$)")
_CJK = re.compile(f"[{CJK}]")


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was found for a question.

    Attributes:
        evidence: Numbered from 1, as shown to a model.
        hits: The hit behind each piece of evidence, in the same order.
        passages: The same, ready to be compared with quotes; quotes are checked against the text as stored.
        found: Everything that search gave, for judging how good it is.
        notices: What a person should know, search's own notices included.
    """

    evidence: tuple[Evidence, ...]
    hits: tuple[Hit, ...]
    passages: tuple[Passage, ...]
    found: tuple[Hit, ...]
    notices: tuple[str, ...]


def gather(question: str, search: Search, *, filters: Filters, tokens: int, most: int, looked_at: int = 30) -> Gathered:
    """Search and choose.

    Args:
        question: In the person's words.
        search: Finds hits for a query.
        filters: Which documents may answer.
        tokens: About how many tokens of evidence a model may be shown.
        most: Passages at most.
        looked_at: Hits asked of search; more than ``most``, because some repeat each other.
    """
    results = search(Query(text=with_iso_dates(question), filters=filters, limit=max(looked_at, most)))
    taken: list[tuple[Hit, str, tuple[Span, ...]]] = []
    shingles: list[frozenset[tuple[str, ...]]] = []
    left, orders = tokens, 0
    for hit in _in_order(question, results, most):
        if len(taken) == most:
            break
        if not hit.text.strip():
            continue
        own = _shingles(hit.text)
        if any(len(own & other) >= REPEATS * len(own) for other in shingles):
            continue
        barred = guard.planted(hit.text)
        orders += bool(barred)
        text = guard.without(hit.text, barred, "\n\n").strip()
        size = estimate_tokens(text)
        if size > left and taken:
            continue
        if size > left:
            text = _begin(text, left)
        if not text:
            continue
        taken.append((hit, text, barred))
        shingles.append(own)
        left -= min(size, left)
    notices = list(results.notices)
    if orders:
        which = "A passage holds" if orders == 1 else f"{orders} passages hold"
        notices.append(f"{which} text that gives orders to a language model; it was left out.")
    return Gathered(
        evidence=tuple(
            Evidence(n, text, hit.path, hit.place.describe(), hit.score, about(hit), has_words(hit))
            for n, (hit, text, _) in enumerate(taken, 1)
        ),
        hits=tuple(hit for hit, _, _ in taken),
        passages=tuple(Passage(n, hit.text, barred, about(hit)) for n, (hit, _, barred) in enumerate(taken, 1)),
        found=tuple(results),
        notices=tuple(notices),
    )


def about(hit: Hit) -> str:
    """What a hit's file and headings say of it: ``keepers journal 1911`` may hold the only date there is."""
    file = hit.path.rpartition("/")[2].rpartition("\\")[2].removeprefix("text:")
    stem = file.rpartition(".")[0] or file
    return "\n".join(dict.fromkeys(part for part in (hit.title, stem, *hit.place.section) if part))


def has_words(hit: Hit) -> bool:
    """Whether a hit's text was written or said, and is not a list of what a classifier saw or heard."""
    return hit.kind not in ("image", "audio") or bool(hit.place.boxes) or bool(_SENTENCE_END.search(hit.text))


def _in_order(question: str, hits: Sequence[Hit], most: int) -> list[Hit]:
    """Search's order, but a hit that holds more of the question's words than any of the first gets a place among them:
    of a hundred rows of a table that all mean the same, one has the right date.
    """
    if not of_pictures(question):  # labels answer nothing else, and would take the place of words
        hits = sorted(hits, key=lambda hit: not has_words(hit))
    if len(hits) <= most:
        return list(hits)
    held = [frozenset(terms(hit.text)) for hit in hits]
    asked = Asked(question, held)
    covers = [asked.cover(own) for own in held]
    best = max(range(len(hits)), key=lambda i: (covers[i], -i))
    if best < most or covers[best] <= max(covers[:most]):
        return list(hits)
    at = max(1, most // 2)
    return [*hits[:at], hits[best], *hits[at:best], *hits[best + 1 :]]


def estimate_tokens(text: str) -> int:
    """About how many tokens a language model makes of a text: four letters each, or one CJK character."""
    cjk = len(_CJK.findall(text))
    return cjk + (len(text) - cjk + 3) // 4


def _begin(text: str, tokens: int) -> str:
    """Whole sentences from the start that fit; at least the first."""
    end = 0
    for span in split_sentences(text):
        if end and estimate_tokens(text[: span.end]) > tokens:
            break
        end = span.end
    return text[:end]


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Runs of five words, which two texts share only when one was copied from the other."""
    sequence: Sequence[str] = words(text)
    return frozenset(tuple(sequence[i : i + 5]) for i in range(max(1, len(sequence) - 4)))
