"""Where sentences end, and where a sentence that is too long may be cut.

Both are rules, not models: they run at tens of megabytes a second, are the same on every machine, and never take more
than linear time, whatever they are given.
"""

import re
from collections.abc import Iterator

from deepwell.library.readers.tokens import estimate_tokens

# A stop, closing marks and white space; or a stop of Chinese or Japanese, which needs no white space.
_END = re.compile(r"[.!?…][\"'”’»)\]]{0,3}\s+|[。！？；][」』”’）]{0,3}\s*|\n\s*\n\s*")
_OPENS = re.compile(r"[\"'“‘«(\[¿¡]{0,3}[A-Z0-9À-ÞА-ЯΑ-Ω]|[\"'“‘«(\[¿¡]{0,3}[^\W\d_a-zß-ÿа-яёα-ω]|[-•*–—]")
_ABBREVIATED = re.compile(
    r"(?:\b(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Mt|vs|etc|cf|al|[Ff]igs?|[Nn]os?|[Vv]ol|pp|[Ee]q|[Ss]ec|[Cc]h|ed|Inc|Ltd|Co|Corp|"
    r"approx|ca|resp|Nr|bzw|z\.B|usw|Abb|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Gen|Sen|Rep|Gov|Capt|Col|Lt|Sgt)|"
    r"\b(?:[A-Za-z]\.)+[A-Za-z])\.$"
)
# A word with the white space after it, or up to a mark after which a clause ends. Runs without either are cut at 64.
_ATOM = re.compile(r"[^\s,;:，、；：]{1,64}[,;:，、；：]*\s*|[\s,;:，、；：]{1,64}")
_CLAUSE = re.compile(r"(?:[,;:]\s+|[，、；：]\s*|\s[–—]\s+)$")


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each sentence with the white space after it; together they are the whole text."""
    start = 0
    for end in _END.finditer(text):
        if text[end.start()] in ".!?…" and not _ends(text, start, end):
            continue
        yield start, end.end()
        start = end.end()
    if start < len(text):
        yield start, len(text)


def _ends(text: str, start: int, stop: re.Match[str]) -> bool:
    if stop.end() < len(text) and not _OPENS.match(text, stop.end()):
        return False
    if text[stop.start()] != ".":
        return True
    before = text[max(start, stop.start() - 12) : stop.start() + 1]
    return _ABBREVIATED.search(before) is None


def cut_long(text: str, start: int, end: int, limit: float) -> Iterator[tuple[int, int]]:
    """Cut ``text[start:end]`` into spans of at most about ``limit`` tokens: after a clause, else a word, else anywhere.

    Every word is looked at a bounded number of times, so a line of megabytes without a space takes linear time.
    """
    while start < end:
        spent, cut, best = 0.0, start, 0
        for atom in _ATOM.finditer(text, start, end):
            spent += estimate_tokens(atom.group())
            if spent > limit and cut > start:
                break
            rank = 2 if _CLAUSE.search(atom.group()) else 1 if atom.group()[-1].isspace() else 0
            # Late enough borders only, so that one early comma does not leave a crumb; a better kind wins over a later.
            if rank >= best or spent < limit / 2:
                cut, best = atom.end(), rank if spent >= limit / 2 else 0
            if spent > limit:
                break
        else:
            cut = end
        yield start, cut
        start = cut
