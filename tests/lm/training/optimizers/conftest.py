"""A small network with every kind of parameter, and gradients for it."""

from collections.abc import Callable

import pytest
import torch

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer

Fill = Callable[[torch.nn.Module, int], None]


@pytest.fixture
def model() -> Transformer:
    """Two layers of four experts, one dense layer, one module of multi-token prediction; 60 thousand values."""
    config = ModelConfig.named("debug-moe").replace(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, q_lora_rank=16, kv_lora_rank=16,
        qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, moe_intermediate_size=16, n_routed_experts=8,
        n_group=2, topk_group=1, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return Transformer(config)


@pytest.fixture
def fill() -> Fill:
    """Gives every parameter that takes one the random gradient of this number."""

    def give(network: torch.nn.Module, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in network.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.1
            if parameter.requires_grad:
                parameter.grad = drawn.to(parameter.dtype)

    return give
