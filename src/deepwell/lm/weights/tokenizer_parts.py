"""What a tokenizer is made of, whichever files it came from.

``description`` is the text of a ``tokenizer.json``, the one format that every tool of the field reads; a tokenizer from
GGUF metadata is first written in it. The rest is what the files around it add: the tokens that begin and end a text,
and the chat templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

END_OF_TURN = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<|end_of_turn|>",
    "<end_of_turn>", "<｜end▁of▁sentence｜>", "<|return|>", "<|call|>",
)  # fmt: skip
"""Control tokens that end an answer in every model that has them, whether or not its files say so."""

_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerParts:
    """The description, and what stands around it. ``source`` is the file that errors name."""

    description: str
    source: str
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    add_bos: bool | None = None
    """None: as the description's post-processor does."""
    eos_ids: tuple[int, ...] = ()
    templates: Mapping[str, str] = field(default_factory=dict)
    """Chat templates by name; the one that is meant when none is named is ``default``."""
    pre: str | None = None
    """GGUF's name for the way the text is split before merging, where it is known."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Other settings of ``tokenizer_config.json``, handed on when it is saved."""


def is_control(token: Mapping[str, Any]) -> bool:
    """Whether an entry of ``added_tokens`` steers the model, so that a user's text must never become it.

    Special tokens do. So does what looks like mark-up: DeepSeek's ``<｜User｜>`` and ``<think>`` or Qwen's
    ``<tool_call>`` are not marked special, only so that decoding shows them. Runs of spaces and the like are words.
    """
    return bool(token.get("special")) or _MARKUP.fullmatch(str(token.get("content", ""))) is not None
