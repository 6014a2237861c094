"""One door for every way to write a network to disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deepwell.errors import ModelFormatError, UsageError

if TYPE_CHECKING:
    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.weights.tokenizer import Tokenizer

Format = Literal["deepseek", "gguf"]
Precision = Literal["bf16", "f16", "f32", "fp8"]

PRECISIONS = ("bf16", "f16", "f32", "fp8")


def save(
    model: Transformer,
    path: str | Path,
    *,
    format: Format = "deepseek",
    precision: Precision = "bf16",
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a network so that this package and other tools can read it.

    Args:
        model: The network.
        path: A folder for ``deepseek``, a file for ``gguf``.
        format: ``deepseek``: safetensors in DeepSeek's layout, or, for grouped attention, in that of Llama, Mistral or
            Qwen2. ``gguf``: one file, as llama.cpp reads it.
        precision: Of the weights on disk; ``fp8`` (matrices in FP8 with a scale for each 128 x 128) for ``deepseek``.
        tokenizer: Goes with it. What is saved without one cannot be opened by ``load``.

    Raises:
        UsageError: There is no such format or precision, or the path holds something that is no model.
        ModelFormatError: The format cannot express this network, or the precision a weight.
        ModelFileError: The disk is full, or the path cannot be written.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}", hint=f"use one of {', '.join(PRECISIONS)}")
    from deepwell.lm.weights.lora import has_lora

    if has_lora(model):
        raise UsageError(
            "the model has an adapter, which would be left behind",
            hint="fold it in first (deepwell.lm.weights.lora.merge_lora), or write it alone (save_adapter)",
        )
    if format == "deepseek":
        from deepwell.lm.weights.writing import write_checkpoint

        write_checkpoint(model, Path(path), precision=precision, tokenizer=tokenizer)
    elif format == "gguf":
        if precision == "fp8":
            raise ModelFormatError("GGUF has no FP8 with scales", hint="save with precision bf16, f16 or f32")
        from deepwell.lm.weights.gguf.writing import write_gguf

        write_gguf(model, Path(path), precision=precision, tokenizer=tokenizer)
    else:
        raise UsageError(f"there is no format {format!r}", hint="use deepseek or gguf")
