"""Text in documents is data. This finds text that tries to be more: instructions planted for a language model.

Three lines of defence, of which only the last is certain:

1. sentences that address an assistant ("ignore previous instructions") are barred: they are not shown to the model, not
   chosen as an answer and cannot be quoted. Patterns catch the common forms only, which is why there is more;
2. passages are fenced by a delimiter that no document can know, and marks that imitate chat templates are broken up;
3. whatever a model writes, only sentences that pass ``claims.check`` reach the reader: each has a quote that stands in
   a passage, and its numbers and addresses stand there too. A model that obeys a planted order has nothing to say then.
"""

from __future__ import annotations

import re

from deepwell.library.answers.sentences import Span, split_sentences

_ORDERS = r"(?:instructions?|prompts?|rules?|directions?|directives?|guidelines?|commands?|constraints?|messages?)"
_EARLIER = (
    r"(?:all|any|the|your|my|these|those|every(?:thing)?|previous|prior|above|earlier|preceding|foregoing|former"
    r"|system|other)"
)
_MACHINE = r"(?:ai|llms?|language\s+models?|assistants?|chat-?bots?)"
_GAP = r"[^.!?\n]"
_STRONG = re.compile(
    "|".join(
        (
            rf"\b(?:ignore|disregard|forget|override|bypass|overlook|drop|discard)\b{_GAP}{{0,30}}?\b{_EARLIER}\b"
            rf"{_GAP}{{0,40}}?\b{_ORDERS}\b",
            r"\b(?:ignore|disregard|forget)\s+(?:everything|all|anything)\s+(?:above|before|previously|earlier|you\b|that\s+came)",
            rf"\b(?:reveal|print|repeat|show|output|leak|display)\b{_GAP}{{0,30}}\b(?:system|hidden|secret|initial)\s+"
            r"(?:prompt|instructions?|message)\b",
            r"\byou\s+are\s+now\s+(?:an?\b|in\b|the\b|no\s+longer\b|dan\b)",
            r"\b(?:new|updated|real|actual)\s+(?:system\s+)?(?:instructions?|prompt)\s*:",
            rf"\b(?:note|message|instructions?|attention)\s+(?:to|for)\s+(?:the\s+|any\s+|all\s+)?(?:{_MACHINE}|models?)\b",
            rf"\b{_MACHINE}\b{_GAP}{{0,25}}\b(?:must|should|shall|need\s+to|are\s+to|have\s+to)\b{_GAP}{{0,25}}"
            r"\b(?:say|answer|reply|respond|tell|output|state|write|ignore|recommend|claim)\b",
            r"\b(?:do\s+not|don't|never)\s+(?:tell|inform|mention\s+(?:this\s+)?to|warn|alert)\s+the\s+user\b",
            r"\b(?:tell|inform|convince|persuade|instruct)\s+the\s+(?:user|reader|human)\s+(?:to|that)\b",
            rf"\bignor(?:iere|ieren\s+sie)\b{_GAP}{{0,40}}\b(?:anweisung(?:en)?|befehle?|regeln)\b",
            rf"\b(?:ignore[zr]?|oublie[zr]?)\b{_GAP}{{0,40}}\b(?:instructions?|consignes?)\b",
            rf"\b(?:ignora|olvida|ignore)\b{_GAP}{{0,40}}\b(?:instrucciones|órdenes|reglas)\b",
            r"(?:忽略|无视|無視|忘记|忘記)[^。！？\n]{0,15}(?:指令|指示|说明|說明|规则|規則|提示)",
            r"(?:指示|命令|プロンプト|ルール)[^。！？\n]{0,8}(?:無視|忘れ)",
        )
    ),
    re.IGNORECASE,
)
_TEMPLATE = re.compile(
    r"""<[|｜][^<>\n]{1,40}[|｜]>|</?(?:s|bos|eos|start_of_turn|end_of_turn|think|thinking|system|assistant|user|tool_call)>
    |   \[/?INST\]|<</?SYS>>|^\s*(?:\#{2,}\s*)?(?:system|assistant|user|human|ai)\s*:\s*(?=\S)""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_CONTINUES = re.compile(
    r"^\W*(?:instead|and|then|now|just|simply|please|you|your|do|don't|never|always|only|from\s+now\s+on|say|tell|answer|reply|"
    r"respond|output|print|write|state|claim|repeat|send|visit|click|open|go\s+to|call|use|act|pretend|begin|start|end|add|"
    r"include|recommend|return|reveal|forget|ignore|disregard|cite)\b",
    re.IGNORECASE,
)
_STARTS = re.compile(
    r"^\W*(?:please\s+)?(?:you\s+(?:must|should|will|shall)\s+)?(?:say|answer|reply|respond|output|print)\s+"
    r"(?:only|exactly|with|that|in)\b",
    re.IGNORECASE,
)


_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def planted(text: str) -> tuple[Span, ...]:
    """Spans of sentences that give orders to whoever reads them by machine, with the orders that follow on."""
    spans: list[Span] = []
    sentences = split_sentences(text)
    following = False
    for index, span in enumerate(sentences):
        sentence = span.of(text)
        if index and "\n\n" in text[sentences[index - 1].end : span.start]:
            following = False
        if _STRONG.search(" ".join(sentence.split())) or _STARTS.match(sentence):
            following = True
        elif following and not _CONTINUES.match(sentence):
            following = False
        elif not following:
            continue
        if following:
            spans.append(span)
    return tuple(spans)


def without(text: str, spans: tuple[Span, ...], instead: str) -> str:
    """``text`` with each span replaced."""
    for span in reversed(spans):
        text = text[: span.start] + instead + text[span.end :]
    return text


def visible(text: str) -> str:
    """``text`` without control characters and marks that turn the direction of writing: what a terminal shows must be
    what was checked.
    """
    return _HIDDEN.sub("", text)


def defuse(text: str) -> str:
    """Break up what a chat template or our own fence would understand, leaving every word and digit as it is."""
    text = _TEMPLATE.sub(lambda found: re.sub(r"([<\[(:|｜])", r"\1 ", found.group()), text)
    return re.sub(r"([<>])(?=\1)", r"\1 ", text)
