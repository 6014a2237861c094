"""The stock types of ``config.json``, read as transformers and DeepSeek's own code read them.

What they do differently from each other is here and nowhere else: which projections carry a bias, whose default is
which, what a sliding window covers. A writer returns None where transformers would pass over a field that it is given
(``moe_layer_freq``; ``norm_topk_prob`` in V2) or refuse the shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deepwell.errors import ModelConfigError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.hf_fields import REQUIRED, Fields
from deepwell.lm.model.hf_rope import read_rope, write_rope


def _read_deepseek(f: Fields) -> ModelConfig:
    v3 = f.text("model_type") == "deepseek_v3"
    heads = f.whole("num_attention_heads")
    if f.whole("num_key_value_heads", heads) != heads:
        f.clash("num_key_value_heads", "num_attention_heads", "with latent attention every head has a key of its own")
    if "q_lora_rank" not in f.mapping:
        raise ModelConfigError(f"{f.where}: q_lora_rank is missing; null says that there is none")
    nope, rope = f.whole("qk_nope_head_dim"), f.whole("qk_rope_head_dim")
    if f.whole("qk_head_dim", nope + rope) != nope + rope:
        f.wrong("qk_head_dim", f"qk_nope_head_dim ({nope}) and qk_rope_head_dim ({rope}) make {nope + rope}")
    bias = f.flag("attention_bias", False)
    if bias and "q_lora_rank" not in f:
        f.clash("attention_bias", "q_lora_rank", "DeepSeek's code puts no bias on q_proj but one on kv_a_proj_with_mqa")
    f.only("rope_interleave", True, why="rotary dimensions lie in interleaved order in DeepSeek's files")
    f.only("mlp_bias", False, why="feed-forward biases are not supported in DeepSeek's types")
    return ModelConfig(
        **_common(f),
        kv_lora_rank=f.whole("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=f.whole("v_head_dim"),
        q_lora_rank=f.whole("q_lora_rank", None),
        qkv_bias=bias,
        o_bias=bias,
        num_nextn_predict_layers=f.whole("num_nextn_predict_layers", f.whole("num_mtp_layers", 0)),
        aux_loss_alpha=f.number("aux_loss_alpha", 0.001),
        **_routing(f, v3),
    )


def _routing(f: Fields, v3: bool) -> dict[str, Any]:
    experts = f.whole("n_routed_experts", 0)
    needed = REQUIRED if experts else 0
    grouped = REQUIRED if experts and v3 else 1
    if v3:
        f.only("scoring_func", "sigmoid", why="deepseek_v3 knows sigmoid")
        f.only("topk_method", "noaux_tc", why="deepseek_v3 knows noaux_tc")
    else:
        f.only("scoring_func", "softmax", why="deepseek_v2 knows softmax")
        f.only("topk_method", "greedy", "group_limited_greedy", why="deepseek_v2 knows greedy and group_limited_greedy")
        if f.flag("norm_topk_prob", False) and f.number("routed_scaling_factor", 1.0) != 1:
            f.clash("norm_topk_prob", "routed_scaling_factor", "deepseek_v2 does not scale what it normalises")
    found: dict[str, Any] = {
        "n_routed_experts": experts,
        "moe_intermediate_size": f.whole("moe_intermediate_size", needed),
        "n_shared_experts": f.whole("n_shared_experts", 0),
        "num_experts_per_tok": f.whole("num_experts_per_tok", needed),
        "first_k_dense_replace": f.whole("first_k_dense_replace", needed),
        "moe_layer_freq": f.whole("moe_layer_freq", 1),
        "n_group": f.whole("n_group", grouped),
        "topk_group": f.whole("topk_group", grouped),
        "norm_topk_prob": f.flag("norm_topk_prob", v3),
        "routed_scaling_factor": f.number("routed_scaling_factor", REQUIRED if experts and v3 else 1.0),
        "scoring_func": "sigmoid" if v3 else "softmax",
        "topk_method": "noaux_tc" if v3 else f.text("topk_method", "greedy"),
    }
    if not experts:
        # Written as "every layer is dense" for readers that always expect experts.
        found["first_k_dense_replace"] = 0
    if found["topk_method"] == "greedy":
        # The greedy choice passes over groups, whatever the file says of them.
        found["n_group"] = found["topk_group"] = 1
    return found


def _write_deepseek(c: ModelConfig, version: int) -> dict[str, Any]:
    dense_layers = c.num_hidden_layers + c.num_nextn_predict_layers
    return {
        "architectures": [f"DeepseekV{version}ForCausalLM"],
        "model_type": f"deepseek_v{version}",
        **_write_common(c),
        "attention_bias": c.qkv_bias,
        "num_key_value_heads": c.num_attention_heads,
        "q_lora_rank": c.q_lora_rank,
        "kv_lora_rank": c.kv_lora_rank,
        "qk_nope_head_dim": c.qk_nope_head_dim,
        "qk_rope_head_dim": c.qk_rope_head_dim,
        "v_head_dim": c.v_head_dim,
        "n_routed_experts": c.n_routed_experts,
        "moe_intermediate_size": c.moe_intermediate_size,
        "n_shared_experts": c.n_shared_experts,
        "num_experts_per_tok": c.num_experts_per_tok,
        "first_k_dense_replace": c.first_k_dense_replace if c.n_routed_experts else dense_layers,
        "moe_layer_freq": c.moe_layer_freq,
        "n_group": c.n_group,
        "topk_group": c.topk_group,
        "scoring_func": c.scoring_func,
        "topk_method": c.topk_method,
        "norm_topk_prob": c.norm_topk_prob,
        "routed_scaling_factor": c.routed_scaling_factor,
        "aux_loss_alpha": c.aux_loss_alpha,
        "seq_aux": True,
        "ep_size": 1,
        "num_nextn_predict_layers": c.num_nextn_predict_layers,
    }


def _write_deepseek_v3(c: ModelConfig) -> dict[str, Any] | None:
    # transformers has experts in every layer after the dense ones, and scores a group by two of its experts.
    if c.moe_layer_freq != 1 or c.n_routed_experts == 1:
        return None
    return _write_deepseek(c, 3)


def _write_deepseek_v2(c: ModelConfig) -> dict[str, Any] | None:
    # transformers never normalises V2's weights, has no multi-token prediction for it, and wants heads to divide.
    if c.moe_layer_freq != 1 or c.norm_topk_prob or c.num_nextn_predict_layers or c.hidden_size % c.num_attention_heads:
        return None
    return _write_deepseek(c, 2)


def _read_llama(f: Fields) -> ModelConfig:
    bias = f.flag("attention_bias", False)
    return _grouped(f, qkv_bias=bias, o_bias=bias, mlp_bias=f.flag("mlp_bias", False))


def _read_mistral(f: Fields) -> ModelConfig:
    # Absent, it is 4096 to transformers; null, there is none.
    window = f.whole("sliding_window", None if "sliding_window" in f.mapping else 4096)
    return _grouped(f, sliding_window=window)


def _read_qwen2(f: Fields) -> ModelConfig:
    window = f.whole("sliding_window", None) if f.flag("use_sliding_window", False) else None
    layers, kinds = f.whole("num_hidden_layers"), f.mapping.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list | tuple) or any(kind not in _LAYER_TYPES for kind in kinds):
            f.wrong("layer_types", f"it is a list of {' or '.join(_LAYER_TYPES)}")
        if len(kinds) != layers:
            f.clash("layer_types", "num_hidden_layers", "every layer has a type")
        slides = sum(kind == "sliding_attention" for kind in kinds)
    else:
        # The window begins at layer max_window_layers.
        slides = 0 if window is None else max(0, layers - f.whole("max_window_layers"))
    if 0 < slides < layers:
        field = "max_window_layers" if kinds is None else "layer_types"
        f.wrong(field, "a sliding window in some layers and none in others is not supported")
    return _grouped(f, qkv_bias=True, sliding_window=window if slides else None)


_LAYER_TYPES = ("full_attention", "sliding_attention")


def _grouped(f: Fields, **more: Any) -> ModelConfig:
    common = _common(f)
    heads, hidden = common["num_attention_heads"], common["hidden_size"]
    if heads < 1:
        f.wrong("num_attention_heads", "there is at least 1")
    if f.text("model_type") == "llama":
        key_heads = f.whole("num_key_value_heads", heads)
    else:
        key_heads = f.whole("num_key_value_heads")
    if key_heads < 1 or heads % key_heads:
        f.clash("num_attention_heads", "num_key_value_heads", "every key head serves equally many heads")
    if "head_dim" not in f and hidden % heads:
        f.clash("hidden_size", "num_attention_heads", "they do not divide, and no head_dim is given")
    width = f.whole("head_dim", hidden // heads)
    if width % 2 or width < 2:
        f.wrong("head_dim", f"a head has {width} dimensions; rope turns pairs, so they are even")
    return ModelConfig(
        **common,
        kv_lora_rank=key_heads * width,
        qk_nope_head_dim=0,
        qk_rope_head_dim=width,
        v_head_dim=width,
        kv_up_proj=False,
        latent_norm=False,
        rope_key_heads=key_heads,
        **more,
    )


def _write_grouped(c: ModelConfig, architecture: str, kind: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": kind,
        **_write_common(c),
        "num_key_value_heads": c.rope_key_heads,
        "head_dim": c.v_head_dim,
        **more,
    }


def _write_llama(c: ModelConfig) -> dict[str, Any] | None:
    # transformers wants heads to divide the width even where head_dim is given.
    if c.hidden_size % c.num_attention_heads:
        return None
    return _write_grouped(c, "LlamaForCausalLM", "llama", attention_bias=c.qkv_bias, mlp_bias=c.mlp_bias)


def _write_qwen2(c: ModelConfig) -> dict[str, Any]:
    sliding = c.sliding_window is not None
    # With no window, no layer reaches the one where it begins.
    first = 0 if sliding else c.num_hidden_layers
    return _write_grouped(
        c, "Qwen2ForCausalLM", "qwen2", use_sliding_window=sliding, sliding_window=c.sliding_window,
        max_window_layers=first,
    )  # fmt: skip


def _write_mistral(c: ModelConfig) -> dict[str, Any]:
    return _write_grouped(c, "MistralForCausalLM", "mistral", sliding_window=c.sliding_window)


_DEFAULT_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "deepseek_v2": 2048, "deepseek_v3": 4096}


def _common(f: Fields) -> dict[str, Any]:
    f.only("hidden_act", "silu", "swish", why="the feed-forward layers here are SwiGLU (silu)")
    positions = f.whole("max_position_embeddings", _DEFAULT_POSITIONS[f.text("model_type")])
    theta, scaling = read_rope(f, positions)
    return {
        "vocab_size": f.whole("vocab_size"),
        "hidden_size": f.whole("hidden_size"),
        "intermediate_size": f.whole("intermediate_size"),
        "num_hidden_layers": f.whole("num_hidden_layers"),
        "num_attention_heads": f.whole("num_attention_heads"),
        "max_position_embeddings": positions,
        "rms_norm_eps": f.number("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": f.flag("tie_word_embeddings", False),
        "initializer_range": f.number("initializer_range", 0.02),
        "bos_token_id": f.whole("bos_token_id", None),
        "eos_token_id": f.tokens("eos_token_id"),
        "pad_token_id": f.whole("pad_token_id", None),
        "name": f.text("name", ""),
    }


def _write_common(c: ModelConfig) -> dict[str, Any]:
    ends = list(c.eos_token_id)
    return {
        **({"name": c.name} if c.name else {}),
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_position_embeddings,
        "rms_norm_eps": c.rms_norm_eps,
        **write_rope(c),
        "attention_dropout": 0.0,
        "tie_word_embeddings": c.tie_word_embeddings,
        "initializer_range": c.initializer_range,
        "use_cache": True,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": c.pad_token_id,
    }


READERS: dict[str, Callable[[Fields], ModelConfig]] = {
    "deepseek_v2": _read_deepseek,
    "deepseek_v3": _read_deepseek,
    "llama": _read_llama,
    "mistral": _read_mistral,
    "qwen2": _read_qwen2,
}
WRITERS: tuple[Callable[[ModelConfig], dict[str, Any] | None], ...] = (
    _write_deepseek_v3, _write_deepseek_v2, _write_llama, _write_qwen2, _write_mistral,
)  # fmt: skip
