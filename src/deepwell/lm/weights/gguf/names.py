"""What each tensor of a GGUF file is called, and where it lies in memory: one table for reading and writing.

``layout(config, architecture)`` lists every tensor that llama.cpp expects of such a network. Four things differ from
memory, beside the names:

- ``llama`` and ``deepseek2`` keep rope's pairs side by side, ``qwen2`` as memory does, half a head apart.
- ``deepseek2`` splits the up-projection of the latent by head, keys transposed, so that llama.cpp can absorb them:
  ``attn_k_b`` [heads, rank, width of a key] and ``attn_v_b`` [heads, width of a value, rank].
- A layer's experts are three stacks, ``ffn_gate_exps``, ``ffn_up_exps`` and ``ffn_down_exps``.
- ``deepseek2`` normalises latents with the epsilon of all other norms, where DeepSeek's code takes 1e-6; and it always
  normalises. See ``latent_scale``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.weights.rows import RotaryRows

Form = Literal["rows", "experts", "key_heads", "value_heads", "constant"]
_LATENT_EPS = 1e-6
_FAINT = 2.0**-26


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a file.

    Attributes:
        name: In the file.
        into: In memory; empty for a constant.
        form: ``rows`` of one tensor; a stack of ``experts``; one side of the up-projection by head; or a ``constant``
            that the format asks for and the network does not have.
        rows: First and last (exclusive) row in memory, of an expert's slice where there are experts; None: all.
        rotary: The rows whose order differs.
        latent: How many rows, from the first, make a latent, which ``latent_scale`` multiplies.
        exact: Kept in float32 at any precision: norms, biases and the router.
        shape, value: Of a constant.
    """

    name: str
    into: str = ""
    form: Form = "rows"
    rows: tuple[int, int] | None = None
    rotary: RotaryRows | None = None
    latent: int = 0
    exact: bool = False
    shape: tuple[int, ...] = ()
    value: float = 0.0


def latent_scale(config: ModelConfig) -> float:
    """What the rows that make a latent are multiplied by in a ``deepseek2`` file.

    llama.cpp computes ``latent / sqrt(mean(latent^2) + eps)``, eps being that of all norms. Two choices make it say
    what the network says:

    - A network that normalises with 1e-6: times ``sqrt(eps / 1e-6)``, which cancels exactly. 1 for DeepSeek's models.
    - A network that does not normalise: so faint that eps is all there is under the root. The norm is then a division
      by ``sqrt(eps)``, which its weight undoes. With 2^-26, exact in every float format, what is lost of a latent of
      mean square m is m / eps * 1e-16: nothing that float32 shows.
    """
    return math.sqrt(config.rms_norm_eps / _LATENT_EPS) if config.latent_norm else _FAINT


def layout(config: ModelConfig, architecture: str) -> tuple[GgufTensor, ...]:
    """Every tensor of the file, in the order of a forward pass; without multi-token prediction."""
    return tuple(_all(config, architecture))


def _all(c: ModelConfig, architecture: str) -> Iterator[GgufTensor]:
    yield GgufTensor("token_embd.weight", "embed_tokens.weight")
    for layer in range(c.num_hidden_layers):
        attention = _latent_attention(c) if architecture == "deepseek2" else _grouped_attention(c, architecture)
        feed_forward = _experts(c) if c.is_moe_layer(layer) else _feed_forward("mlp", "", bias=c.mlp_bias)
        norms = (
            GgufTensor("attn_norm.weight", "input_layernorm.weight", exact=True),
            GgufTensor("ffn_norm.weight", "post_attention_layernorm.weight", exact=True),
        )
        for tensor in (*norms, *attention, *feed_forward):
            into = f"layers.{layer}.{tensor.into}" if tensor.into else ""
            yield replace(tensor, name=f"blk.{layer}.{tensor.name}", into=into)
    yield GgufTensor("output_norm.weight", "norm.weight", exact=True)
    if not c.tie_word_embeddings:
        yield GgufTensor("output.weight", "lm_head.weight")


def _grouped_attention(c: ModelConfig, architecture: str) -> Iterator[GgufTensor]:
    queries = keys = None
    if architecture == "llama":
        queries = RotaryRows(heads=c.num_attention_heads, head_dim=c.qk_head_dim, rope_dim=c.qk_rope_head_dim)
        keys = replace(queries, heads=c.rope_key_heads)
    both = "self_attn.kv_a_proj_with_mqa"
    yield from _projection("attn_q", "self_attn.q_proj", bias=c.qkv_bias, rotary=queries)
    yield from _projection("attn_k", both, bias=c.qkv_bias, rotary=keys, rows=(c.kv_lora_rank, c.latent_width))
    yield from _projection("attn_v", both, bias=c.qkv_bias, rows=(0, c.kv_lora_rank))
    yield from _projection("attn_output", "self_attn.o_proj", bias=c.o_bias)


def _latent_attention(c: ModelConfig) -> Iterator[GgufTensor]:
    heads = RotaryRows(heads=c.num_attention_heads, head_dim=c.qk_head_dim, rope_dim=c.qk_rope_head_dim)
    if c.q_lora_rank is None:
        yield GgufTensor("attn_q.weight", "self_attn.q_proj.weight", rotary=heads)
    else:
        yield GgufTensor("attn_q_a.weight", "self_attn.q_a_proj.weight", latent=c.q_lora_rank)
        yield _latent_norm(c, "q_a", c.q_lora_rank)
        yield GgufTensor("attn_q_b.weight", "self_attn.q_b_proj.weight", rotary=heads)
    key = RotaryRows(heads=1, head_dim=c.qk_rope_head_dim, rope_dim=c.qk_rope_head_dim, offset=c.kv_lora_rank)
    both = "self_attn.kv_a_proj_with_mqa.weight"
    yield GgufTensor("attn_kv_a_mqa.weight", both, rotary=key, latent=c.kv_lora_rank)
    yield _latent_norm(c, "kv_a", c.kv_lora_rank)
    yield GgufTensor("attn_k_b.weight", "self_attn.kv_b_proj.weight", form="key_heads")
    yield GgufTensor("attn_v_b.weight", "self_attn.kv_b_proj.weight", form="value_heads")
    yield GgufTensor("attn_output.weight", "self_attn.o_proj.weight")


def _latent_norm(c: ModelConfig, name: str, width: int) -> GgufTensor:
    """The weight of a latent's norm; for a network without one, what undoes the norm (see ``latent_scale``)."""
    if c.latent_norm:
        return GgufTensor(f"attn_{name}_norm.weight", f"self_attn.{name}_layernorm.weight", exact=True)
    undo = math.sqrt(c.rms_norm_eps) / latent_scale(c)
    return GgufTensor(f"attn_{name}_norm.weight", form="constant", shape=(width,), value=undo, exact=True)


def _experts(c: ModelConfig) -> Iterator[GgufTensor]:
    yield GgufTensor("ffn_gate_inp.weight", "mlp.gate.weight", exact=True)
    if c.topk_method == "noaux_tc":
        yield GgufTensor("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", exact=True)
    width = c.moe_intermediate_size
    stacked = "mlp.experts.gate_up_proj"
    yield GgufTensor("ffn_gate_exps.weight", stacked, form="experts", rows=(0, width))
    yield GgufTensor("ffn_up_exps.weight", stacked, form="experts", rows=(width, 2 * width))
    yield GgufTensor("ffn_down_exps.weight", "mlp.experts.down_proj", form="experts")
    if c.n_shared_experts:
        yield from _feed_forward("mlp.shared_experts", "_shexp", bias=False)
    elif not c.is_grouped:  # llama.cpp's deepseek2 cannot do without; one of zeros adds nothing
        for name, shape in (
            ("gate", (width, c.hidden_size)),
            ("up", (width, c.hidden_size)),
            ("down", (c.hidden_size, width)),
        ):
            yield GgufTensor(f"ffn_{name}_shexp.weight", form="constant", shape=shape)


def _feed_forward(into: str, suffix: str, *, bias: bool) -> Iterator[GgufTensor]:
    for part in ("gate", "up", "down"):
        yield from _projection(f"ffn_{part}{suffix}", f"{into}.{part}_proj", bias=bias)


def _projection(
    name: str, into: str, *, bias: bool, rotary: RotaryRows | None = None, rows: tuple[int, int] | None = None
) -> Iterator[GgufTensor]:
    yield GgufTensor(f"{name}.weight", f"{into}.weight", rotary=rotary, rows=rows)
    if bias:
        yield GgufTensor(f"{name}.bias", f"{into}.bias", rotary=rotary, rows=rows, exact=True)
