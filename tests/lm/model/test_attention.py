"""Both forms of attention, the cache, and what a token may see."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.errors import UsageError
from deepwell.lm.model.cache import LatentCache
from deepwell.lm.model.config import ModelConfig, RopeScaling
from deepwell.lm.model.transformer import Transformer

_BASE: dict[str, Any] = {
    "vocab_size": 31, "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2, "initializer_range": 0.3,
}  # fmt: skip


@st.composite
def attentions(draw: Any) -> ModelConfig:
    """Every combination of the attention's switches."""
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    width = draw(st.integers(1, 6))
    content = _BASE | {
        "num_attention_heads": groups * per_group,
        "rope_key_heads": groups,
        "qk_rope_head_dim": draw(st.sampled_from([2, 4, 8])),
        "v_head_dim": width,
        "qkv_bias": draw(st.booleans()),
        "o_bias": draw(st.booleans()),
        "sliding_window": draw(st.sampled_from([None, None, 1, 5])),
        "rope_scaling": draw(st.sampled_from([None, RopeScaling(kind="yarn", factor=8, mscale=1, mscale_all_dim=1)])),
    }
    if draw(st.booleans()):
        return ModelConfig(
            **content, kv_up_proj=False, latent_norm=False, qk_nope_head_dim=0, kv_lora_rank=groups * width
        )
    return ModelConfig(
        **content,
        kv_lora_rank=draw(st.integers(1, 12)),
        qk_nope_head_dim=draw(st.integers(0, 6)),
        q_lora_rank=draw(st.sampled_from([None, 5])),
        latent_norm=draw(st.booleans()),
    )


def network(config: ModelConfig, dtype: torch.dtype) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, float("norm" in name), 0.3)
    return model


@settings(max_examples=60, deadline=None)
@given(attentions())
def test_absorbed_equals_decompressed(config: ModelConfig) -> None:
    model = network(config, torch.float64)
    tokens = torch.randint(0, config.vocab_size, (2, 9))
    with torch.no_grad():
        absorbed, decompressed = model(tokens, form="absorbed"), model(tokens, form="decompressed")
    assert (absorbed - decompressed).abs().max() < 1e-10
    assert absorbed.abs().max() > 1e-3


@settings(max_examples=40, deadline=None)
@given(
    attentions(),
    st.lists(st.integers(1, 4), min_size=1, max_size=6),
    st.sampled_from([None, "absorbed", "decompressed"]),
)
def test_a_cached_decode_equals_a_full_forward_at_every_position(
    config: ModelConfig, steps: list[int], form: Any
) -> None:
    model = network(config, torch.float32)
    tokens = torch.randint(0, config.vocab_size, (2, sum(steps)))
    cache = LatentCache(config, batch=2, capacity=sum(steps), dtype=torch.float32)
    with torch.no_grad():
        expected = model(tokens)
        pieces = [model(part, cache=cache, form=form) for part in tokens.split(steps, dim=1)]
    assert cache.length == sum(steps)
    assert (torch.cat(pieces, 1) - expected).abs().max() < 1e-4


def test_the_cheaper_form_is_absorbed_for_one_query_and_decompressed_for_many() -> None:
    attention = (
        Transformer(ModelConfig.named("deepseek-v3").replace(num_hidden_layers=1), device="meta").layers[0].self_attn
    )
    assert attention._absorbing_is_cheaper(1, 4096)
    assert not attention._absorbing_is_cheaper(4096, 4096)


def test_the_cache_holds_one_latent_row_a_token_and_layer_and_nothing_else() -> None:
    config = ModelConfig.named("deepseek-v3")
    cache = LatentCache(config.replace(num_hidden_layers=2), batch=3, capacity=5)
    assert cache.rows.shape == (2, 3, 5, 512 + 64)
    assert cache.bytes_per_token * 61 / 2 == config.cache_bytes_per_token() == 70_272
    grouped = ModelConfig.named("smollm2-135m")
    assert grouped.cache_bytes_per_token() == 30 * 2 * 3 * 64 * 2  # layers, keys and values, heads, width, bytes


def test_a_full_cache_and_another_batch_are_errors() -> None:
    config = ModelConfig.named("debug")
    model = Transformer(config).eval()
    cache = LatentCache(config, batch=1, capacity=4, dtype=torch.float32)
    model(torch.zeros(1, 3, dtype=torch.int64), cache=cache)
    with pytest.raises(UsageError, match="holds 4 tokens; 3 are in it and 2 more came"):
        model(torch.zeros(1, 2, dtype=torch.int64), cache=cache)
    with pytest.raises(UsageError, match="holds 1 sequences, and 2 came"):
        model(torch.zeros(2, 1, dtype=torch.int64), cache=cache)
    with pytest.raises(UsageError, match="cannot be cut to 5"):
        cache.truncate(5)


def test_a_truncated_cache_goes_on_as_if_the_rest_had_never_been() -> None:
    config = ModelConfig.named("debug-moe")
    model = Transformer(config, dtype=torch.float64).eval()
    tokens = torch.randint(0, config.vocab_size, (1, 6))
    cache = LatentCache(config, batch=1, capacity=8, dtype=torch.float64)
    with torch.no_grad():
        model(tokens, cache=cache)
        cache.truncate(3)
        again = model(tokens[:, 3:], cache=cache)
        assert torch.allclose(again, model(tokens)[:, 3:], atol=1e-12)


def test_packed_documents_are_as_if_alone() -> None:
    config = ModelConfig.named("debug-moe").replace(sliding_window=3, initializer_range=0.1)
    model = Transformer(config, dtype=torch.float64).eval()
    tokens = torch.randint(0, config.vocab_size, (1, 11))
    documents = torch.tensor([[7] * 4 + [2] * 1 + [9] * 6])
    with torch.no_grad():
        packed = model(tokens, documents=documents)
        alone = torch.cat([model(part) for part in tokens.split([4, 1, 6], dim=1)], 1)
    assert torch.allclose(packed, alone, atol=1e-12)
    assert not torch.allclose(packed, model(tokens), atol=1e-3)


def test_documents_do_not_go_with_a_cache() -> None:
    config = ModelConfig.named("debug")
    cache = LatentCache(config, batch=1, capacity=4, dtype=torch.float32)
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(UsageError, match="without a cache"):
        Transformer(config)(tokens, cache=cache, documents=tokens)


def test_a_window_hides_what_is_further_back() -> None:
    config = ModelConfig.named("debug").replace(sliding_window=4, num_hidden_layers=1)
    model = Transformer(config, dtype=torch.float64).eval()
    tokens = torch.randint(1, config.vocab_size, (1, 8))
    other = tokens.clone()
    other[0, 2] = 0
    with torch.no_grad():
        moved = (model(tokens) - model(other)).abs().amax(-1)[0] > 1e-9
    assert moved.tolist() == [False, False, True, True, True, True, False, False]


def test_tokens_do_not_see_ahead() -> None:
    config = ModelConfig.named("debug-moe")
    model = Transformer(config, dtype=torch.float64).eval()
    tokens = torch.randint(1, config.vocab_size, (1, 8))
    other = tokens.clone()
    other[0, 5:] = 0
    with torch.no_grad():
        assert torch.allclose(model(tokens)[:, :5], model(other)[:, :5], atol=1e-12)
        assert torch.allclose(model(tokens, form="absorbed")[:, :5], model(other, form="absorbed")[:, :5], atol=1e-12)
