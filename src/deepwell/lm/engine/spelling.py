"""Tokens of a text that stands in the middle of a reply, where an encoder's habits at the start of a text are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepwell.errors import ModelFormatError

if TYPE_CHECKING:
    from deepwell.lm.weights.tokenizer import Tokenizer


def spelled(tokenizer: Tokenizer, text: str, *, specials: bool = True) -> list[int]:
    """Tokens that add exactly ``text``.

    Args:
        tokenizer: The model's.
        text: Any text.
        specials: Let control tokens that are spelled in it be those tokens. Leave it off for text from outside.

    Raises:
        ModelFormatError: The vocabulary has no tokens for it.
    """
    if not text:
        return []
    wanted = text.encode()
    ids = tokenizer.encode(text, bos=False, specials=specials)
    if b"".join(tokenizer.token_bytes(token) for token in ids) == wanted:
        return ids
    # A SentencePiece vocabulary puts a space before a text. What comes behind another letter has none.
    ids, made = tokenizer.encode(f"\n{text}", bos=False, specials=specials), b""
    for count, token in enumerate(reversed(ids), 1):
        made = tokenizer.token_bytes(token) + made
        if made == wanted:
            return ids[-count:]
    raise ModelFormatError(f"the tokenizer cannot spell {text!r}", hint="Use a model with a token for every byte.")
