"""Fill in the middle: a prompt that shows a model what stands before and behind the text that it is to write.

Models that were trained for it (Bavarian et al. 2022, arXiv 2207.14255) have tokens for it in their vocabulary:

    DeepSeek              <｜fim▁begin｜> before <｜fim▁hole｜> behind <｜fim▁end｜>
    Qwen, Granite         <|fim_prefix|> before <|fim_suffix|> behind <|fim_middle|>
    StarCoder             <fim_prefix> before <fim_suffix> behind <fim_middle>
    Code Llama            ▁<PRE> before ▁<SUF> behind ▁<MID>
    Codestral             [SUFFIX] behind [PREFIX] before
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepwell.errors import UsageError
from deepwell.lm.engine.spelling import spelled

if TYPE_CHECKING:
    from deepwell.lm.weights.tokenizer import Tokenizer

_BEFORE, _BEHIND = object(), object()

FORMATS: tuple[tuple[str | object, ...], ...] = (
    ("<｜fim▁begin｜>", _BEFORE, "<｜fim▁hole｜>", _BEHIND, "<｜fim▁end｜>"),
    ("<|fim_prefix|>", _BEFORE, "<|fim_suffix|>", _BEHIND, "<|fim_middle|>"),
    ("<fim_prefix>", _BEFORE, "<fim_suffix>", _BEHIND, "<fim_middle>"),
    ("▁<PRE>", _BEFORE, "▁<SUF>", _BEHIND, "▁<MID>"),
    ("[SUFFIX]", _BEHIND, "[PREFIX]", _BEFORE),
)
"""Marks and texts in the order of each format."""


def infill_prompt(tokenizer: Tokenizer, before: str, behind: str) -> list[int]:
    """Tokens that ask for the text between two others. Marks that are spelled in these are letters.

    Raises:
        UsageError: The vocabulary has no tokens for it.
    """
    for form in FORMATS:
        marks = {part: tokenizer.token_id(part) for part in form if isinstance(part, str)}
        if None in marks.values():
            continue
        begun = tokenizer.bos_token_id is not None and tokenizer.adds_bos
        tokens = [tokenizer.bos_token_id] if begun else []
        for part in form:
            if isinstance(part, str):
                tokens.append(marks[part])
            else:
                tokens += spelled(tokenizer, before if part is _BEFORE else behind, specials=False)
        return [token for token in tokens if token is not None]
    raise UsageError(
        "this model was not made to fill in a text's middle: its vocabulary has no tokens for it",
        hint="Leave suffix out, or use a model that can, such as a coder.",
    )
