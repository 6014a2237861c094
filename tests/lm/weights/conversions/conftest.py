"""Tiny grouped networks with random weights, and texts of random tokens with some order in them."""

import pytest
import torch
from torch import Tensor

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer


def _grouped(**changes: object) -> ModelConfig:
    config = ModelConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        rope_key_heads=2,
        qk_rope_head_dim=8,
        v_head_dim=8,
        kv_lora_rank=16,
        qk_nope_head_dim=0,
        kv_up_proj=False,
        latent_norm=False,
        tie_word_embeddings=True,
        initializer_range=0.15,
        rope_theta=100.0,
        max_position_embeddings=64,
    )
    return config.replace(**changes)


def _network(config: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def grouped() -> ModelConfig:
    """6 query heads over 2 key/value heads of 8 dimensions: 32 values cached a token and layer."""
    return _grouped()


@pytest.fixture
def network(grouped: ModelConfig) -> Transformer:
    return _network(grouped)


@pytest.fixture
def biased(grouped: ModelConfig) -> Transformer:
    """As Qwen2: biases on queries, keys and values."""
    return _network(grouped.replace(qkv_bias=True))


@pytest.fixture
def text() -> Tensor:
    """600 tokens of a walk: a token is near the one before."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-3, 4, (600,), generator=generator).cumsum(0).remainder(96)
