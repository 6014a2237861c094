"""Every sentence of an answer against its sources: what has none does not reach the reader.

The rule, chosen for someone who will act on the answer: **a sentence is kept only if it can be cited.** In order:

1. Each quote is looked for in the passage it names, else in the others (then it is credited to the right one); a quote
   found nowhere is dropped and counted.
2. Each marker in the text needs a quote of its passage. A marker without one gets the passage's sentence that best
   supports the claim, if one does; else the marker is dropped and counted. A sentence that denies what the claim says
   (or the reverse) supports nothing, and where the marker's own quote was invented, nearly every word must be there.
3. Every number, in digits or in words, every address and every name in a sentence must stand in a passage that it cites
   (or in the question). A true quote beside an invented figure is the commonest way to be wrong with a citation.
4. A sentence left without a citation gets one when some passage supports it well; else it is taken out, and a notice
   says how many were. Only "Yes." and "No." may stand alone, before a sentence that is cited.

Numbers in the text are then 1, 2, 3 in order of first use, one for each quote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from deepwell.library.answers.cues import answer_type
from deepwell.library.answers.facts import contradicts, facts_stand, is_figure_or_denial, shares_a_number, unknown_names
from deepwell.library.answers.guard import planted
from deepwell.library.answers.prompt import Reply, before_stops, markers
from deepwell.library.answers.sentences import split_sentences
from deepwell.library.answers.verify import Passage, Quote, find, find_anywhere
from deepwell.library.answers.words import near_match, terms

SUPPORTS = 0.5
"""Share of a claim's content words that a sentence must hold to stand in for a missing quote of the named passage."""

SUPPORTS_UNASKED = 0.65
"""The same when the model named no passage at all."""

SUPPORTS_FAILED = 0.85
"""The same when the model gave a quote of that passage and it was found nowhere: it has invented once already."""

_NODS = frozenset("yes no ja nein oui non sí si 是 不是 はい いいえ".split())


@dataclass(frozen=True, slots=True)
class Checked:
    """An answer whose every sentence is cited.

    Attributes:
        text: With markers [1] to [k]; empty when nothing could be kept.
        quotes: The quote behind each marker, in order.
        dropped: Quotes and markers that failed.
        moved: Quotes credited to another passage than the one named.
        left_out: Sentences taken out for want of a source.
    """

    text: str
    quotes: tuple[Quote, ...]
    dropped: int
    moved: int
    left_out: int


@dataclass
class _Tally:
    quotes: list[Quote] = field(default_factory=list)
    dropped: int = 0
    moved: int = 0
    left_out: int = 0


def check(reply: Reply, question: str, passages: Sequence[Passage]) -> Checked:
    """Keep what can be cited."""
    tally = _Tally()
    by_n = {passage.n: passage for passage in passages}
    found, failed = _verified(reply.quotes, passages, tally)
    strict = answer_type(question) in ("person", "place")
    text = before_stops(reply.body)
    pieces: list[str] = []
    waiting = ""  # a nod that stands only if the next sentence does
    at = 0
    for span in split_sentences(text):
        gap, at = text[at : span.start], span.end
        claim, numbers = markers(span.of(text))
        claim = claim.strip()
        if not any(c.isalnum() for c in claim):
            tally.dropped += len(numbers)
            continue
        if claim.strip(" .,!。").lower() in _NODS and not numbers:
            waiting = gap + claim
            continue
        quotes = _sources(claim, numbers, found, failed, by_n, question, tally, strict=strict)
        if not quotes:
            tally.left_out += 1
            waiting = ""
            continue
        places = [_place(quote, tally.quotes) for quote in quotes]
        marks = "".join(f"[{n}]" for n in dict.fromkeys(places))
        pieces.append(f"{waiting}{gap}{claim} {marks}")
        waiting = ""
    return Checked(_tidy("".join(pieces)), tuple(tally.quotes), tally.dropped, tally.moved, tally.left_out)


def _verified(
    quotes: Sequence[tuple[int, str]], passages: Sequence[Passage], tally: _Tally
) -> tuple[dict[int, list[Quote]], frozenset[int]]:
    """Quotes that stand where they say, under the number that the model gave them; and the numbers whose quotes do not
    stand anywhere.
    """
    found: dict[int, list[Quote]] = {}
    failed: set[int] = set()
    for named, wording in quotes:
        quote = find_anywhere(wording, named, passages)
        if quote is None:
            tally.dropped += 1
            failed.add(named)
        else:
            tally.moved += quote.n != named
            found.setdefault(named, []).append(quote)
    return found, frozenset(failed)


def _sources(
    claim: str,
    numbers: tuple[int, ...],
    found: dict[int, list[Quote]],
    failed: frozenset[int],
    by_n: dict[int, Passage],
    question: str,
    tally: _Tally,
    *,
    strict: bool,
) -> list[Quote]:
    held = frozenset(terms(claim))
    quotes: list[Quote] = []
    for number in numbers:
        own = [quote for quote in found.get(number, ()) if _related(claim, held, quote, by_n[quote.n], question)]
        least = SUPPORTS_FAILED if number in failed else SUPPORTS
        if own:
            quotes.append(max(own, key=lambda quote: _share(held, quote.text)))
        elif number in by_n and (best := supporting(claim, [by_n[number]], least)) is not None:
            quotes.append(best)
        else:
            tally.dropped += 1
    if not numbers:
        least = SUPPORTS_FAILED if failed else SUPPORTS_UNASKED
        if (best := supporting(claim, list(by_n.values()), least)) is not None:
            quotes.append(best)
    cited = "\n".join(f"{by_n[quote.n].about}\n{by_n[quote.n].speaks}" for quote in quotes)
    if not quotes or not facts_stand(claim, cited, question) or unknown_names(claim, cited, question, strict=strict):
        return []
    return quotes


def supporting(claim: str, passages: Sequence[Passage], share: float) -> Quote | None:
    """The sentence in ``passages`` that holds most of the claim's content words and all of its numbers, and does not
    say the contrary; else two neighbouring ones; None when those do not hold at least ``share`` of the words either.
    """
    held = frozenset(terms(claim))
    if not held:
        return None
    for together in (1, 2):
        best: Quote | None = None
        best_share = share
        for passage in passages:
            spans = split_sentences(passage.text)
            for first, last in zip(spans, spans[together - 1 :], strict=False):
                sentence = passage.text[first.start : last.end]
                own = _share(held, sentence)
                if own < best_share or (best is not None and own == best_share):
                    continue
                if facts_stand(claim, sentence, "") and not contradicts(claim, sentence):
                    quote = find(sentence, passage)
                    if quote is not None:
                        best, best_share = quote, own
        if best is not None:
            return best
    return None


def _related(claim: str, held: frozenset[str], quote: Quote, passage: Passage, question: str) -> bool:
    """A claim must share a word with its quote, or with the passage beyond what the question says anyway."""
    if planted(claim):
        return False
    held = frozenset(term for term in held if not is_figure_or_denial(term))
    if not held or _share(held, quote.text) > 0:
        return True
    if shares_a_number(claim, quote.text):
        return True
    return _share(held - frozenset(terms(question)), passage.speaks) > 0


def _share(held: frozenset[str], text: str) -> float:
    if not held:
        return 0.0
    said = frozenset(terms(text))
    return sum(1.0 if term in said else 0.7 if near_match(term, said) else 0.0 for term in held) / len(held)


def _place(quote: Quote, quotes: list[Quote]) -> int:
    """The quote's number: that of an equal one, else the next."""
    for n, other in enumerate(quotes, 1):
        if other.n == quote.n and other.spans == quote.spans:
            return n
    quotes.append(quote)
    return len(quotes)


def _tidy(text: str) -> str:
    """One blank between sentences, line breaks kept, no bullets left hanging."""
    lines = [" ".join(line.split()) for line in text.strip().split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line for line in lines if line != "-")).strip()
