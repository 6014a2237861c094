"""Writes a network as one GGUF file that stock llama.cpp loads.

    notes = write_gguf(model, Path("model.gguf"), precision="f16", tokenizer=tokenizer)

Norms, biases and the router are float32 at every precision, as llama.cpp has them; the rest is what is asked for. A
network whose latents are not normalised is written so that llama.cpp's norm changes nothing (``names.latent_scale``).
What the format cannot say is an error before a byte is written, and what it leaves out is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from deepwell.errors import ModelFormatError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.weights.gguf.composing import KINDS, Planned, compose
from deepwell.lm.weights.gguf.metadata import architecture_of, describe, token_ids
from deepwell.lm.weights.gguf.names import GgufTensor, latent_scale, layout
from deepwell.lm.weights.gguf.rope import frequency_factors

if TYPE_CHECKING:
    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.weights.tokenizer import Tokenizer

Precision = Literal["bf16", "f16", "f32"]
_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}
_BAND = 1 << 22
"""How many values are converted at once."""


def write_gguf(
    model: Transformer, path: Path | str, *, precision: Precision = "f16", tokenizer: Tokenizer | None = None
) -> tuple[str, ...]:
    """Write a network to a file.

    Args:
        model: The network, with its weights.
        path: The file; one of that name is replaced when the new one is whole.
        precision: Of the matrices.
        tokenizer: Goes into the file with its chat template. Without one llama.cpp takes token ids only.

    Returns:
        Sentences on what the file lacks or what to mind; mostly none.

    Raises:
        ModelFormatError: The format cannot express the network or a weight at this precision, or has no name for the
            way the tokenizer splits text. The message names the field or tensor, the hint what can be done.
        ModelFileError: The disk is full, or the file cannot be written.
        UsageError: The path is a folder.
    """
    config = model.config
    fields = describe(config) | {"general.file_type": _FILE_TYPES[precision]}
    if said := tuple(notes(config)):
        fields["general.description"] = " ".join(said)  # llama.cpp's tools print it
    if tokenizer is None:
        fields |= {"tokenizer.ggml.model": "none"} | token_ids(config)
    else:
        fields |= token_ids(config) | tokenizer.to_gguf(config.vocab_size)
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    tensors = layout(config, architecture_of(config))
    planned = [_plan(tensor, held, config, precision) for tensor in tensors]
    values: list[Any] = [_pieces(tensor, plan, held, config) for tensor, plan in zip(tensors, planned, strict=True)]
    factors = frequency_factors(config) if architecture_of(config) == "llama" else None
    if factors is not None:
        planned.append(Planned("rope_freqs.weight", tuple(factors.shape), "f32"))
        values.append([factors])
    compose(Path(path), fields, planned, values)
    return said


def notes(config: ModelConfig) -> Iterator[str]:
    """Sentences on what a file of this network lacks, and what to mind; what ``write_gguf`` returns."""
    if config.num_nextn_predict_layers:
        yield "The modules of multi-token prediction are left out: not every llama.cpp loads them."
    if not config.is_grouped and not config.latent_norm:
        yield (
            "The latents of this network are not normalised; attn_kv_a_mqa (and attn_q_a) are in float32, faint enough "
            "for llama.cpp's norm to do nothing. A quantised copy that does not keep them so is broken: give "
            "llama-quantize --tensor-type attn_kv_a_mqa=f32 --tensor-type attn_q_a=f32."
        )


def _plan(tensor: GgufTensor, held: dict[str, Tensor], config: ModelConfig, precision: str) -> Planned:
    """The shape and precision of a tensor of the file."""
    if tensor.form == "constant":
        return Planned(tensor.name, tensor.shape, "f32" if tensor.exact else precision)
    shape = tuple(held[tensor.into].shape)
    heads, rank = config.num_attention_heads, config.kv_lora_rank
    if tensor.form == "key_heads":
        shape = (heads, rank, config.qk_nope_head_dim)
    elif tensor.form == "value_heads":
        shape = (heads, config.v_head_dim, rank)
    elif tensor.rows is not None:
        count = tensor.rows[1] - tensor.rows[0]
        shape = (shape[0], count, shape[2]) if tensor.form == "experts" else (count, *shape[1:])
    exact = tensor.exact or (tensor.latent and latent_scale(config) != 1)
    return Planned(tensor.name, shape, "f32" if exact else precision)


def _pieces(tensor: GgufTensor, plan: Planned, held: dict[str, Tensor], config: ModelConfig) -> Iterator[Tensor]:
    """The numbers of a tensor in the file's order, a band of rows at a time."""
    dtype = KINDS[plan.kind][0]
    if tensor.form == "constant":
        yield torch.full(plan.shape, tensor.value, dtype=dtype)
        return
    source = held[tensor.into].detach()
    for part in _parts(tensor, source, config):
        width = math.prod(part.shape[1:])
        for band in part.split(max(_BAND // max(width, 1), 1)):
            converted = band.to(dtype)
            if not bool(converted.isfinite().all()):
                broken = "is not finite" if not bool(band.isfinite().all()) else f"is too large for {plan.kind}"
                raise ModelFormatError(
                    f"{tensor.name}: a weight {broken}",
                    hint="save with precision bf16 or f32" if "large" in broken else "train or convert it again",
                )
            yield converted


def _parts(tensor: GgufTensor, source: Tensor, config: ModelConfig) -> Iterator[Tensor]:
    """The rows of a tensor in the file's order; one part an expert or a head where there are such."""
    if tensor.form == "experts":
        for expert in source:
            yield expert if tensor.rows is None else expert[slice(*tensor.rows)]
    elif tensor.form in {"key_heads", "value_heads"}:
        for head in source.unflatten(0, (config.num_attention_heads, -1)):
            key, value = head.split((config.qk_nope_head_dim, config.v_head_dim))
            yield key.T if tensor.form == "key_heads" else value
    else:
        rows = source if tensor.rows is None else source[slice(*tensor.rows)]
        if tensor.rotary is not None:
            rows = tensor.rotary.to_pairs(rows)
        if tensor.latent and (scale := latent_scale(config)) != 1:
            rows = torch.cat([rows[: tensor.latent].float() * scale, rows[tensor.latent :].float()])
        yield rows
