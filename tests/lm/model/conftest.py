"""Random networks, of every combination of parts that a ``ModelConfig`` accepts; processors with and without bf16."""

from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from deepwell.lm.model import products
from deepwell.lm.model.config import DynamicGating, ModelConfig, RopeScaling

_small = st.integers(1, 4)


@st.composite
def _scalings(draw: Any) -> RopeScaling:
    kind = draw(st.sampled_from(["yarn", "llama3", "linear"]))
    more: dict[str, Any] = {}
    if kind != "linear":
        more["original_max_position_embeddings"] = draw(st.sampled_from([16, 4096]))
    if kind == "yarn":
        more |= {"mscale": draw(st.sampled_from([0.0, 0.707, 1.0])), "beta_slow": draw(st.sampled_from([1.0, 2.0]))}
        more |= {
            "mscale_all_dim": draw(st.sampled_from([0.0, 0.707])),
            "beta_fast": draw(st.sampled_from([32.0, 16.0])),
        }
        more |= {"attention_factor": draw(st.sampled_from([None, 1.25]))}
    if kind == "llama3":
        more |= {"low_freq_factor": draw(st.floats(0.5, 2)), "high_freq_factor": draw(st.floats(3, 8))}
    return RopeScaling(kind=kind, factor=draw(st.floats(1, 50)), **more)


@st.composite
def _experts(draw: Any) -> dict[str, Any]:
    group, n_group = draw(st.integers(2, 4)), draw(_small)
    method = draw(st.sampled_from(["noaux_tc", "group_limited_greedy", "greedy"]))
    topk_group = n_group if method == "greedy" else draw(st.integers(1, n_group))
    top_k = draw(st.integers(1, topk_group * group))
    gating = DynamicGating(share=0.75, maximum=topk_group * group) if draw(st.integers(0, 5)) == 5 else None
    return {
        "n_routed_experts": group * n_group,
        "n_group": n_group,
        "topk_group": topk_group,
        "topk_method": method,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": 4 * draw(_small),
        "n_shared_experts": draw(st.integers(0, 2)),
        "first_k_dense_replace": draw(st.integers(0, 3)),
        "moe_layer_freq": draw(st.sampled_from([1, 1, 1, 2])),
        "scoring_func": draw(st.sampled_from(["sigmoid", "softmax"])),
        "norm_topk_prob": draw(st.booleans()),
        "weigh_experts": draw(st.sampled_from([True, True, True, False])),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
        "dynamic_gating": gating,
    }


@st.composite
def _attention(draw: Any) -> dict[str, Any]:
    key_heads, width = draw(st.integers(1, 3)), 2 * draw(_small)
    heads = key_heads * draw(st.integers(1, 3))
    qkv, o = draw(st.booleans()), draw(st.booleans())
    found = {"num_attention_heads": heads, "qkv_bias": qkv, "o_bias": draw(st.sampled_from([qkv, qkv, o]))}
    found |= {"sliding_window": draw(st.sampled_from([None, None, None, 5]))}
    if draw(st.booleans()):
        return found | {
            "rope_key_heads": key_heads,
            "kv_lora_rank": key_heads * width,
            "v_head_dim": width,
            "qk_rope_head_dim": draw(st.sampled_from([width, width, 2])),
            "qk_nope_head_dim": 0,
            "kv_up_proj": False,
            "latent_norm": False,
        }
    return found | {
        "rope_key_heads": draw(st.sampled_from([1, 1, 1, key_heads])),
        "kv_lora_rank": 4 * draw(_small),
        "q_lora_rank": draw(st.sampled_from([None, 6, 8])),
        "qk_nope_head_dim": draw(st.sampled_from([4, 8, 0])),
        "qk_rope_head_dim": width,
        "v_head_dim": 2 * draw(_small),
        "latent_norm": draw(st.sampled_from([True, True, True, False])),
    }


@st.composite
def _configs(draw: Any) -> ModelConfig:
    attention = draw(_attention())
    found: dict[str, Any] = {
        "vocab_size": draw(st.integers(8, 30)),
        "hidden_size": attention["num_attention_heads"] * 4 + draw(st.sampled_from([0, 0, 0, 1])),
        "intermediate_size": draw(st.integers(4, 12)),
        "num_hidden_layers": draw(_small),
        "num_nextn_predict_layers": draw(st.sampled_from([0, 0, 1, 2])),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "rope_theta": draw(st.floats(100, 1e6)),
        "rope_scaling": draw(st.none() | _scalings()),
        "max_position_embeddings": draw(st.integers(32, 4096)),
        "tie_word_embeddings": draw(st.booleans()),
        "mlp_bias": draw(st.sampled_from([False, False, True])),
        "initializer_range": draw(st.sampled_from([0.006, 0.02])),
        "aux_loss_alpha": draw(st.sampled_from([1e-4, 1e-4, 1e-3])),
        "bos_token_id": draw(st.sampled_from([None, 0])),
        "eos_token_id": draw(st.sampled_from([(), (1,), (2, 3)])),
        "pad_token_id": draw(st.sampled_from([None, 4])),
        "name": draw(st.sampled_from(["", "debug"])),
    }
    if found["rope_scaling"] is None and draw(st.integers(0, 7)) == 7:
        pairs = attention["qk_rope_head_dim"] // 2
        found["rope_frequencies"] = tuple(draw(st.lists(st.floats(0.001, 1), min_size=pairs, max_size=pairs)))
    if draw(st.booleans()):
        found |= draw(_experts())
    found |= attention
    stock = draw(st.sampled_from(["none", "deepseek_v3", "deepseek_v2", "llama", "mistral", "qwen2"]))
    if stock.startswith("deepseek") == attention.get("kv_up_proj", True):
        found |= draw(_STOCK[stock])
    return ModelConfig(**found)


def _bias(value: bool) -> dict[str, st.SearchStrategy[Any]]:
    return {"qkv_bias": st.just(value), "o_bias": st.just(value)}


_LATENT = {
    "rope_key_heads": st.just(1), "latent_norm": st.just(True), "sliding_window": st.none(), "mlp_bias": st.just(False),
    "rope_frequencies": st.none(), "moe_layer_freq": st.just(1), "dynamic_gating": st.none(),
    "weigh_experts": st.just(True),
}  # fmt: skip
_GROUPED: dict[str, st.SearchStrategy[Any]] = {
    "n_routed_experts": st.just(0), "num_nextn_predict_layers": st.just(0), "rope_frequencies": st.none()
}  # fmt: skip
# Draws that make a network one that a stock type can (mostly) say.
_STOCK: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "none": st.just({}),
    "deepseek_v3": st.fixed_dictionaries(
        _LATENT | _bias(False) | {"scoring_func": st.just("sigmoid"), "topk_method": st.just("noaux_tc")}
    ),
    "deepseek_v2": st.fixed_dictionaries(
        _LATENT
        | _bias(False)
        | {"scoring_func": st.just("softmax"), "topk_method": st.just("group_limited_greedy")}
        | {"norm_topk_prob": st.just(False), "num_nextn_predict_layers": st.just(0)}
    ),
    "llama": st.fixed_dictionaries(_GROUPED | {"sliding_window": st.none()}),
    "mistral": st.fixed_dictionaries(_GROUPED | _bias(False) | {"mlp_bias": st.just(False), "sliding_window": _small}),
    "qwen2": st.fixed_dictionaries(
        _GROUPED | {"qkv_bias": st.just(True), "o_bias": st.just(False), "mlp_bias": st.just(False)}
    ),
}


@pytest.fixture(scope="session")
def configs() -> st.SearchStrategy[ModelConfig]:
    """A strategy that draws networks of at most a few thousand parameters."""
    return _configs()


@pytest.fixture(params=[True, False], ids=["with-instructions", "without"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A processor with and one without products in bf16, whichever runs the test."""
    monkeypatch.setattr(products, "cpu_multiplies", lambda dtype: request.param or dtype is torch.float32)
    return bool(request.param)
