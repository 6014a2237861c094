"""How many tokens a text has, guessed without a model.

Passages are cut to a size in tokens of a word-piece vocabulary, yet reading must neither need a model nor wait for one.
The guess counts what such a vocabulary charges for: a common word is one piece, long words are several, figures come
in pairs, every mark is one, and a character of Chinese, Cyrillic or Arabic is about one each. Against the tokenizer of
all-MiniLM-L6-v2 it is within a few per cent for running text (``benchmarks/reading.py`` prints the table).
"""

import re

# Runs are counted in stretches of at most 64, so that a cost can be looked up by length.
_LATIN = re.compile(r"[A-Za-zÀ-ɏ]{1,64}")
_DIGITS = re.compile(r"\d{1,64}")
_MARKS = re.compile(r"[^\w\s]|_")
_HANGUL = re.compile(r"[가-힣]")
_KANA = re.compile(r"[ぁ-ヿ]")
_OTHER = re.compile(r"[^\W\d_A-Za-zÀ-ɏ]")

# Mean pieces of a Latin word by its length, counted over English prose, manuals, abstracts and source code.
_PIECES = (0.0, 1.0, 1.0, 1.1, 1.08, 1.12, 1.18, 1.22, 1.25, 1.3, 1.42, 1.48, 1.62, 1.8, 2.3, 3.1, 4.0)
_FIGURES = (0.0, 1.0, 1.0, 1.6, 1.4, 2.5)
_OF_WORD = (*_PIECES, *(_PIECES[-1] + (size - len(_PIECES) + 1) / 2.5 for size in range(len(_PIECES), 65)))
_OF_FIGURE = (*_FIGURES, *(size / 2 for size in range(len(_FIGURES), 65)))


def estimate_tokens(text: str) -> float:
    """About how many word pieces ``text`` has, without special tokens. Linear in its length."""
    total = sum(map(_OF_WORD.__getitem__, map(len, _LATIN.findall(text))))
    total += sum(map(_OF_FIGURE.__getitem__, map(len, _DIGITS.findall(text))))
    total += len(_MARKS.findall(text))
    if not text.isascii():
        kana, hangul = len(_KANA.findall(text)), len(_HANGUL.findall(text))
        # A syllable of Hangul is taken apart into its letters; runs of kana share pieces.
        total += 0.95 * (len(_OTHER.findall(text)) - kana - hangul) + 0.75 * kana + 1.9 * hangul
    return total
