"""Texts to token ids, with the Rust tokenizer that the checkpoint carries.

``tokenizer.json`` often stores the padding and truncation of its training run (MiniLM's: 128 tokens, always padded).
Both are set anew: no padding, since sequences are packed, and truncation at the recipe's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import MissingModelError, ModelSourceError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MAX_CHARACTERS_PER_TOKEN = 64
"""Characters of a text that are looked at, for each token that can be kept. Words of natural language need 2 to 6; the
limit keeps one 200 MB line from being tokenised whole to keep its first 256 tokens."""


class Tokens:
    """Ids of texts, special tokens included. Safe to call from several threads at once.

    Raises ``MissingModelError`` when the folder has no ``tokenizer.json`` and ``ModelSourceError`` when it is damaged.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise MissingModelError(f"there is no tokenizer at {path}", hint="Run: deepwell models verify")
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises bare Exception
            raise ModelSourceError(f"{path} is not a tokenizer: {error}", hint="Run: deepwell models verify") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._whole = Tokenizer.from_str(self._tokenizer.to_str())
        self._tokenizer.enable_truncation(max_length=max_tokens)
        self._max_characters = max_tokens * MAX_CHARACTERS_PER_TOKEN

    def ids(self, texts: Sequence[str], prompt: str = "") -> list[NDArray[np.int32]]:
        """One array of ids for each text, with ``prompt`` before every text."""
        prepared = [prompt + text[: self._max_characters] for text in texts]
        return [np.array(encoding.ids, np.int32) for encoding in _encoded(self._tokenizer, prepared)]

    def counts(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        """How many ids each text has as a whole, with ``prompt`` before it."""
        return [len(encoding.ids) for encoding in _encoded(self._whole, [prompt + text for text in texts])]


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    try:
        return list(tokenizer.encode_batch_fast(texts))
    except (TypeError, UnicodeError):
        # Lone surrogates (from undecodable file names) have no UTF-8 form; they become question marks.
        whole = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return list(tokenizer.encode_batch_fast(whole))
