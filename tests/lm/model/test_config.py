"""Every contradiction is an error that names both fields."""

from typing import Any

import pytest

from deepwell.errors import ModelConfigError
from deepwell.lm.model.config import DynamicGating, ModelConfig, RopeScaling, yarn_mscale

MOE = ModelConfig.named("deepseek-v3")
GROUPED = ModelConfig.named("smollm2-135m")


@pytest.mark.parametrize(
    ("start", "changes", "names"),
    [
        (MOE, {"vocab_size": 0}, ["vocab_size", "at least 1"]),
        (MOE, {"hidden_size": 64.0}, ["hidden_size", "64.0"]),
        (MOE, {"num_hidden_layers": True}, ["num_hidden_layers"]),
        (MOE, {"n_routed_experts": -1}, ["n_routed_experts", "-1"]),
        (MOE, {"q_lora_rank": 0}, ["q_lora_rank"]),
        (MOE, {"sliding_window": 0}, ["sliding_window"]),
        (MOE, {"rms_norm_eps": 0.0}, ["rms_norm_eps", "rope_theta"]),
        (MOE, {"scoring_func": "tanh"}, ["scoring_func", "tanh", "sigmoid"]),
        (MOE, {"topk_method": "best"}, ["topk_method", "best", "noaux_tc"]),
        (MOE, {"qk_rope_head_dim": 63}, ["qk_rope_head_dim", "63"]),
        (MOE, {"rope_key_heads": 3}, ["num_attention_heads", "rope_key_heads", "128", "3"]),
        (MOE, {"rope_frequencies": (1.0,), "rope_scaling": None}, ["rope_frequencies", "qk_rope_head_dim"]),
        (MOE, {"rope_frequencies": (1.0,) * 32}, ["rope_frequencies", "rope_scaling"]),
        (MOE, {"n_routed_experts": 255}, ["n_routed_experts", "n_group", "255"]),
        (MOE, {"topk_group": 9}, ["topk_group", "n_group", "9"]),
        (MOE, {"num_experts_per_tok": 129}, ["num_experts_per_tok", "topk_group", "129"]),
        (MOE, {"num_experts_per_tok": 0}, ["num_experts_per_tok", "n_routed_experts"]),
        (MOE, {"moe_intermediate_size": 0}, ["n_routed_experts", "moe_intermediate_size"]),
        (MOE, {"n_group": 256, "topk_group": 200}, ["n_group", "n_routed_experts", "two best"]),
        (MOE, {"topk_method": "greedy"}, ["topk_method", "topk_group", "greedy"]),
        (MOE, {"dynamic_gating": DynamicGating(share=0.5, maximum=200)}, ["dynamic_gating.maximum", "topk_group"]),
        (MOE, {"bos_token_id": 129_280}, ["bos_token_id", "vocab_size"]),
        (MOE, {"pad_token_id": 129_280}, ["pad_token_id", "vocab_size"]),
        (MOE, {"eos_token_id": (1, 129_280)}, ["eos_token_id", "vocab_size"]),
        (GROUPED, {"kv_lora_rank": 64}, ["kv_lora_rank", "rope_key_heads", "v_head_dim"]),
        (GROUPED, {"latent_norm": True}, ["kv_up_proj", "latent_norm"]),
        (GROUPED, {"qk_nope_head_dim": 8}, ["kv_up_proj", "qk_nope_head_dim"]),
        (GROUPED, {"q_lora_rank": 8}, ["kv_up_proj", "q_lora_rank"]),
    ],
)
def test_a_contradiction_names_its_fields(start: ModelConfig, changes: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ModelConfigError) as error:
        start.replace(**changes)
    for name in names:
        assert name in error.value.message


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RopeScaling(kind="ntk", factor=2), "ntk"),  # type: ignore[arg-type]
        (lambda: RopeScaling(kind="yarn", factor=0.5), "factor"),
        (lambda: RopeScaling(kind="yarn", factor=2, beta_fast=1, beta_slow=2), "beta_slow"),
        (lambda: RopeScaling(kind="llama3", factor=2, low_freq_factor=4), "high_freq_factor"),
        (lambda: DynamicGating(share=0), "share"),
        (lambda: DynamicGating(share=0.5, minimum=3, maximum=2), "minimum"),
    ],
)
def test_the_small_records_check_themselves(make: Any, words: str) -> None:
    with pytest.raises(ModelConfigError, match=words):
        make()


def test_layers_that_mix_experts() -> None:
    assert MOE.moe_layers == tuple(range(3, 61))
    assert MOE.is_moe_layer(61)  # its MTP module
    assert MOE.replace(moe_layer_freq=2).moe_layers == tuple(range(4, 61, 2))
    assert GROUPED.moe_layers == ()


def test_what_follows_from_the_fields() -> None:
    assert (MOE.qk_head_dim, MOE.latent_width, MOE.rope_key_width) == (192, 576, 64)
    assert GROUPED.is_grouped
    assert not MOE.is_grouped
    assert GROUPED.latent_width == 2 * 3 * 64
    assert yarn_mscale(1, 1) == 1
    assert yarn_mscale(40, 1) == pytest.approx(1.3689, abs=1e-4)


def test_an_unknown_name_lists_those_known() -> None:
    with pytest.raises(ModelConfigError, match="deepseek-v2-lite"):
        ModelConfig.named("gpt-5")
