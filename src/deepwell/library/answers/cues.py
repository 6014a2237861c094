"""What kind of answer a question wants, and whether a sentence holds one that the question does not hold already.

"When did it open?" is answered by a sentence with a date, "how many" by one with a number. The cue is weak evidence by
itself, but among sentences that speak of the right thing it often tells the one that answers.
"""

from __future__ import annotations

import re
from typing import Literal

AnswerType = Literal["person", "time", "place", "number", "reason", "manner", "definition", "other"]

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_TIME = re.compile(
    rf"\b(?:1[0-9]|20)\d\ds?\b|\b{_MONTH}\.?\s+\d{{1,4}}\b|\b\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}\b"
    r"|\b\d{1,2}(?::\d\d)?\s?[ap]\.?m\b|\b\d{1,2}:\d\d\b|\b\d{4}-\d\d-\d\d\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b|\b\d+(?:st|nd|rd|th)[ -]century\b|\d+年|\d+月|\d+日"
    r"|\b(?:yesterday|today|tomorrow|noon|midnight)\b|\b\d+\s(?:years?|months?|weeks?|days?)\b",
    re.IGNORECASE,
)
_NUMBER_WORD = (
    r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fifteen|twenty|thirty|forty|fifty|sixty"
    r"|seventy|eighty|ninety|hundreds?|thousands?|millions?|billions?|dozens?|half|third|quarter|twice|none|several)"
)
_NUMBER = re.compile(rf"\d+(?:[.,]\d+)*|\b{_NUMBER_WORD}\b|[一二三四五六七八九十百千万]+", re.IGNORECASE)
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][^\W\d_’'-]+\b(?:\s+(?:of|de|van|von|the|al)?\s*[A-Z][^\W\d_’'-]+\b)*")
_PLACE = re.compile(r"\b(?:in|at|near|from|to|on|of|outside|north|south|east|west)\s+(?:the\s+)?[A-Z]\w+")
_PLACE_LOWER = re.compile(
    r"\b(?:located|situated|near|north|south|east|west|city|town|village|street|river|county|headquarters|based)\b",
    re.IGNORECASE,
)
_PERSON_LOWER = re.compile(
    r"\b(?:mr|mrs|dr|sir|president|professor|king|queen|saint|st|general|chairman|founder|author|director|minister|by)\b",
    re.IGNORECASE,
)


def _any(words: str, others: str = "") -> re.Pattern[str]:
    """Any of the patterns in ``words``, as whole words, or of ``others`` anywhere (scripts without spaces)."""
    whole = "|".join(part.strip() for part in words.split("/"))
    return re.compile(rf"\b(?:{whole})\b" + (f"|{others}" if others else ""), re.IGNORECASE)


_REASON = _any(
    "because/due to/owing to/since/therefore/cause[sd]?/result(?:s|ed)? (?:in|from)/so that/in order to/reason",
    "因为|ため|から",
)
_MANNER = _any("by/using/via/through/with the help of/by means of/method/process")
_DEFINITION = _any(
    "(?:is|are|was|were) (?:an?|the|one)/refers? to/defined as/known as/called/stands for/means", "とは|是指"
)

_DEFINES = re.compile(
    r"^\s*what (?:is|are|was|were) (?:an? |the )?[\w-]+(?: [\w-]+){0,2}\s*\??\s*$|\bdefinition of\b|\bdefine\b"
    r"|\bwhat does .* (?:mean|stand for)\b|とは|什么是",
    re.IGNORECASE,
)
_ASKS: tuple[tuple[AnswerType, re.Pattern[str]], ...] = (
    (
        "number",
        _any(
            "how (?:many|much|long|old|tall|high|far|large|big|fast|deep|wide|heavy|often)"
            "/(?:what|which) (?:percent|percentage|number|proportion|fraction|amount|age|size|distance|price|cost"
            "|temperature|height|weight|length|speed|total)"
            "/wie ?viele?/combien/cuántos?",
            "几|多少|いくつ|何人|何個",
        ),
    ),
    (
        "time",
        _any(
            "when/(?:what|which) (?:year|date|day|month|time|decade|century)/wann/quand/cuándo",
            "什么时候|什麼時候|何时|いつ|何年",
        ),
    ),
    ("person", _any("who(?:m|se)?/wer/quién/qui", "谁|誰|だれ")),
    (
        "place",
        _any(
            "where/(?:what|which) (?:city|country|place|town|state|street|location|region)/wo/où/dónde",
            "哪里|哪裡|哪儿|どこ",
        ),
    ),
    (
        "reason",
        _any("why/what (?:is|are|was|were) the (?:reasons?|causes?)/what caused?/warum/pourquoi", "为什么|なぜ"),
    ),
    ("definition", _DEFINES),
    ("manner", _any("how/wie/comment/cómo", "怎么|どうやって")),
)


_HOW = re.compile(
    r"\bhow (?:long|old|tall|high|far|large|big|fast|deep|wide|heavy|often)\b"
    r"|\b(?:what|which) (?:year|date|day|month|time|decade|century|number|amount|percent|percentage|proportion)\b",
    re.IGNORECASE,
)


def without_asking(question: str) -> str:
    """The question without the words that only say what kind of answer it wants ("how old", "what year")."""
    return _HOW.sub(" ", question)


def answer_type(question: str) -> AnswerType:
    """The kind of answer wanted; ``other`` when the question does not say."""
    return next((kind for kind, pattern in _ASKS if pattern.search(question)), "other")


def cue(kind: AnswerType, question: str, sentence: str) -> float:
    """How strongly ``sentence`` holds an answer of ``kind`` (0 to 1), not counting what ``question`` itself says."""
    lowered = sentence == sentence.lower()
    asked = question.lower()

    def fresh(pattern: re.Pattern[str]) -> bool:
        return any(found.group().lower() not in asked for found in pattern.finditer(sentence))

    if kind == "time":
        return float(fresh(_TIME))
    if kind == "number":
        return float(fresh(_NUMBER))
    if kind == "person":
        return float(fresh(_PERSON_LOWER if lowered else _NAME))
    if kind == "place":
        return 1.0 if not lowered and fresh(_PLACE) else 0.7 * fresh(_PLACE_LOWER)
    pattern = {"reason": _REASON, "manner": _MANNER, "definition": _DEFINITION}.get(kind)
    return float(bool(pattern and pattern.search(sentence)))
