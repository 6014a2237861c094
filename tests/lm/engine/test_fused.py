"""Fused layers: the network's own weights, seen from another side."""

import pytest
import torch

from deepwell.lm.engine.fused import FusedLayer
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer

GROUPED = ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, kv_lora_rank=16,
    qk_nope_head_dim=0, qk_rope_head_dim=8, v_head_dim=8, rope_key_heads=2, kv_up_proj=False, latent_norm=False,
    qkv_bias=True, mlp_bias=True, initializer_range=0.1,
)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("config", [GROUPED, ModelConfig.named("debug"), ModelConfig.named("debug-moe")])
def test_queries_and_rows_are_those_of_the_layer(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(config, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    block = model.layers[0]
    layer = FusedLayer(block, config)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    x = torch.randn(5, config.hidden_size, dtype=torch.float64)
    cos, sin = model.rope(torch.arange(5), 5)
    rows, without, turned = layer.into(x, torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None])
    normed = block.input_layernorm(x[None])
    wanted_without, wanted_turned = block.self_attn.queries(normed, cos[None], sin[None])
    assert torch.allclose(rows, block.self_attn.rows(normed, cos[None], sin[None])[0])
    assert torch.allclose(without, wanted_without[0])
    assert torch.allclose(turned, wanted_turned[0])
    attended = torch.randn(5, config.num_attention_heads * config.v_head_dim, dtype=torch.float64)
    middle = x + block.self_attn.o_proj(attended)
    out = block.mlp(block.post_attention_layernorm(middle[None]))
    out = out[0] if isinstance(out, tuple) else out
    assert torch.allclose(layer.out_of(x, attended), middle + out[0])


@torch.no_grad()
def test_weights_that_change_later_change_here_and_fusing_again_takes_no_memory() -> None:
    model = Transformer(GROUPED, dtype=torch.float64)
    block = model.layers[0]
    one = FusedLayer(block, GROUPED)
    where = block.self_attn.q_proj.weight.data_ptr()
    other = FusedLayer(block, GROUPED)
    assert block.self_attn.q_proj.weight.data_ptr() == where
    x, angle = torch.randn(1, 32, dtype=torch.float64), torch.ones(1, 1, 8)
    block.self_attn.q_proj.weight.zero_()
    block.self_attn.q_proj.bias.fill_(2.0)
    for layer in (one, other):
        assert torch.equal(layer.into(x, angle, 0 * angle)[2], torch.full((1, 4, 8), 2.0, dtype=torch.float64))
