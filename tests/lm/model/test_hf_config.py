"""``config.json`` files: published ones, every one we write, what transformers makes of them, and bad ones."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.errors import ModelConfigError
from deepwell.lm.model.config import ModelConfig, RopeScaling
from deepwell.lm.model.hf_config import read, write
from deepwell.lm.model.hf_fields import Fields
from deepwell.lm.model.hf_rope import read_rope, write_rope
from deepwell.lm.model.named import NAMES, named

YARN = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "bos_token_id": 0, "eos_token_id": 1,
    "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "pretraining_tp": 1, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, "routed_scaling_factor": 2.5, "seq_aux": True,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"},
    "scoring_func": "sigmoid", "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip
V2_LITE = V3 | {
    "model_type": "deepseek_v2", "bos_token_id": 100000, "eos_token_id": 100001, "first_k_dense_replace": 1,
    "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_group": 1, "topk_group": 1,
    "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 16,
    "num_key_value_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27, "q_lora_rank": None,
    "rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}, "routed_scaling_factor": 1.0,
    "scoring_func": "softmax", "topk_method": "greedy", "vocab_size": 102400, "num_nextn_predict_layers": 0,
}  # fmt: skip
SMOLLM2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 0, "eos_token_id": 0,
    "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664, "intermediate_size": 1536,
    "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-05,
    "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "vocab_size": 49152,
}  # fmt: skip
R1_LLAMA = SMOLLM2 | {
    "bos_token_id": 128000, "eos_token_id": 128001, "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
}  # fmt: skip
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
    "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
    "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
MISTRAL = SMOLLM2 | {"model_type": "mistral", "sliding_window": 4096}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (V3, "deepseek-v3"),
        (V2_LITE, "deepseek-v2-lite"),
        (SMOLLM2, "smollm2-135m"),
        (R1_LLAMA, "r1-distill-llama-8b"),
        (QWEN, "qwen2.5-0.5b"),
    ],
)
def test_a_published_file_is_the_named_shape(content: dict[str, Any], name: str) -> None:
    assert ModelConfig.from_hf(content) == named(name).replace(name="")


@pytest.mark.parametrize("name", NAMES)
def test_a_named_shape_is_written_as_a_stock_type(name: str) -> None:
    kind = named(name).to_hf()["model_type"]
    expected = {"smollm2-135m": "llama", "r1-distill-llama-8b": "llama", "deepseek-v2-lite": "deepseek_v2"}
    expected |= {"deepseek-v2": "deepseek_v2", "qwen2.5-0.5b": "qwen2", "r1-distill-qwen-1.5b": "qwen2"}
    assert kind == expected.get(name, "deepseek_v3")


@settings(max_examples=200)
@given(data=st.data())
def test_every_config_comes_back_from_its_json(configs: st.SearchStrategy[ModelConfig], data: st.DataObject) -> None:
    config = data.draw(configs)
    assert read(json.loads(json.dumps(write(config), allow_nan=False))) == config


@settings(max_examples=100)
@given(data=st.data())
def test_transformers_reads_what_we_write_and_we_read_what_it_writes(
    configs: st.SearchStrategy[ModelConfig], data: st.DataObject
) -> None:
    from transformers import AutoConfig

    config = data.draw(configs)
    written = write(config)
    kind = written.pop("model_type")
    if kind == "deepwell":
        return
    theirs = AutoConfig.for_model(kind, **json.loads(json.dumps(written)))
    assert read(json.loads(theirs.to_json_string(use_diff=True))) == config
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.head_dim == config.qk_rope_head_dim
    if kind.startswith("deepseek"):
        experts = [layer for layer in range(config.num_hidden_layers) if layer >= theirs.first_k_dense_replace]
        assert tuple(experts) == config.moe_layers
    else:
        assert getattr(theirs, "sliding_window", None) == config.sliding_window
        assert theirs.num_key_value_heads == config.rope_key_heads


def test_transformers_keeps_the_depth_of_prediction_at_none() -> None:
    from transformers import DeepseekV3Config

    written = named("debug-moe").replace(num_nextn_predict_layers=0).to_hf()
    assert (
        DeepseekV3Config(**{name: value for name, value in written.items() if name != "model_type"}).num_mtp_layers == 0
    )


def test_what_no_stock_type_says_is_written_as_our_own() -> None:
    moe = named("debug-moe")
    for change in (
        {"moe_layer_freq": 2}, {"latent_norm": False}, {"rope_key_heads": 2}, {"qkv_bias": True}, {"mlp_bias": True},
        {"sliding_window": 8}, {"scoring_func": "softmax"}, {"weigh_experts": False},
        {"rope_frequencies": (0.5,) * 16},
    ):  # fmt: skip
        written = moe.replace(**change).to_hf()
        assert written["model_type"] == "deepwell", change
        assert ModelConfig.from_hf(written) == moe.replace(**change)


def test_v2_is_not_written_where_transformers_would_pass_over_its_fields() -> None:
    v2 = named("deepseek-v2-lite")
    assert v2.replace(norm_topk_prob=True).to_hf()["model_type"] == "deepwell"
    assert v2.replace(num_nextn_predict_layers=1).to_hf()["model_type"] == "deepwell"


def test_rope_is_read_in_both_spellings_and_written_in_the_older() -> None:
    newer = {name: value for name, value in V3.items() if name not in {"rope_theta", "rope_scaling"}}
    newer["rope_parameters"] = {**V3["rope_scaling"], "rope_theta": 10000.0, "rope_type": "yarn"}
    assert read(newer) == read(V3) == read(V3 | {"rope_parameters": newer["rope_parameters"]})
    assert "rope_parameters" not in write(read(newer))
    assert write_rope(read(newer))["rope_scaling"]["type"] == "yarn"
    theta, scaling = read_rope(Fields(newer, where="config.json"), 163840)
    assert theta == 10000 and scaling == named("deepseek-v3").rope_scaling


def test_yarn_without_its_start_starts_at_the_context_of_the_file() -> None:
    scaling = read(QWEN | {"rope_scaling": {"type": "yarn", "factor": 4.0}}).rope_scaling
    assert scaling == RopeScaling(kind="yarn", factor=4.0, original_max_position_embeddings=32768)


def test_biases_stand_where_each_type_has_them() -> None:
    def biases(content: dict[str, Any]) -> tuple[bool, bool, bool]:
        c = read(content)
        return c.qkv_bias, c.o_bias, c.mlp_bias

    assert biases(QWEN | {"attention_bias": False}) == (True, False, False)
    assert biases(SMOLLM2 | {"attention_bias": True, "mlp_bias": True}) == (True, True, True)
    assert biases(V3 | {"attention_bias": True}) == (True, True, False)


def test_a_sliding_window_of_mistral_is_4096_where_absent_and_none_where_null() -> None:
    absent = {name: value for name, value in MISTRAL.items() if name != "sliding_window"}
    assert read(absent).sliding_window == 4096
    assert read(MISTRAL | {"sliding_window": None}).sliding_window is None
    assert read(QWEN | {"use_sliding_window": True, "max_window_layers": 0}).sliding_window == 32768
    assert read(QWEN | {"use_sliding_window": True}).sliding_window is None  # begins after the last layer


def test_a_head_is_as_wide_as_the_file_says_or_the_width_by_the_heads() -> None:
    assert read(SMOLLM2).v_head_dim == 64
    assert read(SMOLLM2 | {"head_dim": 32}).v_head_dim == 32


def test_ends_may_be_several() -> None:
    assert read(SMOLLM2 | {"eos_token_id": [0, 2]}).eos_token_id == (0, 2)
    assert write(read(SMOLLM2 | {"eos_token_id": [0, 2]}))["eos_token_id"] == [0, 2]
    assert write(read(SMOLLM2 | {"eos_token_id": None}))["eos_token_id"] is None


LATENT_OWN = write(named("debug").replace(latent_norm=False))
BAD: list[tuple[dict[str, Any], str]] = [
    (V3 | {"model_type": "deepseek_v32"}, "model_type is 'deepseek_v32'; known are deepseek_v2, deepseek_v3, deepwell"),
    (V3 | {"model_type": None}, "model_type is missing"),
    (V3 | {"hidden_size": None}, "hidden_size is missing"),
    (V3 | {"hidden_size": "7168"}, "hidden_size is '7168'; it is a whole number"),
    (V3 | {"hidden_size": True}, "hidden_size is True"),
    (V3 | {"rms_norm_eps": "small"}, "rms_norm_eps is 'small'; it is a number"),
    (V3 | {"norm_topk_prob": 1}, "norm_topk_prob is 1; it is true or false"),
    (V3 | {"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    (V3 | {"eos_token_id": [1, 200000]}, "eos_token_id .* and vocab_size"),
    (V3 | {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    (V3 | {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
    (V3 | {"topk_method": "greedy"}, "topk_method is 'greedy'"),
    (V3 | {"num_key_value_heads": 8}, r"num_key_value_heads \(8\) and num_attention_heads \(128\)"),
    (V3 | {"qk_head_dim": 128}, "qk_head_dim is 128; .* make 192"),
    (V3 | {"rope_interleave": False}, "rope_interleave is False"),
    (V3 | {"n_group": 7}, r"n_routed_experts \(256\) and n_group \(7\)"),
    (V3 | {"n_group": None}, "n_group is missing"),
    (V3 | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type is 'dynamic'"),
    (V3 | {"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type is 'longrope'"),
    (V3 | {"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor is missing"),
    (V3 | {"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2}}, "rope_type .* and type"),
    (V3 | {"rope_scaling": YARN | {"truncate": False}}, "rope_scaling.truncate is False"),
    (V3 | {"rope_scaling": 4.0}, "rope_scaling is 4.0; it is a JSON object"),
    (V3 | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000}}, "rope_scaling .* and rope_parameters"),
    (V3 | {"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": None}, "rope_theta .* not the same everywhere"),
    (SMOLLM2 | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (SMOLLM2 | {"num_key_value_heads": 2}, r"num_attention_heads \(9\) and num_key_value_heads \(2\)"),
    (SMOLLM2 | {"hidden_size": 577}, r"hidden_size \(577\) and num_attention_heads \(9\)"),
    (SMOLLM2 | {"num_attention_heads": 0}, "num_attention_heads is 0"),
    (SMOLLM2 | {"head_dim": 33}, "head_dim is 33"),
    (QWEN | {"use_sliding_window": True, "max_window_layers": 12}, "max_window_layers is 12"),
    (QWEN | {"layer_types": ["full_attention"] * 23 + ["sliding_attention"]}, "layer_types is .* some layers"),
    (QWEN | {"layer_types": ["full_attention"]}, "layer_types .* and num_hidden_layers"),
    (QWEN | {"layer_types": [["full_attention"]]}, "layer_types is .*; it is a list of"),
    (QWEN | {"layer_types": "full_attention"}, "layer_types is 'full_attention'; it is a list"),
    (QWEN | {"num_key_value_heads": None}, "num_key_value_heads is missing"),
    (V2_LITE | {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'"),
    (V2_LITE | {"attention_bias": True}, r"attention_bias \(True\) and q_lora_rank \(None\)"),
    (V2_LITE | {"norm_topk_prob": True, "routed_scaling_factor": 2.0}, "norm_topk_prob .* and routed_scaling_factor"),
    (LATENT_OWN | {"latent_norms": True}, "latent_norms is True; no field"),
    (LATENT_OWN | {"v_head_dim": None}, "v_head_dim is missing"),
    (LATENT_OWN | {"rope_scaling": {"kind": "yarn"}}, "rope_scaling.factor is missing"),
    (LATENT_OWN | {"rope_frequencies": [1.0, "x"]}, "rope_frequencies is"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD)
def test_a_bad_file_is_told_where_and_what(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError, match=message) as error:
        read(content, where="models/x/config.json")
    assert error.value.message.startswith("models/x/config.json: ")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "factor", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(max_examples=200)
@given(data=st.data())
def test_no_content_of_a_file_is_anything_but_a_config_or_an_error_of_one(data: st.DataObject) -> None:
    content = data.draw(st.sampled_from([V3, V2_LITE, SMOLLM2, R1_LLAMA, QWEN, MISTRAL, LATENT_OWN]))
    for name in data.draw(
        st.lists(st.sampled_from([*content, "head_dim", "rope_parameters", "layer_types"]), max_size=3)
    ):
        content = content | {name: data.draw(_JSON)}
    try:
        config = read(content)
    except ModelConfigError as error:
        assert error.message.startswith("config.json: ")
    else:
        assert read(write(config)) == config


def test_a_missing_query_rank_is_not_the_same_as_none() -> None:
    with pytest.raises(ModelConfigError, match="q_lora_rank is missing"):
        read({name: value for name, value in V3.items() if name != "q_lora_rank"})


@pytest.mark.parametrize("content", [[], None, "deepseek_v3"])
def test_what_is_no_object_is_an_error(content: Any) -> None:
    with pytest.raises(ModelConfigError, match="it is a JSON object"):
        read(content)


def test_every_field_of_our_own_type_is_read() -> None:
    """A field that is added to ModelConfig with a new kind of annotation must be taught to the reader."""
    config = named("debug-moe").replace(latent_norm=False)
    own = write(config)
    for field in dataclasses.fields(ModelConfig):
        if isinstance(own[field.name], bool):
            with pytest.raises(ModelConfigError, match=field.name):
                read(own | {field.name: "x"})
        elif field.name not in {"name", "rope_scaling", "dynamic_gating"}:
            with pytest.raises(ModelConfigError, match=field.name):
                read(own | {field.name: {"x": 1}})


def test_a_file_written_by_transformers_is_read(tmp_path: Path) -> None:
    from transformers import Qwen2Config

    Qwen2Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2).save_pretrained(
        tmp_path
    )
    content = json.loads((tmp_path / "config.json").read_text())
    assert "layer_types" in content and "rope_parameters" in content
    config = read(content)
    assert (config.v_head_dim, config.rope_key_heads, config.sliding_window) == (16, 2, None)
