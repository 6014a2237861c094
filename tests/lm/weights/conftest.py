"""Tiny networks with random weights, one of each kind of layout."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.writing import write_checkpoint

_LATENT = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
    q_lora_rank=24, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=20,
    moe_intermediate_size=40, n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2,
    n_shared_experts=1, first_k_dense_replace=1, num_nextn_predict_layers=1, initializer_range=0.1,
    bos_token_id=0, eos_token_id=(1,),
)  # fmt: skip
_GROUPED = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    kv_lora_rank=24, qk_nope_head_dim=0, qk_rope_head_dim=12, v_head_dim=12, rope_key_heads=2, kv_up_proj=False,
    latent_norm=False, initializer_range=0.1,
)  # fmt: skip

TINY = {
    "latent": _LATENT,
    "latent-no-query-rank": _LATENT.replace(q_lora_rank=None, num_nextn_predict_layers=0),
    "latent-two-mtp-tied": _LATENT.replace(num_nextn_predict_layers=2, tie_word_embeddings=True),
    "latent-many-rotary-keys": _LATENT.replace(rope_key_heads=2, qkv_bias=True, o_bias=True, latent_norm=False),
    "softmax-greedy": _LATENT.replace(
        scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False, qkv_bias=True
    ),
    "grouped": _GROUPED,
    "grouped-biased-tied": _GROUPED.replace(qkv_bias=True, tie_word_embeddings=True),
    "grouped-all-biases": _GROUPED.replace(qkv_bias=True, o_bias=True, mlp_bias=True),
    "grouped-experts": _GROUPED.replace(
        moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1,
        num_nextn_predict_layers=1,
    ),
}  # fmt: skip
"""Every layout that a checkpoint can have."""


def random_network(config: ModelConfig, seed: int = 0) -> Transformer:
    """A network in which every tensor, biases included, is random."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config, dtype=torch.float32)
    for tensor in model.state_dict().values():
        tensor.normal_(0, 0.1, generator=generator)
    return model.eval()


@pytest.fixture
def network() -> Callable[..., Transformer]:
    """Make a random network by the name of a tiny config; changes to the config may be given."""

    def make(name: str = "latent", **changes: object) -> Transformer:
        return random_network(TINY[name].replace(**changes))

    return make


@pytest.fixture
def folder(tmp_path: Path, network: Callable[..., Transformer]) -> Path:
    """A checkpoint of the network ``latent`` in float32, in several shards."""
    place = tmp_path / "model"
    write_checkpoint(network("latent"), place, precision="f32", shard_bytes=100_000)
    return place


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument ``layout_name`` runs for each tiny config."""
    if "layout_name" in metafunc.fixturenames:
        metafunc.parametrize("layout_name", TINY)
