"""How byte-level vocabularies cut a text into words before merging, under GGUF's names for the ways.

GGUF does not carry the pre-tokenizer of a ``tokenizer.json``, only a name for it (``tokenizer.ggml.pre``). Each entry
here is the pre-tokenizer that the models of that name carry in their ``tokenizer.json``; the patterns are theirs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}" + _CASED_TAIL
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}"
) + _CASED_TAIL
# Cased letters as DeepSeek's first tokenizers list them; by number, since normalising this file would change some.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113"
    "\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
    "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _EAST_ASIAN,
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_FALLBACK = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True, slots=True)
class Splitting:
    """One way to cut a text into words.

    Attributes:
        patterns: Each cuts what the ones before it left; a match becomes a word of its own.
        digits: After the patterns, every digit alone.
        gpt2: Last, GPT-2's own pattern.
        nfc: The text is brought into Unicode's composed form first.
        ignore_merges: A word that is in the vocabulary as a whole is taken whole.
        adds_bos: A text begins with a token of its own where the file does not say otherwise.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    gpt2: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> dict[str, Any]:
        """As it stands in a ``tokenizer.json``."""
        steps: list[dict[str, Any]] = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in self.patterns
        ]
        if self.digits:
            steps.append({"type": "Digits", "individual_digits": True})
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": self.gpt2}
        return {"type": "Sequence", "pretokenizers": [*steps, level]}


_DIGITS_AND_GPT2 = Splitting(digits=True, gpt2=True)
_PLAIN_GPT2 = Splitting(gpt2=True)
_LIKE_LLAMA3 = Splitting((_LLAMA3,), ignore_merges=True, adds_bos=True)

SPLITTINGS: dict[str, Splitting] = {
    "llama-bpe": _LIKE_LLAMA3,
    "qwen2": Splitting((_QWEN2,), nfc=True),
    "deepseek-v3": Splitting(_DEEPSEEK_V3),
    "deepseek-llm": Splitting(_DEEPSEEK_LLM, digits=True),
    "deepseek-coder": Splitting(_DEEPSEEK_CODER, digits=True),
    "deepseek-r1-qwen": Splitting((_QWEN2,), nfc=True),
    "smollm": _DIGITS_AND_GPT2,
    "gpt-2": _PLAIN_GPT2,
    "gpt-4o": Splitting((_GPT4O,)),
    "tekken": Splitting((_TEKKEN,), ignore_merges=True, adds_bos=True),
    "qwen35": Splitting((_QWEN35,), nfc=True),
    "smaug-bpe": Splitting((_LLAMA3,)),
    "default": Splitting(_FALLBACK),
    "llama3": _LIKE_LLAMA3,
    "llama-v3": _LIKE_LLAMA3,
    "falcon3": _LIKE_LLAMA3,
    "dbrx": Splitting((_LLAMA3,)),
    "stablelm2": Splitting((_QWEN2,)),
    "starcoder": _DIGITS_AND_GPT2,
    "refact": _DIGITS_AND_GPT2,
    "command-r": _DIGITS_AND_GPT2,
    "codeshell": _DIGITS_AND_GPT2,
    "exaone": _DIGITS_AND_GPT2,
    "phi-2": _PLAIN_GPT2,
    "olmo": _PLAIN_GPT2,
    "mpt": _PLAIN_GPT2,
}
"""By name, those that ``name_of`` should prefer first."""

_PROBE = (
    "I'LL we'll they're 1 12 123 1234567 ½ Ⅷ ² snake_case camelCase HTTPServer naïve e\u0301te\u0301 x+=1; "
    "// (a[0]!='b')\n\n\n\tfor i in range(10):\r\n        pass  \n  Ελληνικά русский 漢字かな交じりカナ한국어 "
    "عربي हिन्दी ไทย 😀 <|x|> …!?。，\u00a0\u3000end  "
)


@cache
def _words(described: str, nfc: bool) -> tuple[str, ...]:
    from tokenizers import normalizers

    pre = _load(described)
    text = normalizers.NFC().normalize_str(_PROBE) if nfc else _PROBE
    return tuple(word for word, _ in pre.pre_tokenize_str(text))


def _load(described: str) -> Any:
    """A pre-tokenizer from its JSON, by way of an empty tokenizer: the library offers no shorter one."""
    from tokenizers import Tokenizer

    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return Tokenizer.from_str(json.dumps({**empty, "pre_tokenizer": json.loads(described)})).pre_tokenizer


def name_of(description: dict[str, Any]) -> str | None:
    """GGUF's name for the way this ``tokenizer.json`` splits text; None where it has none.

    Ways are compared by what they do to a text that holds what they treat differently, and not by how they are written.
    """
    pre = description.get("pre_tokenizer")
    if pre is None:
        return None
    nfc = "NFC" in json.dumps(description.get("normalizer"))
    words = _words(json.dumps(pre), nfc)
    merges = bool(description["model"].get("ignore_merges"))
    alike = [
        name
        for name, known in SPLITTINGS.items()
        if _words(json.dumps(known.pre_tokenizer()), nfc) == words and known.ignore_merges == merges
    ]
    return next((name for name in alike if SPLITTINGS[name].nfc == nfc), alike[0] if alike else None)
