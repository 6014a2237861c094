"""Is a quote really there? Word for word, decided by code and never by a model.

Quote and passage are cut into words and marks after Unicode's compatibility normalisation (NFKC), so that white space,
line breaks, curly or straight quotation marks, kinds of dashes and brackets, letter case and a word hyphenated at a
line's end make no difference; everything else does. A number is one word with its sign and decimals, so "5" is not
found in "-5" or "5.2". An ellipsis joins parts that must stand in the passage in the same order.

What a verified quote says is always the passage's own characters: the span that matched is cut out of the passage, and
what the model wrote is thrown away.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from deepwell.library.answers.sentences import Span
from deepwell.library.answers.words import CJK, STOPWORDS

MIN_WORDS = 3
"""A shorter quote proves nothing: "the" stands everywhere."""

_MARKS = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»″〝〞「」『』", '"'),
        **dict.fromkeys("‘’‚‛′‹›´", "'"),
        **dict.fromkeys("‐‑‒–—―−﹣－", "-"),
        **dict.fromkeys("[{【〔", "("),
        **dict.fromkeys("]}】〕", ")"),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", ""),
    }
)
_TOKEN = re.compile(
    rf"""(?P<ellipsis>\.\.\.+|\(\s?\.\.\.\s?\))
    |   (?P<broken>(?<=[^\W\d_])-[^\S\n]*\n\s*(?=[^\W\d_]))       # a word hyphenated at the end of a line
    |   (?P<number>(?:(?<![\w)])[-+])?\d+(?:[.,]\d+)*(?![^\W{CJK}]))
    |   (?P<cjk>[{CJK}])
    |   (?P<word>(?:[^\W{CJK}])+(?:'(?:[^\W\d_{CJK}])+)*)
    |   (?P<quote>''|``|")
    |   (?P<markup>[*`]+)
    |   (?P<mark>[^\s])""",
    re.VERBOSE,
)
_BROKEN = "-\n"


@dataclass(frozen=True, slots=True)
class Token:
    """A word or mark in comparable form, and the characters of the original text it came from."""

    text: str
    start: int
    end: int
    is_word: bool


@dataclass(frozen=True)
class Passage:
    """A passage that quotes are compared with.

    Attributes:
        n: The number it is cited by.
        text: Its words as stored.
        barred: Spans that must not be quoted (instructions planted in a document).
        about: What is known of it beside its words: its file's title and the headings above it. Never quoted.
    """

    n: int
    text: str
    barred: tuple[Span, ...] = ()
    about: str = ""

    @cached_property
    def speaks(self) -> str:
        """The text without what is barred: an order must not vouch for the address that it names."""
        text = self.text
        for span in reversed(self.barred):
            text = f"{text[: span.start]}\n\n{text[span.end :]}"
        return text

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """The words and marks of the text in comparable form."""
        return tuple(_tokens(self.text))


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote found: its passage, the spans that matched, and the passage's own words for it."""

    n: int
    spans: tuple[Span, ...]
    text: str


def find(quote: str, passage: Passage) -> Quote | None:
    """The quote as it stands in ``passage``, or None when it does not, is too short, or touches a barred span."""
    parts = _parts(quote)
    words = [token for part in parts for token in part if token.text[-1:].isalnum()]
    whole = _trim([t for t in passage.tokens if t.text != _BROKEN])
    is_whole = len(parts) == 1 and [t.text for t in parts[0]] == [t.text for t in whole]
    if not is_whole and not _long_enough(parts, words):
        return None
    spans: list[Span] = []
    at = 0
    for part in parts:
        found = _find_part([token.text for token in part], passage, at)
        if found is None:
            return None
        first, last = found
        end = passage.tokens[last].end
        if passage.text[end : end + 1] and passage.text[end] in ".!?。！？":  # a sentence keeps its full stop
            end += 1
        spans.append(Span(passage.tokens[first].start, end))
        at = last + 1
    return Quote(passage.n, tuple(spans), " … ".join(span.of(passage.text) for span in spans)) if spans else None


def find_anywhere(quote: str, named: int, passages: Sequence[Passage]) -> Quote | None:
    """The quote in the passage numbered ``named``, else in the first other one that has it."""
    ordered = sorted(passages, key=lambda passage: passage.n != named)
    return next((found for passage in ordered if (found := find(quote, passage)) is not None), None)


def _long_enough(parts: list[list[Token]], words: list[Token]) -> bool:
    if len(words) < MIN_WORDS or all(word.text in STOPWORDS for word in words):
        return False
    if all(re.match(f"[{CJK}]", word.text) for word in words):
        return len(words) > MIN_WORDS  # single characters say less than words
    # Ellipses must not stitch a claim together from crumbs.
    return len(parts) == 1 or all(sum(token.is_word for token in part) >= 2 for part in parts)


def _parts(quote: str) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    for token in _tokens(quote):
        if token.text == "...":
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in map(_trim, parts) if part]


def _trim(tokens: list[Token]) -> list[Token]:
    """Marks at either end carry nothing: a model adds a full stop or closes a bracket."""
    first = next((i for i, token in enumerate(tokens) if token.is_word), len(tokens))
    last = next((i for i in range(len(tokens) - 1, -1, -1) if tokens[i].is_word), -1)
    return tokens[first : last + 1]


def _find_part(wanted: list[str], passage: Passage, at: int) -> tuple[int, int] | None:
    """First and last token index of the first match at or after token ``at``."""
    for first in range(at, len(passage.tokens)):
        last = _match_at(wanted, passage.tokens, first)
        if last is None:
            continue
        start, end = passage.tokens[first].start, passage.tokens[last].end
        if not any(span.start < end and start < span.end for span in passage.barred):
            return first, last
    return None


def _match_at(wanted: list[str], tokens: Sequence[Token], first: int) -> int | None:
    """Index of the last token when ``wanted`` stands at ``first``, else None."""
    i, last = first, None
    for word in wanted:
        if i >= len(tokens):
            return None
        token = tokens[i].text
        broken = i + 2 < len(tokens) and tokens[i + 1].text == _BROKEN
        if broken and word == token + tokens[i + 2].text:
            last, i = i + 2, i + 3
        elif word == token or (token == _BROKEN and word == "-"):
            last, i = i, i + 1
        else:
            return None
    return last


def _tokens(text: str) -> list[Token]:
    normal, offsets = _normalise(text)
    found = []
    for match in _TOKEN.finditer(normal):
        kind = match.lastgroup
        if kind == "markup":
            continue
        start, end = offsets[match.start()], offsets[match.end() - 1] + 1
        value = {"ellipsis": "...", "broken": _BROKEN, "quote": '"'}.get(kind or "", match.group())
        end = max(end, offsets[match.end()] if match.end() < len(offsets) else len(text))
        while end > start and text[end - 1].isspace() and kind != "broken":
            end -= 1
        found.append(Token(value.casefold(), start, end, kind in ("number", "cjk", "word") or _is_unit(value)))
    return found


def _is_unit(mark: str) -> bool:
    """A currency or per cent sign belongs to its number and is not trimmed away."""
    return mark in ("%", "°") or unicodedata.category(mark[0]) == "Sc"


def _normalise(text: str) -> tuple[str, list[int]]:
    """NFKC with unified marks, and for each character of the result the index it came from."""
    if text.isascii():
        return text.translate(_MARKS), list(range(len(text)))
    pieces: list[str] = []
    offsets: list[int] = []
    at = 0
    while at < len(text):
        stop = at + 1
        while stop < len(text) and _joins(text[stop]):
            stop += 1
        piece = text[at:stop].translate(_MARKS)
        piece = unicodedata.normalize("NFKC", piece).translate(_MARKS)
        pieces.append(piece)
        offsets += [at] * len(piece)
        at = stop
    return "".join(pieces), offsets


def _joins(char: str) -> bool:
    """Whether a character is composed with the one before it: accents, Hangul vowels, voiced-sound marks."""
    return unicodedata.combining(char) != 0 or "\u1160" <= char <= "\u11ff" or char in "\uff9e\uff9f"
