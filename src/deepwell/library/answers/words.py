"""Words of a question and of a sentence, in a form that can be compared.

Search finds passages with the store's own tokenizer; here a few dozen sentences are compared with one question, so
plain Python is fast enough and nothing has to be loaded. ``terms`` lower-cases, drops function words, cuts the most
common English endings (the first step of Porter's stemmer, 1980) and cuts Chinese, Japanese and Thai, which are written
without spaces, into overlapping pairs of characters.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

CJK = "\u2e80-\u2fdf\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
"""Scripts written without spaces, as the inside of a regular expression's character class."""

_WORD = re.compile(rf"[{CJK}]+|\d+(?:[.,]\d+)+|(?:[^\W_{CJK}])+(?:['’](?:[^\W\d_{CJK}])+)*")
_CJK_RUN = re.compile(rf"[{CJK}]+")

STOPWORDS = frozenset(
    """a about above after again against all also am an and any are as at be because been before being below between
    both but by can cannot could did do does doing done down during each either else ever every few for from further
    get give given go goes got had has have having he her here hers herself him himself his how however i if in into
    is it its itself just kind let lot many may me might mine more most much must my myself name neither no nor not of
    off often on once one only onto or other our ours out over own per please rather really same say says shall she
    should since so some such sort tell than that the their theirs them themselves then there these they this those
    though through thus to too type under until up upon us use used very was we were what when where whether which
    while who whom whose why will with within without would yes yet you your yours 's s t d ll re ve
    according allegedly called considered mean means meant happen happened example examples find found know known
    der das und ist ein eine nicht mit von zu den dem des im wer was wann wo wie viele warum
    le la les un une des et est dans que qui quand où comment combien pourquoi du de
    el los las una y es en que quién cuándo dónde cómo por""".split()
)

_IRREGULAR = {
    form: group.split()[0]
    for group in """become became|begin began begun|bite bit bitten|blow blew blown|break broke broken|
    bring brought|build built|burn burnt|buy bought|catch caught|choose chose chosen|come came|dig dug|
    draw drew drawn|drink drank drunk|drive drove driven|eat ate eaten|fall fell fallen|feed fed|fight fought|
    fly flew flown|forget forgot forgotten|freeze froze frozen|grow grew grown|hang hung|hear heard|hide hid hidden|
    hold held|keep kept|lead led|leave left|lend lent|lose lost|make made|meet met|pay paid|read|ride rode ridden|
    ring rang rung|rise rose risen|run ran|see saw seen|sell sold|send sent|shake shook shaken|shoot shot|
    sing sang sung|sink sank sunk|sleep slept|speak spoke spoken|spend spent|stand stood|steal stole stolen|
    strike struck|swim swam swum|take took taken|teach taught|tear tore torn|think thought|throw threw thrown|
    wear wore worn|win won|write wrote written|child children|foot feet|goose geese|man men|mouse mice|tooth teeth|
    wife wives|woman women|
    mm millimetre millimetres millimeter millimeters|cm centimetre centimetres centimeter centimeters|
    km kilometre kilometres kilometer kilometers|kg kilogram kilograms kilo kilos|hour hours h|minute minutes min|
    percent percentage percents""".split("|")
    for form in group.split()
}

_ISO_DATE = re.compile(r"\b(\d{4})-(\d\d)-(\d\d)\b")
_MONTHS = "january february march april may june july august september october november december".split()
_DATE = re.compile(
    rf"\b(?:(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?({'|'.join(_MONTHS)})|({'|'.join(_MONTHS)})\s+(\d{{1,2}})(?:st|nd|rd|th)?)"
    r",?\s+(\d{4})\b",
    re.IGNORECASE,
)

_CJK_STOP = frozenset(
    "の は が を に で と も か ね よ 的 了 是 在 吗 呢 什么 什麼 谁 誰 哪里 哪裡 何 どこ いつ だれ です ます".split()
)


def words(text: str) -> list[str]:
    """Lower-cased words in order, function words included; a run of CJK characters becomes its character pairs."""
    found: list[str] = []
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text)):
        word = match.group().lower().replace("’", "'")
        if _CJK_RUN.match(word):
            pairs = [word[i : i + 2] for i in range(len(word) - 1)] or [word]
            found += pairs
        else:
            found.append(word.removesuffix("'s"))
    return found


def terms(text: str) -> list[str]:
    """Stemmed content words in order, repeats kept. A date like 2024-06-04 also gives ``4``, ``june`` and ``2024``."""
    if "-" in text:
        text = _ISO_DATE.sub(_said, text)
    return [stem(word) for word in words(text) if word not in STOPWORDS and word not in _CJK_STOP]


def with_iso_dates(text: str) -> str:
    """``text`` with each date in it repeated as a table writes it: "4 June 2024" adds ``2024-06-04``."""
    iso = []
    for found in _DATE.finditer(text):
        day, month, year = found[1] or found[4], (found[2] or found[3]).lower(), found[5]
        iso.append(f"{year}-{_MONTHS.index(month) + 1:02}-{int(day):02}")
    return f"{text} {' '.join(iso)}" if iso else text


def _said(date: re.Match[str]) -> str:
    month, day = int(date[2]), int(date[3])
    return f"{date.group()} {day} {_MONTHS[month - 1]} {date[1]}" if 1 <= month <= 12 else date.group()


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """Cut plural, -ed, -ing and -ly from a lower-case English word, and bring the commonest irregular forms back to the
    first ("fell" to "fall"); anything short or odd is left alone.
    """
    word = _IRREGULAR.get(word, word)
    if len(word) < 4 or not word.isascii() or not word.isalpha():
        return word
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ingly", "edly", "ing", "ed", "ly"):
        root = word.removesuffix(ending)
        if root != word and len(root) >= 3 and re.search("[aeiouy]", root):
            word = root
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    return word[:-1] + "i" if word.endswith("y") and len(word) > 3 else word


def rarity(groups: Iterable[Collection[str]]) -> dict[str, float]:
    """Inverse document frequency of each term over ``groups`` of terms (sentences or passages), always positive."""
    counts: Counter[str] = Counter()
    total = 0
    for group in groups:
        counts.update(set(group))
        total += 1
    return {term: math.log(1 + (total - n + 0.5) / (n + 0.5)) for term, n in counts.items()}


def weight_of(term: str, idf: Mapping[str, float], unseen: float) -> float:
    """A term's weight: its rarity where it was seen, else ``unseen`` (a word found nowhere is the rarest of all)."""
    return idf.get(term, unseen)


def near_match(term: str, candidates: Collection[str]) -> str | None:
    """A word of the same family: one that shares a beginning of at least five letters and 65% of the longer one."""
    if len(term) < 6 or not term.isalpha():
        return None
    best, best_shared = None, 0
    for other in candidates:
        if other[:5] != term[:5] or not other.isalpha():
            continue
        shared = next(
            (i for i, (a, b) in enumerate(zip(term, other, strict=False)) if a != b), min(len(term), len(other))
        )
        if shared >= 0.65 * max(len(term), len(other)) and shared > best_shared:
            best, best_shared = other, shared
    return best
