"""Text to terms, for everything that search counts itself.

A term is a lower-cased, stemmed word. Three things make it fit for a person's own files rather than for prose alone:

- names of programs and files are found whole and by their parts: ``getUserName`` gives itself, ``get``, ``user``,
  ``name``; ``ERR_CONN_17`` gives itself, ``err``, ``conn``, ``17``;
- Chinese, Japanese, Korean and Thai do not put spaces between words, so runs of these scripts become overlapping pairs
  of characters (a lone character stays one), which needs no dictionary;
- stop words are counted like others. A query drops them (``understand``), unless they are all it has.

The stemmer is Snowball's English one, which is also what the store's full-text index uses, so both agree on what a
word is. Words of other languages pass it nearly unharmed.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_WORD = re.compile(r"\w+")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
_COMPOUND = re.compile(r"_|[a-z][A-Z]|[A-Z]{2}[a-z]|[^\W\d_]\d|\d[^\W\d_]")

QUESTION_WORDS = frozenset(
    "what which who whom whose when where why how do does did done i am me my we our us you your can could would should"
    " may might about from has have had been being its any some also than were so between tell show find give".split()
)
"""Words that ask and do not describe what is asked for."""


class TermCache(dict[str, tuple[str, ...]]):
    """From a word as written to its terms; remembers what it has seen: a few thousand words make most of a text."""

    def __init__(self) -> None:
        super().__init__()
        import Stemmer

        self._stem = Stemmer.Stemmer("english")

    def __missing__(self, word: str) -> tuple[str, ...]:
        if len(self) > 500_000:  # a library of random strings must not fill the memory
            self.clear()
        terms = self[word] = tuple(self._terms(word))
        return terms

    def _terms(self, word: str) -> Iterable[str]:
        if word.isascii():
            lower = word.lower()
            yield self._stem.stemWord(lower)
            if _COMPOUND.search(word):
                parts = {part.lower() for part in _PART.findall(word)} - {lower}
                yield from sorted({self._stem.stemWord(part) for part in parts if len(part) > 1})
            return
        start = 0
        for run in _UNSPACED.finditer(word):
            yield from self._spaced(word[start : run.start()])
            text = run.group()
            yield from (text[i : i + 2] for i in range(max(1, len(text) - 1)))
            start = run.end()
        yield from self._spaced(word[start:])

    def _spaced(self, word: str) -> Iterable[str]:
        if word:
            # Accents are folded as in the store's index: a name is found however it was typed.
            plain = "".join(c for c in unicodedata.normalize("NFKD", word.lower()) if not unicodedata.combining(c))
            yield self._stem.stemWord(plain or word)


@lru_cache(maxsize=1)
def shared_cache() -> TermCache:
    """The cache of this process. Loading the stemmer takes a few milliseconds, so it waits for the first search."""
    return TermCache()


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, as written."""
    return _WORD.findall(text)


def terms(text: str) -> list[str]:
    """All terms of a text in order, repeats included."""
    cache = shared_cache()
    return [term for word in _WORD.findall(text) for term in cache[word]]


def is_unspaced(text: str) -> bool:
    """Whether a text holds a script that is written without spaces between words."""
    return _UNSPACED.search(text) is not None


def is_identifier(word: str) -> bool:
    """Whether a word is a name or code, not prose: it mixes letters with digits, underscores or inner capitals."""
    return _COMPOUND.search(word) is not None
