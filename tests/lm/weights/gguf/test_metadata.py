"""A config as metadata: what llama.cpp asks for is there, what it cannot compute is refused by name."""

from typing import Any

import pytest

from deepwell.errors import ModelFormatError
from deepwell.lm.model.config import DynamicGating, ModelConfig
from deepwell.lm.weights.gguf.metadata import architecture_of, describe, token_ids

MOE = ModelConfig.named("debug-moe")
GROUPED = ModelConfig.named("smollm2-135m")


def test_deepseek2_has_every_key_that_llama_cpp_asks_for() -> None:
    fields = describe(ModelConfig.named("deepseek-v3"))
    given = {key.removeprefix("deepseek2."): value for key, value in fields.items() if key.startswith("deepseek2.")}
    assert given == {
        "attention.head_count": 128, "attention.head_count_kv": 1, "attention.key_length": 576,
        "attention.key_length_mla": 192, "attention.kv_lora_rank": 512, "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.q_lora_rank": 1536, "attention.value_length": 512, "attention.value_length_mla": 128,
        "block_count": 61, "context_length": 163840, "embedding_length": 7168, "expert_count": 256,
        "expert_feed_forward_length": 2048, "expert_gating_func": 2, "expert_group_count": 8,
        "expert_group_used_count": 4, "expert_shared_count": 1, "expert_used_count": 8, "expert_weights_norm": True,
        "expert_weights_scale": 2.5, "feed_forward_length": 18432, "leading_dense_block_count": 3,
        "rope.dimension_count": 64, "rope.freq_base": 10000.0, "rope.scaling.factor": 40.0,
        "rope.scaling.original_context_length": 4096, "rope.scaling.type": "yarn",
        "rope.scaling.yarn_log_multiplier": pytest.approx(0.1), "vocab_size": 129280,
    }  # fmt: skip


def test_a_network_without_a_query_rank_says_zero_where_llama_cpp_insists_on_a_number() -> None:
    fields = describe(MOE.replace(q_lora_rank=None))
    assert fields["deepseek2.attention.q_lora_rank"] == 0


def test_llama_cpp_is_never_told_of_groups_that_limit_nothing() -> None:
    fields = describe(MOE.replace(topk_group=4))  # it aborts where all groups are used
    assert "deepseek2.expert_group_count" not in fields


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (MOE, "deepseek2"),
        (GROUPED, "llama"),
        (ModelConfig.named("qwen2.5-0.5b"), "qwen2"),
        (ModelConfig.named("r1-distill-llama-8b"), "llama"),
        (ModelConfig.named("qwen2.5-0.5b").replace(o_bias=True), "llama"),
    ],
)
def test_each_family_has_its_architecture(config: ModelConfig, architecture: str) -> None:
    assert architecture_of(config) == architecture
    fields = describe(config)
    assert fields["general.architecture"] == architecture
    assert fields[f"{architecture}.embedding_length"] == config.hidden_size


@pytest.mark.parametrize(
    ("config", "changes", "field"),
    [
        (MOE, {"rope_key_heads": 2}, "rope_key_heads 2"),
        (MOE, {"qkv_bias": True}, "qkv_bias"),
        (MOE, {"o_bias": True}, "o_bias"),
        (MOE, {"mlp_bias": True}, "mlp_bias"),
        (MOE, {"qk_nope_head_dim": 0}, "qk_nope_head_dim"),
        (MOE, {"sliding_window": 64}, "sliding_window 64"),
        (MOE, {"dynamic_gating": DynamicGating(share=0.8, maximum=4)}, "dynamic_gating"),
        (MOE, {"weigh_experts": False}, "weigh_experts"),
        (MOE, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (MOE, {"num_hidden_layers": 27}, "q_lora_rank"),
        (MOE, {"num_hidden_layers": 513}, "num_hidden_layers"),
        (MOE, {"n_routed_experts": 2048}, "n_routed_experts"),
        (MOE, {"topk_method": "group_limited_greedy", "scoring_func": "softmax"}, "topk_method"),
        (MOE, {"rope_frequencies": tuple(0.1 for _ in range(16))}, "rope_frequencies"),
        (GROUPED, {"v_head_dim": 32, "kv_lora_rank": 96}, "v_head_dim"),
        (GROUPED, {"sliding_window": 4096}, "sliding_window 4096"),
        (GROUPED, {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}, "scoring_func"),
    ],
)
def test_what_the_format_cannot_say_names_the_field_and_what_to_do(
    config: ModelConfig, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(ModelFormatError, match=field) as raised:
        describe(config.replace(**changes))
    assert raised.value.hint


def test_a_window_as_wide_as_the_context_changes_nothing_and_is_kept() -> None:
    assert describe(GROUPED.replace(sliding_window=8192))["llama.attention.sliding_window"] == 8192


def test_token_ids_come_from_the_config_where_there_is_no_tokenizer() -> None:
    assert token_ids(MOE) == {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1}
    assert token_ids(MOE.replace(bos_token_id=None, eos_token_id=())) == {}
