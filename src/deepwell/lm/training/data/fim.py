"""Fill in the middle: some documents are learned with a part from their middle at their end.

A network that has seen ``prefix hole suffix end middle`` can fill a gap when it is given what stands around it. V3
(section 4.1) does so with a tenth of its documents, in the order prefix, suffix, middle (PSM) and before packing::

    <｜fim▁begin｜>prefix<｜fim▁hole｜>suffix<｜fim▁end｜>middle<eos>

Which documents of an epoch these are, and where each is cut, follows from the seed, the epoch and the document's number
alone. A document of n tokens becomes one of n + 3 wherever it is cut, and each epoch has equally many, so the rows of
an epoch can be counted without making one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import RecipeError
from deepwell.lm.weights.tokenizer import Tokenizer

EXTRA = 3
"""Tokens that a document grows by."""
_CHOICE, _CUTS = 1, 2
_SPELLINGS = (
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
)
"""DeepSeek's; Qwen's; StarCoder's. The first stands before the prefix, the second before the suffix."""


@dataclass(frozen=True, slots=True)
class FimTokens:
    """Ids of the three control tokens."""

    begin: int
    hole: int
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> FimTokens:
        """Those of a tokenizer, found by their text.

        Raises:
            RecipeError: It has none.
        """
        for spelling in _SPELLINGS:
            begin, hole, end = (tokenizer.token_id(text) for text in spelling)
            if begin is not None and hole is not None and end is not None:
                return cls(begin, hole, end)
        raise RecipeError(
            f"data.fim_rate is above 0, and the tokenizer of {tokenizer.parts.source} has no tokens for filling in",
            hint=f"Set data.fim_rate = 0, or take a tokenizer with {', '.join(_SPELLINGS[0])}",
        )


def chosen(count: int, rate: float, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Which of ``count`` documents are filled in in an epoch: always ``round(rate * count)``, each epoch others."""
    picked = np.zeros(count, dtype=np.bool_)
    random = np.random.Generator(np.random.PCG64([seed, epoch, _CHOICE]))
    picked[random.permutation(count)[: round(rate * count)]] = True
    return picked


def rearranged(tokens: NDArray[Any], fim: FimTokens, *, seed: int, epoch: int, document: int) -> NDArray[np.int64]:
    """A document's tokens [n] as prefix, suffix and middle [n + 3]; each part may be empty."""
    random = np.random.Generator(np.random.PCG64([seed, epoch, _CUTS, document]))
    first, last = sorted(random.integers(0, len(tokens) + 1, size=2).tolist())
    parts = ([fim.begin], tokens[:first], [fim.hole], tokens[last:], [fim.end], tokens[first:last])
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
