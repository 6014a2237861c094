"""What a person asks for, as far as the words themselves tell.

Nothing here guesses at intent beyond what is written: kinds, dates and places are options of the query, not parsed out
of it. From the text come

- the words to match: without stop words and question words when other words remain, each once with its count;
- literals: what stands in quotation marks, and names that are code rather than prose (``ERR_CONN_17``, ``config.yaml``,
  ``getUserName``, ``B-1207``). A passage that holds a literal letter for letter is worth more than one that merely
  holds its parts;
- the text to encode, which is the text as written: sentence encoders were trained on whole questions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from deepwell.library.search.tokens import QUESTION_WORDS, is_identifier, shared_cache, words
from deepwell.library.store.words import STOP_WORDS

_QUOTED = re.compile(r'"([^"]{2,200})"|“([^”]{2,200})”|«([^»]{2,200})»|「([^」]{1,200})」|『([^』]{1,200})』')
_JOINED = re.compile(r"\w+(?:[._:/@#+\\-]\w+)+")
_NUMBER = re.compile(r"\d{1,4}(?:[.,:/-]\d+)*")
_COUNTED = re.compile(r"\d+(?:st|nd|rd|th|s|[a-z]{1,2})", re.IGNORECASE)
_ABBREVIATION = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]|ph\.d", re.IGNORECASE)


@dataclass(frozen=True)
class Intent:
    """A query, understood.

    Attributes:
        text: As written; what the encoder sees.
        words: Written words that should match, in order, each once; what the store's full-text index is asked.
        terms: Stemmed terms and how often each stands in the query.
        literals: Strings to be found letter for letter, lower case, white space collapsed, and how much each is meant,
            0 to 1: names, codes and quoted phrases 1, one quoted word as much as it makes up of the query.
    """

    text: str
    words: tuple[str, ...]
    terms: Mapping[str, float]
    literals: Mapping[str, float]

    @cached_property
    def match_text(self) -> str:
        """What the store's full-text search is given."""
        return " ".join(self.words)


def understand(text: str) -> Intent:
    """Read a query's words. An empty or wordless text gives an intent without terms."""
    text = " ".join(text.split())
    quoted = tuple(normal(next(filter(None, groups))) for groups in _QUOTED.findall(text))
    kept = _content_words(text)
    terms: dict[str, float] = {}
    cache = shared_cache()
    for word in kept:
        for term in cache[word]:
            terms[term] = terms.get(term, 0.0) + 1.0
    # One quoted word in a long description ("virtual" storage) is a way to write, not an order to find it.
    literals = {phrase: 1.0 if " " in phrase else min(1.0, 2 / max(len(kept), 1)) for phrase in quoted}
    literals.update((normal(name), 1.0) for name in _names(text))
    return Intent(text, tuple(dict.fromkeys(kept)), terms, literals)


def _content_words(text: str) -> list[str]:
    found = words(text)
    content = [word for word in found if word.lower() not in STOP_WORDS]
    telling = [word for word in content if word.lower() not in QUESTION_WORDS]
    return telling or content or found


def _names(text: str) -> list[str]:
    """Names and codes in a text: words joined by dots, slashes, hyphens that hold a digit or look like code."""
    joined = [m.group() for m in _JOINED.finditer(text)]
    names = [name for name in joined if _is_code(name)]
    inside = {part for name in names for part in words(name)}
    names += [word for word in words(text) if word not in inside and is_identifier(word) and len(word) > 2]
    return [name for name in names if not _COUNTED.fullmatch(name)]  # "1960s", "3rd", "200m"


def _is_code(name: str) -> bool:
    # "well-known", "and/or" and "i.e" are prose; "3.14" and "2019-2020" are numbers, which readers round and reformat.
    if _ABBREVIATION.fullmatch(name):
        return False
    if _NUMBER.fullmatch(name):
        return name.count(".") > 1 or name.count("-") > 1
    parts = words(name)
    return any(c.isdigit() or c == "_" for c in name) or "." in name or "@" in name or any(map(is_identifier, parts))


def normal(text: str) -> str:
    """Lower case, white space collapsed: how literals and passages are compared."""
    return " ".join(text.lower().split())
