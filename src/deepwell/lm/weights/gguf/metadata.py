"""A ModelConfig as the metadata of a GGUF file, and everything that llama.cpp would not compute.

``fields`` reads what this writes. Grouped attention is written as ``llama``, or as ``qwen2`` where it has that
family's biases; latent attention as ``deepseek2``, in the form that llama.cpp absorbs: one key head as wide as a row of
the cache. Which keys are asked for, and which shapes are refused, is in its src/models/deepseek2.cpp, llama.cpp and
qwen2.cpp.
"""

from __future__ import annotations

from typing import Any

from deepwell.errors import ModelFormatError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.weights.gguf.fields import OURS
from deepwell.lm.weights.gguf.rope import frequency_factors, write_scaling

_DEEPSEEK = "save in the deepseek format (safetensors), which keeps it"
_ONE_KEY = "export the network from before 'deepwell models convert', or one from 'deepwell models compress'"
_GATING = {"softmax": 1, "sigmoid": 2}
_MOST_LAYERS, _MOST_EXPERTS = 512, 1024
_WITHOUT_QUERY_RANK = (26, 27)


def architecture_of(config: ModelConfig) -> str:
    """The architecture in which a network is written: llama, qwen2 or deepseek2."""
    if not config.is_grouped:
        return "deepseek2"
    square = config.num_attention_heads * config.qk_head_dim == config.hidden_size
    plain = not (config.o_bias or config.mlp_bias or config.n_routed_experts) and frequency_factors(config) is None
    return "qwen2" if config.qkv_bias and square and plain else "llama"


def describe(config: ModelConfig) -> dict[str, Any]:
    """The metadata of a network, without its tokenizer's.

    Raises:
        ModelFormatError: llama.cpp has no such network. The message names the field, the hint what can be done.
    """
    architecture = architecture_of(config)
    _check_common(config)
    keys = _latent(config) if architecture == "deepseek2" else _grouped(config, architecture)
    keys |= {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    }
    keys |= {f"rope.{key}": value for key, value in write_scaling(config, architecture).items()}
    fields = {"general.architecture": architecture, "general.type": "model"}
    if config.name:
        fields["general.name"] = config.name
    ours: dict[str, Any] = {}
    if architecture == "deepseek2" and not config.latent_norm:
        ours[f"{OURS}latent_norm"] = False
    if architecture == "deepseek2" and config.n_routed_experts and not config.n_shared_experts:
        ours[f"{OURS}n_shared_experts"] = 0
    return fields | {f"{architecture}.{key}": value for key, value in sorted(keys.items())} | ours


def token_ids(config: ModelConfig) -> dict[str, Any]:
    """What the config knows of special tokens, for a file without a tokenizer's own word on them."""
    ids = {"bos": config.bos_token_id, "eos": (*config.eos_token_id, None)[0], "padding": config.pad_token_id}
    return {f"tokenizer.ggml.{name}_token_id": number for name, number in ids.items() if number is not None}


def _grouped(c: ModelConfig, architecture: str) -> dict[str, Any]:
    if c.v_head_dim != c.qk_head_dim:
        _refuse(c, "v_head_dim", f"GGUF {architecture} has values as wide as keys ({c.qk_head_dim})")
    keys = {
        "feed_forward_length": c.intermediate_size,
        "attention.head_count_kv": c.rope_key_heads,
        "attention.key_length": c.qk_head_dim,
        "attention.value_length": c.v_head_dim,
        "rope.dimension_count": c.qk_rope_head_dim,
    }
    if c.sliding_window is not None:
        keys["attention.sliding_window"] = c.sliding_window
    if not c.n_routed_experts:
        return keys
    # llama.cpp's llama mixes experts as Mixtral does, in every layer.
    for field, wanted in (("scoring_func", "softmax"), ("norm_topk_prob", True), ("n_shared_experts", 0)):
        if getattr(c, field) != wanted:
            _refuse(c, field, f"beside grouped attention GGUF mixes experts as Mixtral does ({field} {wanted!r})")
    if c.topk_method == "noaux_tc" or (c.topk_method == "group_limited_greedy" and c.topk_group < c.n_group):
        _refuse(c, "topk_method", "beside grouped attention GGUF mixes experts as Mixtral does (greedy)")
    if c.moe_layers != tuple(range(c.num_hidden_layers)):
        _refuse(c, "first_k_dense_replace", "beside grouped attention GGUF mixes experts in every layer or in none")
    keys |= {"expert_count": c.n_routed_experts, "expert_used_count": c.num_experts_per_tok}
    weight = {} if c.routed_scaling_factor == 1 else {"expert_weights_scale": float(c.routed_scaling_factor)}
    return {**keys, "feed_forward_length": c.moe_intermediate_size, **weight}


def _latent(c: ModelConfig) -> dict[str, Any]:
    if c.rope_key_heads != 1:
        _refuse(c, "rope_key_heads", "GGUF deepseek2 has one rotary key that all heads share", _ONE_KEY)
    for field in ("qkv_bias", "o_bias", "mlp_bias"):
        if getattr(c, field):
            _refuse(c, field, "GGUF deepseek2 has no biases")
    if not c.qk_nope_head_dim:
        _refuse(c, "qk_nope_head_dim", "GGUF deepseek2 has a part of each key that rope leaves alone")
    layers = c.num_hidden_layers
    lite = layers in _WITHOUT_QUERY_RANK or (layers == 48 and c.vocab_size == 128256)
    if lite and c.q_lora_rank is not None:
        _refuse(
            c,
            "q_lora_rank",
            f"llama.cpp takes every deepseek2 of {layers} layers for one without a query rank, as V2-Lite",
        )
    experts = c.n_routed_experts
    keys: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": c.q_lora_rank or 0,
        "attention.kv_lora_rank": c.kv_lora_rank,
        "attention.key_length": c.kv_lora_rank + c.qk_rope_head_dim,
        "attention.value_length": c.kv_lora_rank,
        "attention.key_length_mla": c.qk_head_dim,
        "attention.value_length_mla": c.v_head_dim,
        "rope.dimension_count": c.qk_rope_head_dim,
        "feed_forward_length": c.intermediate_size,
        "expert_feed_forward_length": c.moe_intermediate_size if experts else c.intermediate_size,
        "expert_shared_count": max(c.n_shared_experts, 1) if experts else 0,
        "leading_dense_block_count": min(c.first_k_dense_replace, layers) if experts else layers,
    }
    if not experts:
        return keys
    dense = min(c.first_k_dense_replace, layers)
    if c.moe_layers != tuple(range(dense, layers)):
        _refuse(c, "moe_layer_freq", "GGUF deepseek2 mixes experts in every layer after the leading dense ones")
    keys |= {
        "expert_count": experts,
        "expert_used_count": c.num_experts_per_tok,
        "expert_gating_func": _GATING[c.scoring_func],
        "expert_weights_scale": float(c.routed_scaling_factor),
        "expert_weights_norm": c.norm_topk_prob,
    }
    if c.topk_method != "greedy" and c.topk_group < c.n_group:
        if c.topk_method == "group_limited_greedy":
            _refuse(
                c, "topk_method", "llama.cpp scores a group of experts by its two best, as V3, not by its best, as V2"
            )
        keys |= {"expert_group_count": c.n_group, "expert_group_used_count": c.topk_group}
    return keys


def _check_common(c: ModelConfig) -> None:
    """What no architecture of GGUF can say."""
    if c.sliding_window is not None and c.sliding_window < c.max_position_embeddings:
        _refuse(
            c,
            "sliding_window",
            "llama.cpp lets each token of these architectures see all before it",
            f"set max_position_embeddings to {c.sliding_window}, up to where the two agree, or {_DEEPSEEK}",
        )
    if c.dynamic_gating is not None:
        _refuse(c, "dynamic_gating", "GGUF has a fixed number of experts a token", "set dynamic_gating to None")
    if c.n_routed_experts and not c.weigh_experts:
        _refuse(c, "weigh_experts", "llama.cpp weighs every expert by its score", "save it before it is split")
    if c.num_hidden_layers > _MOST_LAYERS:
        _refuse(c, "num_hidden_layers", f"llama.cpp holds at most {_MOST_LAYERS}")
    if c.n_routed_experts > _MOST_EXPERTS:
        _refuse(c, "n_routed_experts", f"llama.cpp holds at most {_MOST_EXPERTS}")


def _refuse(c: ModelConfig, field: str, why: str, hint: str = _DEEPSEEK) -> None:
    raise ModelFormatError(f"GGUF cannot express {field} {getattr(c, field)!r}: {why}", hint=hint)
