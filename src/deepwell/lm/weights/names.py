"""What each tensor of a checkpoint is called in its file, and where it lies in memory.

``layout(config)`` is one table that both reading and writing follow, so that they cannot drift apart. A row of it says:
this name in the file is this tensor in memory, or these rows of it, or this expert's slice of it; and whether its rows
must change their order on the way (see ``rows``).

Three things differ between files and memory:

- Files hold one tensor an expert and projection, as every tool expects; memory stacks a layer's experts so that one
  grouped product computes them all.
- Llama, Mistral and Qwen2 files hold ``k_proj`` and ``v_proj``; here they are rows of ``kv_a_proj_with_mqa``: values
  first, because they are the latent, then keys.
- Files keep the modules of multi-token prediction as the layers after the last, each with copies of the embedding and
  of the head (DeepSeek-V3, README_WEIGHTS); memory shares those two.

Attention in DeepSeek's names where the config has latent attention, in Llama's where it is grouped; the rest of a layer
depends on whether it mixes experts. So a Llama that was split into experts has a layout too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.weights.rows import RotaryRows

Role = Literal["part", "copy", "spare"]

_IGNORED = re.compile(r"\.rotary_emb\.inv_freq$|\.attention\.(masked_)?bias$")
"""Buffers that old versions of other tools wrote and that follow from the config."""


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor of a file.

    Attributes:
        name: In the file.
        into: In memory.
        expert: Which slice of a tensor that stacks all experts of a layer.
        rows: First and last (exclusive) row in memory; None: all.
        rotary: The rows whose order differs between file and memory.
        linear: Whether it is the matrix of a linear layer; DeepSeek's FP8 files hold these in 8 bits, and nothing else.
        role: ``part``: must be in the file. ``copy``: written again for other tools; in a file it may be missing, and
            must equal the original. ``spare``: the same, but never written.
        layer: Which layer it belongs to; None for those outside all layers.
    """

    name: str
    into: str
    expert: int | None = None
    rows: tuple[int, int] | None = None
    rotary: RotaryRows | None = None
    linear: bool = False
    role: Role = "part"
    layer: int | None = None


def layout(config: ModelConfig) -> tuple[FileTensor, ...]:
    """Every tensor of a checkpoint of this network, in the order of a forward pass; scales of FP8 are not named.

    Files with latent attention keep rope's pairs side by side, files with grouped attention half a head apart.
    """
    return tuple(_all(config))


def is_ignored(name: str) -> bool:
    """Whether a tensor of a file means nothing to a network."""
    return _IGNORED.search(name) is not None


def mtp_layers(config: ModelConfig) -> range:
    """The layers of a file that hold the modules of multi-token prediction."""
    return range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)


def _all(c: ModelConfig) -> Iterator[FileTensor]:
    yield FileTensor("model.embed_tokens.weight", "embed_tokens.weight")
    for layer in range(c.num_hidden_layers):
        yield from _block(c, layer, f"model.layers.{layer}", f"layers.{layer}")
    yield FileTensor("model.norm.weight", "norm.weight")
    head = "embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"
    yield FileTensor("lm_head.weight", head, role="spare" if c.tie_word_embeddings else "part")
    for depth, layer in enumerate(mtp_layers(c)):
        file, memory = f"model.layers.{layer}", f"mtp.{depth}"
        yield FileTensor(f"{file}.embed_tokens.weight", "embed_tokens.weight", role="copy", layer=layer)
        for name in ("enorm", "hnorm", "eh_proj"):
            yield FileTensor(f"{file}.{name}.weight", f"{memory}.{name}.weight", layer=layer)
        yield from _block(c, layer, file, f"{memory}.block")
        yield FileTensor(f"{file}.shared_head.norm.weight", f"{memory}.norm.weight", layer=layer)
        yield FileTensor(f"{file}.shared_head.head.weight", head, role="copy", layer=layer)


def _block(c: ModelConfig, layer: int, file: str, memory: str) -> Iterator[FileTensor]:
    """One layer: two norms, attention, and a feed-forward part or experts."""
    attention = _grouped_attention(c) if c.is_grouped else _latent_attention(c)
    feed_forward = _experts(c) if c.is_moe_layer(layer) else _feed_forward("mlp", c.mlp_bias)
    norms = (FileTensor(f"{name}.weight", f"{name}.weight") for name in ("input_layernorm", "post_attention_layernorm"))
    for part in (norms, attention, feed_forward):
        for tensor in part:
            yield replace(tensor, name=f"{file}.{tensor.name}", into=f"{memory}.{tensor.into}", layer=layer)


def _latent_attention(c: ModelConfig) -> Iterator[FileTensor]:
    """DeepSeek's names; a file has ``q_proj`` or, with a query rank, ``q_a_proj`` and ``q_b_proj``."""
    heads = RotaryRows(heads=c.num_attention_heads, head_dim=c.qk_head_dim, rope_dim=c.qk_rope_head_dim)
    keys = RotaryRows(
        heads=c.rope_key_heads, head_dim=c.qk_rope_head_dim, rope_dim=c.qk_rope_head_dim, offset=c.kv_lora_rank
    )
    if c.q_lora_rank is None:
        yield from _projection("self_attn.q_proj", bias=c.qkv_bias, rotary=heads)
    else:
        yield from _projection("self_attn.q_a_proj", bias=c.qkv_bias)
        if c.latent_norm:
            yield _same("self_attn.q_a_layernorm.weight")
        yield from _projection("self_attn.q_b_proj", bias=False, rotary=heads)
    yield from _projection("self_attn.kv_a_proj_with_mqa", bias=c.qkv_bias, rotary=keys)
    if c.latent_norm:
        yield _same("self_attn.kv_a_layernorm.weight")
    yield from _projection("self_attn.kv_b_proj", bias=False)
    yield from _projection("self_attn.o_proj", bias=c.o_bias)


def _grouped_attention(c: ModelConfig) -> Iterator[FileTensor]:
    """Llama's names: values and keys are rows of one matrix in memory."""
    yield from _projection("self_attn.q_proj", bias=c.qkv_bias)
    for name, rows in (
        ("k_proj", (c.kv_lora_rank, c.latent_width)),
        ("v_proj", (0, c.kv_lora_rank)),
    ):
        for tensor in _projection(f"self_attn.{name}", bias=c.qkv_bias):
            into = tensor.into.replace(name, "kv_a_proj_with_mqa")
            yield replace(tensor, into=into, rows=rows)
    yield from _projection("self_attn.o_proj", bias=c.o_bias)


def _experts(c: ModelConfig) -> Iterator[FileTensor]:
    """The router, each expert's three matrices (slices in memory) and the shared experts (one wide feed-forward)."""
    yield _same("mlp.gate.weight")
    if c.topk_method == "noaux_tc":
        yield _same("mlp.gate.e_score_correction_bias")
    width = c.moe_intermediate_size
    for expert in range(c.n_routed_experts):
        for name, into, rows in (
            ("gate_proj", "gate_up_proj", (0, width)),
            ("up_proj", "gate_up_proj", (width, 2 * width)),
            ("down_proj", "down_proj", None),
        ):
            file, memory = f"mlp.experts.{expert}.{name}.weight", f"mlp.experts.{into}"
            yield FileTensor(file, memory, expert=expert, rows=rows, linear=True)
    if c.n_shared_experts:
        yield from _feed_forward("mlp.shared_experts", bias=False)


def _feed_forward(name: str, bias: bool) -> Iterator[FileTensor]:
    for projection in ("gate_proj", "up_proj", "down_proj"):
        yield from _projection(f"{name}.{projection}", bias=bias)


def _projection(name: str, *, bias: bool, rotary: RotaryRows | None = None) -> Iterator[FileTensor]:
    """A linear layer: the same name in file and memory."""
    yield FileTensor(f"{name}.weight", f"{name}.weight", rotary=rotary, linear=True)
    if bias:
        yield FileTensor(f"{name}.bias", f"{name}.bias", rotary=rotary)


def _same(name: str) -> FileTensor:
    return FileTensor(name, name)
