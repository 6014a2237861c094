"""Counts against the network itself, and against published figures."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.lm.model.accounting import PARTS, Account, Weight, weights_of
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.named import named
from deepwell.lm.model.transformer import Transformer


@settings(max_examples=100)
@given(data=st.data())
def test_names_and_shapes_are_those_of_the_network(
    configs: st.SearchStrategy[ModelConfig], data: st.DataObject
) -> None:
    config = data.draw(configs)
    real = {name: tuple(one.shape) for name, one in Transformer(config, device="meta").named_parameters()}
    assert {weight.name: weight.shape for weight in weights_of(config)} == real


@pytest.mark.parametrize(
    ("name", "parameters", "active", "cache"),
    [
        ("deepseek-v3", 671.0e9, 36.6e9, 70_272),
        ("deepseek-v2", 236e9, 21e9, 69_120),
        ("deepseek-v2-lite", 15.7e9, 2.4e9, 31_104),
        ("smollm2-135m", 134.5e6, 134.5e6, 23_040),
        ("qwen2.5-0.5b", 0.494e9, 0.494e9, 12_288),
        ("r1-distill-qwen-1.5b", 1.78e9, 1.54e9, 28_672),
        ("r1-distill-llama-8b", 8.03e9, 7.50e9, 131_072),
    ],
)
def test_published_models_count_what_they_publish(name: str, parameters: float, active: float, cache: int) -> None:
    account = Account.of(named(name))
    assert account.parameters == pytest.approx(parameters, rel=0.003)
    # The others' published active counts have two figures, and some count the embedding.
    assert account.active_parameters == pytest.approx(active, rel=0.002 if name == "deepseek-v3" else 0.035)
    assert account.cache_bytes_per_token == cache


def test_v3_is_within_two_thousandths_of_the_issue() -> None:
    account = Account.of(named("deepseek-v3"))
    assert account.parameters == pytest.approx(671.0e9, rel=0.002)
    assert account.plain_cache_bytes_per_token == 3_997_696
    assert account.grouped_cache_bytes_per_token is None


def test_the_fp8_file_of_v3_has_the_published_size_to_the_byte() -> None:
    config = named("deepseek-v3")
    stored = sum(Account.of(config, precision="fp8").bytes_by_part.values())
    # In the file and no weights of ours: the MTP layer's copies of embedding and head, and the routers' biases.
    copies = 2 * config.vocab_size * config.hidden_size * 2
    biases = (58 + 1) * 256 * 4
    assert stored + copies + biases == 688_574_839_360


def test_parts_and_layers_add_up() -> None:
    config = named("debug-moe")
    account = Account.of(config)
    assert sum(account.by_part.values()) == account.parameters + account.mtp_parameters
    assert set(account.by_part) == set(PARTS)
    assert sum(layer.parameters for layer in account.layers[: config.num_hidden_layers]) == account.parameters - (
        account.by_part["embedding"] + account.by_part["head"] + config.hidden_size
    )
    assert account.layers[-1].parameters == account.mtp_parameters
    assert [layer.kind for layer in account.layers] == ["dense", "experts", "experts", "experts", "mtp"]
    assert account.layers[0].active == account.layers[0].parameters


def test_active_counts_the_experts_that_a_token_takes() -> None:
    config = named("debug-moe").replace(num_nextn_predict_layers=0)
    account = Account.of(config)
    idle = 3 * (16 - 4) * 3 * config.moe_intermediate_size * config.hidden_size
    assert account.active_parameters == account.parameters - idle - config.vocab_size * config.hidden_size


def test_a_tied_embedding_is_the_head_and_active() -> None:
    account = Account.of(named("smollm2-135m"))
    assert account.active_parameters == account.parameters
    assert "head" not in account.by_part


def test_grouped_attention_caches_what_it_would_anyway() -> None:
    account = Account.of(named("smollm2-135m"))
    assert account.grouped_cache_bytes_per_token == account.cache_bytes_per_token
    assert account.plain_cache_bytes_per_token == 3 * account.cache_bytes_per_token


def test_flops_grow_with_the_context_up_to_the_window() -> None:
    config = named("debug")
    short, long = Account.of(config, context=1), Account.of(config, context=1001)
    assert long.flops_per_token - short.flops_per_token == 1000 * 2 * 2 * 4 * (48 + 32)
    assert short.flops_per_token == 2 * short.active_parameters + short.attention_flops_per_token
    windowed = config.replace(sliding_window=10)
    assert Account.of(windowed, context=1001).attention_flops_per_token == 10 * short.attention_flops_per_token


def test_bytes_of_one_weight() -> None:
    partial = Weight("layers.0.self_attn.kv_a_proj_with_mqa.weight", (576, 7168), "attention", 0)
    assert partial.stored_bytes("fp8") == 576 * 7168 + 4 * 5 * 56
    assert partial.stored_bytes("f32") == 2 * partial.stored_bytes("f16") == 4 * partial.size
    stacked = Weight("layers.3.mlp.experts.gate_up_proj", (256, 4096, 7168), "routed experts", 3, 8 / 256)
    assert stacked.stored_bytes("fp8") == stacked.size + 4 * 256 * 2 * 16 * 56
    assert not Weight("mtp.0.eh_proj.weight", (8, 16), PARTS[-1]).is_projection
