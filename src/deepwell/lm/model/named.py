"""Published shapes by name, and two that are small enough to test with.

    >>> from deepwell.lm.model.config import ModelConfig
    >>> ModelConfig.named("deepseek-v3").latent_width
    576

Values are those of the ``config.json`` published beside each model's weights, also where the paper says otherwise (the
V3 report initialises with 0.006 and balances with 1e-4). ``debug`` is dense, ``debug-moe`` has every part of V3: a
query rank, grouped experts, a shared expert, one module of multi-token prediction. Its widths are multiples of 32, so
that every stock format can hold it.
"""

from __future__ import annotations

from typing import Any

from deepwell.errors import ModelConfigError
from deepwell.lm.model.config import ModelConfig, RopeScaling

_V2 = ModelConfig(
    vocab_size=102400, hidden_size=5120, intermediate_size=12288, num_hidden_layers=60, num_attention_heads=128,
    q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
    moe_intermediate_size=1536, n_routed_experts=160, n_shared_experts=2, num_experts_per_tok=6,
    first_k_dense_replace=1, n_group=8, topk_group=3, topk_method="group_limited_greedy", scoring_func="softmax",
    norm_topk_prob=False, routed_scaling_factor=16.0, aux_loss_alpha=0.001, max_position_embeddings=163840,
    rope_scaling=RopeScaling(kind="yarn", factor=40, mscale=0.707, mscale_all_dim=0.707), initializer_range=0.02,
    bos_token_id=100000, eos_token_id=(100001,),
)  # fmt: skip
_V3 = _V2.replace(
    vocab_size=129280, hidden_size=7168, intermediate_size=18432, num_hidden_layers=61, moe_intermediate_size=2048,
    n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, first_k_dense_replace=3, topk_group=4,
    topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5,
    num_nextn_predict_layers=1, rope_scaling=RopeScaling(kind="yarn", factor=40, mscale=1.0, mscale_all_dim=1.0),
    bos_token_id=0, eos_token_id=(1,),
)  # fmt: skip


def _grouped(heads: int, key_heads: int, width: int, **more: Any) -> ModelConfig:
    """Grouped-query attention as a special case of the latent one: ``key_heads`` heads of ``width``."""
    return ModelConfig(
        num_attention_heads=heads, rope_key_heads=key_heads, kv_lora_rank=key_heads * width, qk_nope_head_dim=0,
        qk_rope_head_dim=width, v_head_dim=width, kv_up_proj=False, latent_norm=False, **more,
    )  # fmt: skip


_LLAMA3 = RopeScaling(
    kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)

_SHAPES = {
    "deepseek-v2-lite": _V2.replace(
        hidden_size=2048, intermediate_size=10944, num_hidden_layers=27, num_attention_heads=16, q_lora_rank=None,
        moe_intermediate_size=1408, n_routed_experts=64, n_group=1, topk_group=1, topk_method="greedy",
        routed_scaling_factor=1.0,
    ),
    "deepseek-v2": _V2,
    "deepseek-v3": _V3,
    "deepseek-r1": _V3,
    "smollm2-135m": _grouped(
        9, 3, 64, vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, rms_norm_eps=1e-5,
        rope_theta=100_000.0, max_position_embeddings=8192, tie_word_embeddings=True, initializer_range=1 / 24,
        bos_token_id=0, eos_token_id=(0,),
    ),
    "qwen2.5-0.5b": _grouped(
        14, 2, 64, vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, qkv_bias=True,
        rope_theta=1_000_000.0, max_position_embeddings=32768, tie_word_embeddings=True, initializer_range=0.02,
        bos_token_id=151643, eos_token_id=(151643,),
    ),
    "r1-distill-qwen-1.5b": _grouped(
        12, 2, 128, vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, qkv_bias=True,
        max_position_embeddings=131072, initializer_range=0.02, bos_token_id=151643, eos_token_id=(151643,),
    ),
    "r1-distill-llama-8b": _grouped(
        32, 8, 128, vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        rms_norm_eps=1e-5, rope_theta=500_000.0, rope_scaling=_LLAMA3, max_position_embeddings=131072,
        initializer_range=0.02, bos_token_id=128000, eos_token_id=(128001,),
    ),
    "debug": ModelConfig(
        vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, max_position_embeddings=512,
        initializer_range=0.02, bos_token_id=0, eos_token_id=(1,),
    ),
    "debug-moe": ModelConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        q_lora_rank=128, kv_lora_rank=64, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64,
        moe_intermediate_size=128, n_routed_experts=16, n_shared_experts=1, num_experts_per_tok=4, n_group=4,
        topk_group=2, first_k_dense_replace=1, routed_scaling_factor=2.5, num_nextn_predict_layers=1,
        max_position_embeddings=512, initializer_range=0.02, bos_token_id=0, eos_token_id=(1,),
    ),
}  # fmt: skip

NAMES = tuple(_SHAPES)


def named(name: str) -> ModelConfig:
    """The config of that name.

    Raises:
        ModelConfigError: No such name; the hint lists those there are.
    """
    if name not in _SHAPES:
        raise ModelConfigError(f"no network shape is called {name!r}", hint=f"Known are: {', '.join(NAMES)}")
    return _SHAPES[name].replace(name=name)
