"""Shapes of small attentions, and what is near enough."""

from typing import Any

import torch
from torch import Tensor

from deepwell.lm.model.config import ModelConfig


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Within a part of the largest number there is."""
    bound = tolerance * max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=bound)


def shape(kind: str, **changes: Any) -> ModelConfig:
    base = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2}
    if kind == "grouped":
        more = {
            "num_attention_heads": 6, "rope_key_heads": 2, "kv_lora_rank": 32, "v_head_dim": 16,
            "qk_rope_head_dim": 16, "qk_nope_head_dim": 0, "kv_up_proj": False, "latent_norm": False,
        }  # fmt: skip
    else:
        more = {
            "num_attention_heads": 5, "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 4, "v_head_dim": 8
        }  # fmt: skip
    return ModelConfig(**{**base, **more, **changes})
