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
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w’'-]+(?:\s+(?:of|de|van|von|the|al)?\s*[A-Z][\w’'-]+)*")
_PLACE = re.compile(r"\b(?:in|at|near|from|to|on|of|outside|north|south|east|west)\s+(?:the\s+)?[A-Z]\w+")
_PLACE_LOWER = re.compile(
    r"\b(?:located|situated|near|north|south|east|west|city|town|village|street|river|county|headquarters|based)\b",
    re.IGNORECASE,
)
_PERSON_LOWER = re.compile(
    r"\b(?:mr|mrs|dr|sir|president|professor|king|queen|saint|st|general|chairman|founder|author|director|minister|by)\b",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"\b(?:because|due to|owing to|since|therefore|cause[sd]?|result(?:s|ed)? (?:in|from)|so that|in order to|reason)\b|因为|ため|から",
    re.IGNORECASE,
)
_MANNER = re.compile(r"\b(?:by|using|via|through|with the help of|by means of|method|process)\b", re.IGNORECASE)
_DEFINITION = re.compile(
    r"\b(?:is|are|was|were)\s+(?:an?|the|one)\b|\b(?:refers? to|defined as|known as|called|stands for|means)\b|とは|是指",
    re.IGNORECASE,
)

_ASKS: tuple[tuple[AnswerType, re.Pattern[str]], ...] = (
    (
        "number",
        re.compile(
            r"\bhow (?:many|much|long|old|tall|high|far|large|big|fast|deep|wide|heavy|often)\b|\bwhat (?:percent|percentage|number|proportion|fraction|amount|age|size|distance|price|cost)\b|\bwieviele?\b|\bwie viele\b|\bcombien\b|\bcuántos?\b|几|多少|いくつ|何人|何個",
            re.IGNORECASE,
        ),
    ),
    (
        "time",
        re.compile(
            r"\bwhen\b|\b(?:what|which) (?:year|date|day|month|time|decade|century)\b|\bwann\b|\bquand\b|\bcuándo\b|什么时候|什麼時候|何时|いつ|何年",
            re.IGNORECASE,
        ),
    ),
    ("person", re.compile(r"\bwho(?:m|se)?\b|\bwer\b|\bquién\b|\bqui\b|谁|誰|だれ", re.IGNORECASE)),
    (
        "place",
        re.compile(
            r"\bwhere\b|\b(?:what|which) (?:city|country|place|town|state|street|location|region)\b|\bwo\b|\boù\b|\bdónde\b|哪里|哪裡|哪儿|どこ",
            re.IGNORECASE,
        ),
    ),
    (
        "reason",
        re.compile(
            r"\bwhy\b|\bwhat (?:is|are|was|were) the (?:reasons?|causes?)\b|\bwhat caused?\b|\bwarum\b|\bpourquoi\b|为什么|なぜ",
            re.IGNORECASE,
        ),
    ),
    (
        "definition",
        re.compile(
            r"^\s*(?:what|who) (?:is|are|was|were) (?:an? |the )?[\w-]+(?: [\w-]+){0,2}\s*\??\s*$|\bdefinition of\b|\bdefine\b|\bwhat does .* (?:mean|stand for)\b|とは|什么是",
            re.IGNORECASE,
        ),
    ),
    ("manner", re.compile(r"\bhow\b|\bwie\b|\bcomment\b|\bcómo\b|怎么|どうやって", re.IGNORECASE)),
)


def answer_type(question: str) -> AnswerType:
    """The kind of answer wanted; ``other`` when the question does not say."""
    if _ASKS[5][1].search(question) and not re.match(r"\s*who\b", question, re.IGNORECASE):
        return "definition"
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
