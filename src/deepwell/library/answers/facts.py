"""The parts of a claim that are either in its source or invented: numbers, addresses, names; and whether it denies.

Numbers are compared by value: "forty-three" and "43", "two thousand" and "2,000" are equal, and "ninety" is a figure.
Names are words that are written large where a common word would not be. Denial ("not", "never", "without") is compared
between a claim and the clauses of a sentence that speak of the same thing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from deepwell.library.answers.words import STOPWORDS, near_match, stem, terms

_DIGITS = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*")
_ADDRESS = re.compile(
    r"(?:https?://|www\.)[^\s)\]>\"']+|[\w.+-]+@[\w-]+\.[\w.]+|\b[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.IGNORECASE
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_LIST_ITEM = re.compile(r"^\s*\(?\d{1,2}[.)]\s+")

_UNITS = {
    word: n
    for n, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
_TENS = {
    word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_DOZENS = {"dozen": 12, "score": 20}
_SAID_AS_FIGURES = frozenset(stem(word) for word in (*_UNITS, *_TENS, *_SCALES, *_DOZENS))
_SHORT_SCALES = {"k": 1_000, "m": 10**6, "mn": 10**6, "bn": 10**9, "b": 10**9}
_OF_MONEY = frozenset("kmb")  # "£8m" are millions, "8 m" are metres
_ROUGH = {"several", "few", "some", "many", "couple"}
_RUN = re.compile(
    rf"\b(?:{'|'.join([*_UNITS, *_TENS])}|an?(?=[\s-]+(?:{'|'.join([*_SCALES, *_DOZENS])})\b))"
    rf"(?:(?:\s+and\s+|[\s-]+)(?:{'|'.join([*_UNITS, *_TENS, *_SCALES, *_DOZENS])})\b)*\b"
    rf"|(?<![\d.,])\b(?:half\s+a\s+)?dozen\b",
    re.IGNORECASE,
)
_SCALED = re.compile(
    rf"(?<![\w.])(\d+(?:[.,]\d+)*)\s?({'|'.join([*_SCALES, *_DOZENS])}|{'|'.join(_SHORT_SCALES)})\b", re.IGNORECASE
)
_MONTHS = "january february march april may june july august september october november december".split()
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()


def facts_stand(claim: str, source: str, question: str) -> bool:
    """Whether every number and address in the claim stands in the source or the question."""
    claim = _LIST_ITEM.sub("", claim)
    known = _known(f"{source}\n{question}")
    if any(not options & known for options in _numbers(claim)):
        return False
    held = f"{source} {question}".casefold()
    return all(address.casefold().rstrip(".,;") in held for address in _ADDRESS.findall(claim))


def shares_a_number(claim: str, source: str) -> bool:
    """Whether some number of the claim stands in the source."""
    known = _known(source)
    return any(options & known for options in _numbers(_LIST_ITEM.sub("", claim)))


def is_figure_or_denial(word: str) -> bool:
    """Whether a word says nothing about a subject: "ninety", "hundred", "never"."""
    return word in _SAID_AS_FIGURES or denies(word)


def _known(text: str) -> frozenset[str]:
    """Every value that a text can be said to hold, each way it may be read."""
    plain = _THOUSANDS.sub("", text)
    known = {number.lstrip("+") for number in _DIGITS.findall(plain)} | set(re.findall(r"\d+", plain))
    known |= set(_scaled(plain).values())
    for run in _RUN.finditer(text):
        known |= {str(value) for value in _values(run.group())}
    known |= {f"{year[:-1]}0s" for year in known if re.fullmatch(r"[12]\d{3}", year)}
    if re.search(r"\bone\b|\bonce\b|\bsingle\b", text, re.IGNORECASE):
        known.add("1")
    return frozenset({number.lstrip("-") for number in known if number.startswith("-")} | known)


def _numbers(claim: str) -> Iterator[frozenset[str]]:
    """Each number of a claim, as the values of which its source must hold one."""
    plain = _THOUSANDS.sub("", claim)
    scaled = _scaled(plain)
    for found in _DIGITS.finditer(plain):
        number = found.group().lstrip("+")
        if re.match(r"s\b", plain[found.end() :]) and re.fullmatch(r"[12]\d\d0", number):
            yield frozenset({f"{number}s", number})
        elif found.start() in scaled:
            yield frozenset({scaled[found.start()]})
        else:
            yield frozenset({number})
    for run in _RUN.finditer(claim):
        if run.group().lower() == "one":  # "the new one", "one of them" are no figures
            continue
        yield frozenset(str(value) for value in _values(run.group()))


def _scaled(plain: str) -> dict[int, str]:
    """Values like "8 million" and "£8m" by where their digits begin."""
    values = {}
    for found in _SCALED.finditer(plain):
        money = plain[: found.start()].rstrip()[-1:] in "$£€¥"
        if found[2].lower() not in _OF_MONEY or (found.start() and money):
            values[found.start(1)] = _times(found[1], found[2])
    return values


def _times(digits: str, scale: str) -> str:
    scale = scale.lower()
    factor = _SCALES.get(scale) or _DOZENS.get(scale) or _SHORT_SCALES[scale]
    value = float(digits.replace(",", ".")) * factor
    return str(round(value)) if value < 10**15 else digits


def _values(run: str) -> set[int]:
    """The value of a run of number words; of a year said in two parts ("nineteen eighty-four") both readings."""
    parts = [word for word in re.split(r"[\s-]+", run.lower()) if word not in ("and", "a", "an", "half")]
    total, current, said = 0, 0, list[int]()
    for word in parts:
        if word in _SCALES or word in _DOZENS:
            factor = _SCALES.get(word) or _DOZENS[word]
            if factor >= 1000:
                total, current = total + max(1, current) * factor, 0
            else:
                current = max(1, current) * factor
            continue
        value = _UNITS.get(word, _TENS.get(word, 0))
        fits = current % 100 == 0 or (current % 100 >= 20 and current % 10 == 0 and value < 10)
        if current and not fits:  # "nineteen eighty": two numbers side by side
            said.append(total + current)
            total, current = 0, value
        else:
            current += value
    said.append(total + current)
    if "half" in run.lower().split():
        said = [value // 2 for value in said]
    if len(said) == 2 and 10 <= said[0] <= 20 and 10 <= said[1] <= 99:
        return {100 * said[0] + said[1]}
    return {said[-1]} if len(said) == 1 else set(said)


# -- names -------------------------------------------------------------------------------------------------------------

_LARGE = re.compile(r"(?<![\w@./])[^\W\d_](?:[\w’'&.]*\w)?")
_TITLES = frozenset("mr mrs ms dr prof sir lady lord miss st saint i ok ad bc am pm".split())
_ORDINARY_ENDINGS = (
    "tion sion ment ness ity ing ance ence ship ism ists ists ers ors ages ures ies ions ments ily ally ably".split()
)
_GERMAN = re.compile(r"\b(?:der|die|das|und|ist|wurde|nicht|ein|eine|den|dem|im|auf|mit|von|zu)\b")


def unknown_names(claim: str, source: str, question: str, *, strict: bool = False) -> tuple[str, ...]:
    """Names in the claim that stand neither in the source nor in the question.

    A word that opens the sentence is large anyway. It counts as a name when another name follows it; with ``strict``
    (a question that asks for a person or a place) always, unless it looks like a common noun. German writes every noun
    large, so nothing can be told there.
    """
    if len(_GERMAN.findall(claim)) >= 2:
        return ()
    given = f"{source}\n{question}"
    held = _folded(given)
    known = frozenset(re.findall(r"\w+", held))
    large = frozenset(_folded(word) for word in re.findall(r"\b[^\W\d_]{4,}", given) if word[0].isupper())
    stems = frozenset(terms(held))
    initials = "".join(word[0] for word in re.findall(r"\w+", held))
    found = list(_LARGE.finditer(claim))
    missing: list[str] = []
    for i, match in enumerate(found):
        word = match.group().removesuffix("'s").removesuffix("’s")
        if not word[0].isupper() or _stands(word, held, known, large, stems, initials):
            continue
        before = claim[: match.start()].rstrip(" \t\"“‘'(*_-•")
        opens = not before or before[-1] in ".!?:\n"
        if opens and word[1:].islower():
            after = found[i + 1].group() if i + 1 < len(found) else ""
            named = after[:1].isupper() and not claim[match.end() : found[i + 1].start()].strip()
            if not named and (not strict or _common(word)):
                continue
        missing.append(word)
    return tuple(missing)


def _stands(
    word: str, held: str, known: frozenset[str], large: frozenset[str], stems: frozenset[str], initials: str
) -> bool:
    folded = _folded(word).replace(".", "")
    parts = re.findall(r"\w+", folded)
    if not parts or folded in _TITLES or folded in STOPWORDS or all(part in known for part in parts):
        return True
    if folded in _UNITS or folded in _TENS or folded in _SCALES or folded in _DOZENS or folded in _ROUGH:
        return True  # a number, judged as one
    month = next((n for n, name in enumerate(_MONTHS, 1) if folded in (name, name[:3], name[:4])), None)
    if month is not None:
        name = _MONTHS[month - 1]
        spelled = {name, name[:3], name[:4]}
        return bool(spelled & known or re.search(rf"\b\d{{4}}-0?{month}\b|\b\d+[./]0?{month}[./]", held))
    if folded in _DAYS:
        return folded[:3] in known or f"{folded}s" in known
    if len(folded) > 1 and word.isupper():  # UK, from "United Kingdom"
        return folded in initials or all(part in known for part in parts)
    stem = next(iter(terms(folded)), folded)
    if stem in stems or near_match(stem, stems):
        return True
    # "British" from "Britain", "Norwegian" from "Norway"
    return any(other[:4] == folded[:4] and abs(len(other) - len(folded)) <= 4 for other in large) and len(folded) >= 5


def _common(word: str) -> bool:
    return word.lower().endswith(tuple(_ORDINARY_ENDINGS))


def _folded(text: str) -> str:
    """Small letters without accents."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in parts if not unicodedata.combining(char))


# -- denial ------------------------------------------------------------------------------------------------------------

_DENIES = re.compile(
    r"\b(?:not(?!\s+only)|never|neither|nor|nobody|nothing|nowhere|none|without|cannot|no(?!\.\s?\d)(?!\s+doubt\b))\b"
    r"|n[’']t\b|\b(?:failed|refused|unable)\s+to\b|\b(?:nicht|kein\w*|nie|jamais|nunca)\b|没有|不",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[,;:—–]\s|\s(?:and|but|although|though|while|whereas|except)\s", re.IGNORECASE)


def denies(text: str) -> bool:
    """Whether a text says that something is not so."""
    return bool(_DENIES.search(text))


def contradicts(claim: str, sentence: str) -> bool:
    """Whether one of the two denies and the other does not, in the clauses that speak of what the claim speaks of."""
    held = frozenset(terms(claim))
    clauses = [clause for clause in _CLAUSE.split(sentence) if held & frozenset(terms(clause))]
    return denies(claim) != any(denies(clause) for clause in clauses or [sentence])
