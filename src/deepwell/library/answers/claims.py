"""Every sentence of an answer against its sources: what has none does not reach the reader.

The rule, chosen for someone who will act on the answer: **a sentence is kept only if it can be cited.** In order:

1. Each quote is looked for in the passage it names, else in the others (then it is credited to the right one); a quote
   found nowhere is dropped and counted.
2. Each marker in the text needs a quote of its passage. A marker without one gets the passage's sentence that best
   supports the claim, if one does; else the marker is dropped and counted.
3. Every number, address and link in a sentence must stand in a passage that it cites (or in the question). A true quote
   beside an invented figure is the commonest way to be wrong with a citation.
4. A sentence left without a citation gets one when some passage supports it well; else it is taken out, and a notice
   says how many were. Only "Yes." and "No." may stand alone, before a sentence that is cited.

Numbers in the text are then 1, 2, 3 in order of first use, one for each quote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from deepwell.library.answers.guard import planted
from deepwell.library.answers.prompt import Reply, before_stops, markers
from deepwell.library.answers.sentences import split_sentences
from deepwell.library.answers.verify import Passage, Quote, find, find_anywhere
from deepwell.library.answers.words import near_match, terms, words

SUPPORTS = 0.5
"""Share of a claim's content words that a sentence must hold to stand in for a missing quote of the named passage."""

SUPPORTS_UNASKED = 0.65
"""The same when the model named no passage at all."""

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*")
_ADDRESS = re.compile(
    r"(?:https?://|www\.)[^\s)\]>\"']+|[\w.+-]+@[\w-]+\.[\w.]+|\b[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.IGNORECASE
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_SPELLED = {
    word: str(n)
    for n, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
_LIST_ITEM = re.compile(r"^\s*\(?\d{1,2}[.)]\s+")
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
    found = _verified(reply.quotes, passages, tally)
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
        quotes = _sources(claim, numbers, found, by_n, question, tally)
        if not quotes:
            tally.left_out += 1
            waiting = ""
            continue
        places = [_place(quote, tally.quotes) for quote in quotes]
        marks = "".join(f"[{n}]" for n in dict.fromkeys(places))
        pieces.append(f"{waiting}{gap}{claim} {marks}")
        waiting = ""
    return Checked(_tidy("".join(pieces)), tuple(tally.quotes), tally.dropped, tally.moved, tally.left_out)


def _verified(quotes: Sequence[tuple[int, str]], passages: Sequence[Passage], tally: _Tally) -> dict[int, list[Quote]]:
    """Quotes that stand where they say, under the number that the model gave them."""
    found: dict[int, list[Quote]] = {}
    for named, wording in quotes:
        quote = find_anywhere(wording, named, passages)
        if quote is None:
            tally.dropped += 1
        else:
            tally.moved += quote.n != named
            found.setdefault(named, []).append(quote)
    return found


def _sources(
    claim: str,
    numbers: tuple[int, ...],
    found: dict[int, list[Quote]],
    by_n: dict[int, Passage],
    question: str,
    tally: _Tally,
) -> list[Quote]:
    held = frozenset(terms(claim))
    quotes: list[Quote] = []
    for number in numbers:
        own = [quote for quote in found.get(number, ()) if _related(claim, held, quote, by_n[quote.n], question)]
        if own:
            quotes.append(max(own, key=lambda quote: _share(held, quote.text)))
        elif number in by_n and (best := supporting(claim, [by_n[number]], SUPPORTS)) is not None:
            quotes.append(best)
        else:
            tally.dropped += 1
    if not numbers and (best := supporting(claim, list(by_n.values()), SUPPORTS_UNASKED)) is not None:
        quotes.append(best)
    cited = " ".join(by_n[quote.n].text for quote in quotes)
    return quotes if quotes and _facts_stand(claim, cited, question) else []


def supporting(claim: str, passages: Sequence[Passage], share: float) -> Quote | None:
    """The sentence in ``passages`` that holds most of the claim's content words and all of its numbers; None when no
    sentence holds at least ``share`` of them.
    """
    held = frozenset(terms(claim))
    if not held:
        return None
    best: Quote | None = None
    best_share = share
    for passage in passages:
        for span in split_sentences(passage.text):
            sentence = span.of(passage.text)
            own = _share(held, sentence)
            if own >= best_share and (best is None or own > best_share) and _facts_stand(claim, sentence, ""):
                quote = find(sentence, passage)
                if quote is not None:
                    best, best_share = quote, own
    return best


def _related(claim: str, held: frozenset[str], quote: Quote, passage: Passage, question: str) -> bool:
    """A claim must share a word with its quote, or with the passage beyond what the question says anyway."""
    if planted(claim):
        return False
    if not held or _share(held, quote.text) > 0:
        return True
    return _share(held - frozenset(terms(question)), passage.text) > 0


def _share(held: frozenset[str], text: str) -> float:
    if not held:
        return 0.0
    said = frozenset(terms(text))
    return sum(1.0 if term in said else 0.7 if near_match(term, said) else 0.0 for term in held) / len(held)


def _facts_stand(claim: str, source: str, question: str) -> bool:
    """Whether every number and address in the claim stands in the source or the question."""
    claim = _LIST_ITEM.sub("", claim)
    known = _THOUSANDS.sub("", f"{source} {question}".casefold())
    claim = _THOUSANDS.sub("", claim)
    numbers = {number.lstrip("+").rstrip(".,") for number in _NUMBER.findall(known)}
    digits = {*re.findall(r"\d+", known), *(_SPELLED[word] for word in words(known) if word in _SPELLED)}
    if any(n.lstrip("+") not in numbers and n not in digits for n in _NUMBER.findall(claim)):
        return False
    return all(address.casefold().rstrip(".,;") in known for address in _ADDRESS.findall(claim))


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
