"""Trains a tokenizer on the run's own text: byte-level BPE, made as DeepSeek-V3's is.

Text is cut into words by DeepSeek-V3's patterns, under the name that llama.cpp knows them by (``deepseek-v3``), so a
network trained on it runs there too. Any text can be written, since all 256 bytes are in the vocabulary. The control
tokens and the chat format are DeepSeek's. A tokenizer of 8k tokens suits a network of a few million parameters: the
embedding would else be most of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from deepwell.errors import DataError
from deepwell.lm.weights.chat_families import FAMILIES
from deepwell.lm.weights.tokenizer import Tokenizer
from deepwell.lm.weights.tokenizer_gguf import with_bos
from deepwell.lm.weights.tokenizer_parts import TokenizerParts
from deepwell.lm.weights.tokenizer_splits import SPLITTINGS

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
FIM_BEGIN, FIM_HOLE, FIM_END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"
CONTROL_TOKENS = (
    BOS, EOS, PAD, "<｜User｜>", "<｜Assistant｜>", FIM_BEGIN, FIM_HOLE, FIM_END, "<think>", "</think>",
)  # fmt: skip
"""By id, from 0."""
PRE_TOKENIZER = "deepseek-v3"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most ``vocab_size`` tokens, control tokens included; the same texts give the same one.

    A text with few different words gives fewer tokens: no pair is merged that does not come twice.

    Raises:
        DataError: There is no text.
    """
    from tokenizers import Tokenizer as Raw
    from tokenizers import pre_tokenizers, trainers

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    empty: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": SPLITTINGS[PRE_TOKENIZER].pre_tokenizer(),
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    raw = Raw.from_str(json.dumps(empty))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(CONTROL_TOKENS),
        # The library's alphabet comes in no fixed order, and the order gives the ids.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    seen = 0

    def counted() -> Iterable[str]:
        nonlocal seen
        for text in texts:
            seen += len(text)
            yield text

    raw.train_from_iterator(counted(), trainer)
    if not seen:
        raise DataError("there is no text to train a tokenizer on", hint="Check data.sources")
    description = json.loads(raw.to_str())
    for token in description["added_tokens"]:
        # As in DeepSeek's files: what is not special shows when text is decoded, and steers all the same.
        token["special"] = token["content"] in {BOS, EOS, PAD}
    template = next(family.source for family in FAMILIES if family.name == "deepseek")
    return Tokenizer(
        TokenizerParts(
            description=with_bos(json.dumps(description, ensure_ascii=False), (BOS, CONTROL_TOKENS.index(BOS))),
            source="the trained tokenizer",
            bos=BOS,
            eos=EOS,
            pad=PAD,
            add_bos=True,
            templates={"default": template},
            pre=PRE_TOKENIZER,
        )
    )
