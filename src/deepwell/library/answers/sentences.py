"""Where sentences begin and end: the unit that is scored, quoted and cited.

Rules, not a model: a full stop ends a sentence unless an abbreviation, an initial or a number stands before it or a
small letter follows; Chinese and Japanese full stops always end one; a blank line always does; a line break does when
the line looks like a heading, a list item or a table row ("year: 2021; rain: 3.1") rather than a wrapped line. What is
left too long (a transcript without punctuation, a table in one line) is cut at the best softer border.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CHARS = 500

_ABBREVIATIONS = frozenset(
    """mr mrs ms dr prof st sr jr rev hon gen col capt lt sgt maj gov sen rep pres messrs mme mlle
    e.g i.e eg ie cf ca vs viz al et approx est dept fig figs eq eqs sec ch vol vols no nos pp p ed eds ref refs
    inc ltd co corp bros assn univ jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun
    u.s u.k u.n e.u d.c a.m p.m b.c a.d ph.d m.d b.a m.a bzw z.b d.h usw nr bd hr fr str sra sig avda mt ft""".split()
)
_MAY_END = frozenset("etc inc ltd co corp a.m p.m u.s u.k u.n e.u d.c b.c a.d ph.d m.d jr sr al usw".split())

_BORDER = re.compile(
    r"""(?P<cjk>[。！？｡]+[」』”’）】〉》]*)
    |   (?P<stop>[.!?…]+(?:['"”’»)\]]|'')*)(?=\s|$)
    |   (?P<blank>\n[^\S\n]*\n\s*)
    |   (?P<line>\n)""",
    re.VERBOSE,
)
_ITEM = re.compile(r"\s*(?:[-*•‣◦–—]\s|\(?\d{1,3}[.)]\s|#{1,6}\s|\|)")
_ROW = re.compile(r"[^:;\n]{1,80}: [^;\n]*; [^:;\n]{1,80}: ")
_SOFT = re.compile(r"[;:]\s|[,、，]\s?|\s")


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range of characters in a text."""

    start: int
    end: int

    def of(self, text: str) -> str:
        """The characters themselves."""
        return text[self.start : self.end]


def split_sentences(text: str) -> list[Span]:
    """Spans of the sentences of ``text``, in order, without white space at their ends; together they hold all of its
    characters but white space.
    """
    spans: list[Span] = []
    start = 0
    for match in _BORDER.finditer(text):
        if match.start() < start:
            continue
        if (
            match["cjk"]
            or match["blank"]
            or (match["stop"] and _stop_ends(text, start, match))
            or (match["line"] and _line_ends(text, start, match.start()))
        ):
            _push(text, start, match.end(), spans)
            start = match.end()
    _push(text, start, len(text), spans)
    return spans


def _push(text: str, start: int, end: int, spans: list[Span]) -> None:
    """Trim, cut what is too long, and keep what is left; bare punctuation joins the sentence before it."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start == end:
        return
    if spans and not any(c.isalnum() for c in text[start:end]) and "\n" not in text[spans[-1].end : start]:
        spans[-1] = Span(spans[-1].start, end)
        return
    while end - start > MAX_CHARS:
        cut = _soft_cut(text, start)
        stop = cut
        while stop > start and text[stop - 1].isspace():
            stop -= 1
        spans.append(Span(start, stop))
        start = cut
        while start < end and text[start].isspace():
            start += 1
    if start < end:
        spans.append(Span(start, end))


def _soft_cut(text: str, start: int) -> int:
    """The last semicolon, else comma, else blank in the second half of the allowed length; else the length itself."""
    best: dict[str, int] = {}
    for match in _SOFT.finditer(text, start + MAX_CHARS // 2, start + MAX_CHARS):
        best[";" if match.group()[0] in ";:" else "," if match.group()[0] in ",、，" else " "] = match.end()
    return best.get(";") or best.get(",") or best.get(" ") or start + MAX_CHARS


def _stop_ends(text: str, start: int, match: re.Match[str]) -> bool:
    at, after = match.start(), text[match.end() :].lstrip()[:2]
    if not after or match.group()[0] in "!?" or len(match["stop"].rstrip("'\"”’»)]")) > 1:
        # An exclamation inside running speech ("Stop!" he said) goes on in small letters.
        return not (after[:1].islower() and text[at - 1 : at] != " ")
    before = text[max(0, at - 20) : at]
    if before.endswith(" "):  # tokenised text sets its full stops apart: "in 1987 ."
        return True
    if after[0].islower():
        return False
    word = re.split(r"[\s(\[\"“'‘]", before)[-1].lower()
    if word in _ABBREVIATIONS:
        return word in _MAY_END and after[0].isupper() and word not in {"al", "u.s", "u.k"}
    if len(word) == 1 and word.isalpha() and word != "i" and before[-1].isupper():  # an initial: "J. Smith"
        return not after[0].isupper() and not after[0].isdigit()
    # A list number ("3. Methods") belongs to what follows it.
    return not (word.isdigit() and len(word) <= 2 and text[start:at].strip() == word)


def _line_ends(text: str, start: int, at: int) -> bool:
    line = text[max(start, text.rfind("\n", 0, at) + 1) : at].strip()
    rest = text[at + 1 :]
    if not line:
        return False
    if _ITEM.match(rest) or _ROW.match(line) or _ROW.match(rest):
        return True
    following = rest.lstrip()[:1]
    if line[-1] in ",;-–—(" or following.islower():
        return False
    return len(line) < 60
