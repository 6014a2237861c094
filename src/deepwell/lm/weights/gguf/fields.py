"""The metadata of a GGUF file as a ModelConfig.

Keys begin with the architecture: ``llama.embedding_length``. Which there are, and what they mean where a config file of
the same model would say it otherwise, is llama.cpp's to decide (src/llama-arch.cpp, conversion/deepseek.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepwell.errors import ModelConfigError, ModelFileError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.weights.gguf.container import Container
from deepwell.lm.weights.gguf.dequantising import whole
from deepwell.lm.weights.gguf.rope import read_frequency_factors, read_scaling

ARCHITECTURES = ("llama", "qwen2", "deepseek2")
OURS = "deepwell."
"""Keys that llama.cpp passes over: what its architecture cannot say of the network that was written."""
_SCORING = {0: "softmax", 1: "softmax", 2: "sigmoid"}
_ENDS = ("eos", "eot", "eom")


def config_of(file: Container) -> ModelConfig:
    """What network a file holds.

    Raises:
        ModelFileError: The architecture is not one of ``ARCHITECTURES``, or a key is missing or has a strange value.
        ModelConfigError: Two values contradict each other.
    """
    architecture = file.fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelFileError(
            f"{file.path}: architecture {architecture!r}",
            hint=f"these can be read: {', '.join(ARCHITECTURES)} (Mistral and SmolLM are llama)",
        )
    if "token_embd.weight" not in file.tensors:
        raise ModelFileError(f"{file.path}: tensor token_embd.weight is missing; is this only a vocabulary?")
    keys = Keys(file.fields, architecture, str(file.path))
    try:
        config = _latent(file, keys) if architecture == "deepseek2" else _grouped(file, keys)
        if "rope_freqs.weight" in file.tensors:
            factors = whole(file, "rope_freqs.weight").float()
            if factors.shape != (config.qk_rope_head_dim // 2,) or not bool((factors > 0).all()):
                raise ModelFileError(
                    f"{file.path}: tensor rope_freqs.weight is not {config.qk_rope_head_dim // 2} factors above 0"
                )
            config = read_frequency_factors(factors, config)
    except ModelConfigError as e:
        raise ModelConfigError(f"{file.path}: {e.message}", hint=e.hint) from e
    return config


class Keys:
    """The values of one architecture, with their types checked."""

    def __init__(self, fields: Mapping[str, Any], architecture: str, where: str) -> None:
        self.fields, self.architecture, self.where = fields, architecture, where

    def whole(self, key: str, otherwise: int | None = None) -> int:
        """A whole number; an array that repeats one number for each layer is that number."""
        value = self.fields.get(f"{self.architecture}.{key}", otherwise)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, list):
            raise ModelFileError(f"{self.where}: {self.architecture}.{key} differs from layer to layer: {value[:8]}")
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelFileError(f"{self.where}: {self.architecture}.{key} is {value!r}; it is a whole number")
        return value

    def number(self, key: str, otherwise: float | None = None) -> float:
        value = self.fields.get(f"{self.architecture}.{key}", otherwise)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelFileError(f"{self.where}: {self.architecture}.{key} is {value!r}; it is a number")
        return float(value)


def _common(file: Container, keys: Keys) -> dict[str, Any]:
    """What every architecture says in the same words."""
    tensors, vocab = file.tensors, file.tensors["token_embd.weight"].shape[0]
    layers = keys.whole("block_count") - keys.whole("nextn_predict_layers", 0)
    if layers > len(tensors):
        raise ModelFileError(f"{file.path}: {keys.architecture}.block_count is {layers}, of {len(tensors)} tensors")
    ends = (_token(file, name, vocab) for name in _ENDS)
    return {
        "vocab_size": vocab,
        "hidden_size": keys.whole("embedding_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": keys.whole("attention.head_count"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10_000.0),
        "rope_scaling": read_scaling(file.fields, keys.architecture, where=keys.where),
        "max_position_embeddings": keys.whole("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": _token(file, "bos", vocab),
        "eos_token_id": tuple(dict.fromkeys(end for end in ends if end is not None)),
        "pad_token_id": _token(file, "padding", vocab),
        "name": str(file.fields.get("general.name", "")),
    }


def _token(file: Container, name: str, vocab: int) -> int | None:
    """The id of a special token; some writers put the largest number there for none."""
    token = file.fields.get(f"tokenizer.ggml.{name}_token_id")
    return token if isinstance(token, int) and 0 <= token < vocab else None


def _grouped(file: Container, keys: Keys) -> ModelConfig:
    """Architectures llama and qwen2: grouped-query attention, dense or with experts as in Mixtral."""
    common = _common(file, keys)
    heads = common["num_attention_heads"]
    key_heads = keys.whole("attention.head_count_kv", heads)
    width = keys.whole("attention.key_length", common["hidden_size"] // max(heads, 1))
    value_width = keys.whole("attention.value_length", width)
    if keys.whole("rope.dimension_count", width) != width:
        raise ModelFileError(
            f"{file.path}: {keys.architecture}.rope.dimension_count ({keys.whole('rope.dimension_count')}) is not "
            f"the width of a head ({width}): rope over a part of a key cannot be read from this architecture"
        )
    tensors = file.tensors
    dense_width = keys.whole("feed_forward_length")
    experts = keys.whole("expert_count", 0)
    routing: dict[str, Any] = {}  # without experts the defaults, so that the config is plainly a Llama's
    if experts:
        routing = {
            "n_routed_experts": experts,
            "num_experts_per_tok": keys.whole("expert_used_count", 0),
            "moe_intermediate_size": dense_width,
            "scoring_func": "softmax",
            "topk_method": "greedy",
            "routed_scaling_factor": keys.number("expert_weights_scale", 0.0) or 1.0,
        }
    window = keys.whole("attention.sliding_window", 0)
    return ModelConfig(
        kv_lora_rank=key_heads * value_width, qk_nope_head_dim=0, qk_rope_head_dim=width, v_head_dim=value_width,
        rope_key_heads=key_heads, kv_up_proj=False, latent_norm=False, intermediate_size=dense_width,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors, mlp_bias="blk.0.ffn_down.bias" in tensors,
        sliding_window=window or None, **common, **routing,
    )  # fmt: skip


def _latent(file: Container, keys: Keys) -> ModelConfig:
    """Architecture deepseek2: V2, V2-Lite, V3, R1 and whatever is written in their terms."""
    common = _common(file, keys)
    rope = keys.whole("rope.dimension_count")
    # Files from before 2025 hold the widths of the unabsorbed heads under the plain names.
    key_width = keys.whole("attention.key_length_mla", keys.whole("attention.key_length"))
    value_width = keys.whole("attention.value_length_mla", keys.whole("attention.value_length"))
    return ModelConfig(
        q_lora_rank=keys.whole("attention.q_lora_rank", 0) or None, kv_lora_rank=keys.whole("attention.kv_lora_rank"),
        qk_nope_head_dim=key_width - rope, qk_rope_head_dim=rope, v_head_dim=value_width,
        latent_norm=bool(file.fields.get(f"{OURS}latent_norm", True)),
        intermediate_size=keys.whole("feed_forward_length"), **common,
        **_routing(file, keys, common["num_hidden_layers"]),
    )  # fmt: skip


def _routing(file: Container, keys: Keys, layers: int) -> dict[str, Any]:
    """How deepseek2 mixes experts; nothing where every layer is dense, so that all stays at its default."""
    experts = keys.whole("expert_count", 0)
    dense = min(keys.whole("leading_dense_block_count", 0), layers)
    if not experts or dense == layers:
        return {}
    scoring = keys.whole("expert_gating_func", 0)
    if scoring not in _SCORING:
        raise ModelFileError(f"{file.path}: deepseek2.expert_gating_func is {scoring}; 1 and 2 are known")
    groups = keys.whole("expert_group_count", 1) or 1
    biased = f"blk.{dense}.exp_probs_b.bias" in file.tensors
    return {
        "n_routed_experts": experts,
        "n_shared_experts": file.fields.get(f"{OURS}n_shared_experts", keys.whole("expert_shared_count", 0)),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length"),
        "num_experts_per_tok": keys.whole("expert_used_count"),
        "first_k_dense_replace": dense,
        "n_group": groups,
        "topk_group": keys.whole("expert_group_used_count", groups) if groups > 1 else 1,
        "scoring_func": _SCORING[scoring],
        "topk_method": "noaux_tc" if biased else "group_limited_greedy" if groups > 1 else "greedy",
        "norm_topk_prob": bool(file.fields.get("deepseek2.expert_weights_norm", False)),
        "routed_scaling_factor": keys.number("expert_weights_scale", 0.0) or 1.0,
    }
