"""What a run costs: operations counted by hand, with and without weights that do not learn."""

import pytest
import torch

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training.cost import active_parameters, measured_peak, state_bytes, training_flops
from deepwell.lm.training.esft import restrict
from deepwell.lm.training.recipe import OptimizerSection
from deepwell.lm.weights.lora import LoraConfig, add_lora

LENGTH = 64


def model(name: str) -> Transformer:
    return Transformer(ModelConfig.named(name), device="meta", dtype=torch.float32)


def attention(config: ModelConfig) -> int:
    """Forward and backward over half a row, of the layers and the MTP modules."""
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    return 3 * 2 * layers * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim) * (LENGTH // 2)


def test_six_for_each_active_parameter_and_token() -> None:
    config = ModelConfig.named("debug")
    assert config.num_nextn_predict_layers == 0
    assert training_flops(config, LENGTH) == 6 * active_parameters(config) + attention(config)


@pytest.mark.parametrize("name", ["debug", "debug-moe"])
def test_where_all_learns_the_network_itself_says_the_same(name: str) -> None:
    network = model(name)
    assert training_flops(network.config, LENGTH, model=network) == training_flops(network.config, LENGTH)


def test_frozen_matrices_take_two_products_and_an_adapter_three_of_its_own() -> None:
    network = model("debug")
    add_lora(network, LoraConfig(rank=2, alpha=4, targets=("o_proj",)))
    adapter = sum(value.numel() for name, value in network.named_parameters() if "lora_" in name)
    assert adapter == 2 * sum(sum(layer.self_attn.o_proj.base_weight.shape) for layer in network.layers)
    expected = 4 * active_parameters(network.config) + 6 * adapter + attention(network.config)
    assert training_flops(network.config, LENGTH, model=network) == pytest.approx(expected, rel=1e-12)


def test_of_a_mixture_only_the_stacks_that_learn_have_gradients() -> None:
    network = model("debug-moe")
    config = network.config
    restrict(network, {0: [1]})
    share = config.num_experts_per_tok / config.n_routed_experts
    (first, *_) = [module for name, module in network.named_modules() if name.endswith("mlp.experts")]
    learning = share * sum(parameter.numel() for parameter in first.parameters())
    all_learns = training_flops(config, LENGTH)
    forward = (all_learns - attention(config)) / 3
    expected = 2 * forward + 2 * learning + attention(config)
    assert training_flops(config, LENGTH, model=network) == pytest.approx(expected, rel=1e-9)


def test_the_state_has_gradients_and_moments_of_what_learns_alone() -> None:
    network = model("debug")
    section = OptimizerSection(moments="f32")
    size = sum(parameter.numel() for parameter in network.parameters())
    assert state_bytes(network.parameters(), section) == 16 * size
    network.requires_grad_(False)
    assert state_bytes(network.parameters(), section) == 4 * size


def test_timing_the_machine_draws_nothing_from_the_run() -> None:
    before = torch.get_rng_state()
    assert measured_peak(torch.float32, torch.device("cpu")) > 1e9
    assert torch.equal(torch.get_rng_state(), before)
