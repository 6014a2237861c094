"""Which sentences of a passage say something by themselves, and what stands above each.

Readers give headings, table descriptions and the heads of letters together with the text, because people search for
them. As an answer they are useless: "The hoard under the pear tree" does not tell who found it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from deepwell.library.answers.cues import answer_type
from deepwell.library.answers.sentences import Span
from deepwell.library.answers.words import terms, words
from deepwell.library.protocols import Evidence

Found = tuple[Evidence, int, Span]

_ENDS = re.compile(r"[.!?;:,。！？；：…][\"'”’)\]]*$")
_ITEM = re.compile(r"\s*(?:[-*•‣◦–—]\s|\(?\d{1,3}[.)]\s)")
_TABLE = re.compile(r"Table .*: .*\d rows?, [\d,]+ columns?\.")
_SAMPLES = re.compile(r"Sample rows:?\s*")
_LETTER_HEAD = re.compile(r"(?:from|to|cc|bcc|subject|date|sent|reply-to|von|an|betreff):\s", re.IGNORECASE)
_OF_TABLES = re.compile(r"\b(?:tables?|columns?|rows?|sheets?)\b", re.IGNORECASE)
_OF_LETTERS = re.compile(
    r"\b(?:e-?mails?|mails?|letters?|sent|send|sender|wrote|write|subject|recipients?)\b", re.IGNORECASE
)
_OF_PICTURES = re.compile(
    r"\b(?:photo(?:graph)?s?|pictures?|images?|drawings?|shown?|sounds?|recordings?|heard?)\b", re.IGNORECASE
)


def states(question: str, evidence: Sequence[Evidence], found: Sequence[Found]) -> list[bool]:
    """For each sentence whether it can answer by itself. What the question asks for by name (letters, tables, pictures)
    always can; what only repeats the question's own words cannot, when a figure, a name or a place is wanted.
    """
    named = {piece.n: {tuple(words(line)) for line in piece.about.split("\n")} for piece in evidence}
    tables, letters = bool(_OF_TABLES.search(question)), bool(_OF_LETTERS.search(question))
    pictures = of_pictures(question)
    typed, asked = answer_type(question) in ("time", "number", "person", "place"), set(terms(question))
    said: list[bool] = []
    describes = False
    for i, (piece, order, span) in enumerate(found):
        text = span.of(piece.text)
        if order == 0 or _SAMPLES.match(text):
            describes = bool(_TABLE.match(text)) and not tables
        if describes and text.count(": ") > 1 and "; " in text and not _TABLE.match(text):
            describes = False
        after = found[i + 1][2].start if i + 1 < len(found) and found[i + 1][0].n == piece.n else None
        gap = piece.text[span.end : after] if after is not None else ""
        said.append(
            not (
                describes
                or (not piece.words and not pictures)
                or (_LETTER_HEAD.match(text) and not letters and "; " not in text)
                or (typed and not set(terms(text)) - asked)
                or _is_heading(text, gap, named[piece.n])
            )
        )
    return said


def of_pictures(question: str) -> bool:
    """Whether a question asks about what pictures show or recordings sound like."""
    return bool(_OF_PICTURES.search(question))


def _is_heading(text: str, gap: str, named: set[tuple[str, ...]]) -> bool:
    if text.startswith("#"):
        return True
    if "\n" in text or len(text) > 100 or _ENDS.search(text) or _ITEM.match(text):
        return False
    if tuple(words(text)) in named:
        return True
    return gap.count("\n") >= 2 and not any(char.isdigit() for char in text)


def above(evidence: Sequence[Evidence], found: Sequence[Found]) -> list[frozenset[str]]:
    """For each sentence the content words of the headings above it and of its file's title."""
    titles = {piece.n: frozenset(terms(piece.about)) for piece in evidence}
    lent: list[frozenset[str]] = []
    heading = frozenset[str]()
    for i, (piece, order, span) in enumerate(found):
        if order == 0:
            heading = frozenset()
        lent.append(titles[piece.n] | heading)
        text = span.of(piece.text)
        after = found[i + 1][2].start if i + 1 < len(found) and found[i + 1][0].n == piece.n else None
        gap = piece.text[span.end : after] if after is not None else ""
        if _LETTER_HEAD.match(text) and "; " not in text:
            heading |= frozenset(terms(text))  # who writes "I" stands in the head of the letter
        elif _is_heading(text, gap, set()):
            heading = frozenset(terms(text))
    return lent
