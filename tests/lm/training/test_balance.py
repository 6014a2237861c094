from pathlib import Path

import pytest
import torch

import deepwell.lm
from deepwell.errors import UsageError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training.balance import shares, update_biases
from deepwell.lm.training.figures import imbalance
from deepwell.lm.weights.tokenizer import Tokenizer

CONFIG = ModelConfig.named("debug-moe").replace(
    vocab_size=512, hidden_size=32, intermediate_size=32, num_hidden_layers=2, q_lora_rank=32, kv_lora_rank=32,
    qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32, moe_intermediate_size=32, n_routed_experts=8,
    n_group=1, topk_group=1, num_experts_per_tok=2,
)  # fmt: skip


def test_biases_move_against_the_load() -> None:
    model = Transformer(CONFIG)
    loads = torch.tensor([[4, 0, 2, 2, 2, 2, 2, 2], [16, 0, 0, 0, 0, 0, 0, 0]])
    update_biases(model, loads, 0.001)
    update_biases(model, loads, 0.002)
    first, second = (gate.e_score_correction_bias for gate in model.gates())
    assert first.dtype is torch.float32
    assert first.tolist() == pytest.approx([-0.003, 0.003, 0, 0, 0, 0, 0, 0])
    assert second.tolist() == pytest.approx([-0.003, *[0.003] * 7])
    before = second.clone()
    update_biases(model, loads, 0.0)
    assert torch.equal(second, before)


def test_large_counts_are_told_apart() -> None:
    model = Transformer(CONFIG)
    loads = torch.full((2, 8), 2**40)
    loads[0, 0] += 1
    update_biases(model, loads, 1.0)
    assert model.gates()[0].e_score_correction_bias.tolist() == [-1, *[1] * 7]
    assert not model.gates()[1].e_score_correction_bias.any()


def test_gates_without_a_bias_are_passed_over() -> None:
    model = Transformer(CONFIG.replace(topk_method="greedy", scoring_func="softmax"))
    update_biases(model, torch.ones(2, 8), 0.1)
    update_biases(Transformer(ModelConfig.named("debug")), torch.zeros(0, 0), 0.1)


@pytest.mark.parametrize("shape", [(1, 8), (2, 7), (0, 0), (8,)])
def test_loads_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"need \[2, 8\]"):
        update_biases(Transformer(CONFIG), torch.zeros(shape), 0.0)


def test_a_skewed_router_becomes_even_by_its_bias_alone() -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG).train()
    gate = model.gates()[0]
    x = torch.randn(1, 2000, 32) + 1.0
    with torch.no_grad():
        gate.weight.normal_(0, 0.05)
        gate.weight[:2] += 0.1  # two experts that nearly all tokens like best
    weight = gate.weight.clone()
    scores = (x.flatten(0, 1) @ gate.weight.T).sigmoid()

    def loads() -> torch.Tensor:
        model.reset_expert_loads()
        gate(x)
        return model.expert_loads()

    at_first = imbalance(loads()[0].tolist())
    assert at_first > 3
    for step in range(250):
        update_biases(model, loads(), 0.01 if step < 100 else 0.001)
    assert imbalance(loads()[0].tolist()) < 1.3
    assert torch.equal(gate.weight, weight)
    routing = gate(x)
    taken = scores.gather(1, routing.experts)  # what weighs are the scores without the bias
    expected = taken / taken.sum(-1, keepdim=True) * CONFIG.routed_scaling_factor
    assert torch.allclose(routing.weights, expected, atol=1e-5)
    assert not torch.equal(routing.experts.sort(-1).values, scores.topk(2).indices.sort(-1).values)


def test_evaluation_counts_and_moves_nothing() -> None:
    model = Transformer(CONFIG)
    tokens = torch.randint(512, (1, 16))
    model.eval()
    model.loss(tokens)
    model.train()
    with torch.no_grad():
        model.loss(tokens)
    assert not model.expert_loads().any()
    update_biases(model, model.expert_loads(), 0.1)
    assert not any(gate.e_score_correction_bias.any() for gate in model.gates())
    model.loss(tokens)
    assert model.expert_loads().sum(-1).tolist() == [16 * 2, 15 * 2]


def test_biases_are_saved_with_the_weights(tmp_path: Path, deepseek: Tokenizer) -> None:
    model = Transformer(CONFIG.replace(vocab_size=max(512, deepseek.vocab_size)))
    update_biases(model, torch.arange(16).view(2, 8), 0.00123)
    deepwell.lm.save(model, tmp_path / "model", precision="f32", tokenizer=deepseek)
    loaded, _ = deepwell.lm.load(tmp_path / "model", dtype="f32")
    for ours, theirs in zip(model.gates(), loaded.gates(), strict=True):
        assert ours.e_score_correction_bias.any()
        assert torch.equal(ours.e_score_correction_bias, theirs.e_score_correction_bias)


def test_shares() -> None:
    loads = torch.tensor([[1, 3, 0, 0], [0, 0, 0, 0], [5, 5, 5, 5]])
    assert shares(loads).tolist() == [[0.25, 0.75, 0, 0], [0, 0, 0, 0], [0.25] * 4]
