from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.config import DynamicGating, ModelConfig
from deepwell.lm.model.moe import Routing
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training.esft import choose_experts, rank_experts, restrict
from deepwell.lm.training.optimizers import build
from deepwell.lm.training.recipe import OptimizerSection

CONFIG = ModelConfig.named("debug-moe").replace(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=3, q_lora_rank=16, kv_lora_rank=16,
    qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, moe_intermediate_size=16, n_routed_experts=8,
    n_group=1, topk_group=1, num_experts_per_tok=2, initializer_range=0.1,
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    tokens: Tensor
    labels: Tensor
    documents: Tensor | None = None


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG)


def _batch(number: int, width: int = 12) -> Batch:
    tokens = torch.randint(64, (2, width), generator=torch.Generator().manual_seed(number))
    return Batch(tokens, tokens)


@pytest.mark.parametrize("by", ["gate", "token"])
def test_scores_are_those_of_the_routes_taken(model: Transformer, by: Literal["gate", "token"]) -> None:
    batches = [_batch(0), _batch(1, width=7)]
    found = rank_experts(model, batches, by)
    expected = torch.zeros(2, 8, dtype=torch.float64)
    taken: list[Routing] = []
    for gate in model.gates():
        gate.register_forward_hook(lambda _, __, routing: taken.append(routing))
    with torch.no_grad():
        for batch in batches:
            model.hidden(batch.tokens)
    for number, routing in enumerate(taken):
        for expert, weight in zip(routing.experts.flatten(), routing.weights.flatten(), strict=True):
            expected[number % 2, expert] += float(weight) if by == "gate" else 1
    assert found.shape == (3, 8) and found.dtype is torch.float64
    assert torch.allclose(found[:2], expected / expected.sum(-1, keepdim=True), atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(3, dtype=torch.float64))


def test_ranking_moves_nothing(model: Transformer) -> None:
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rank_experts(model, [_batch(0)])
    assert model.training and not model.expert_loads().any()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(gate._forward_hooks for gate in model.gates())
    rank_experts(model.eval(), [_batch(0)])
    assert not model.training


def test_padding_behind_the_last_prediction_is_not_counted(model: Transformer) -> None:
    short = _batch(0)
    padded = Batch(
        torch.cat([short.tokens, torch.full((2, 9), 3)], 1), torch.cat([short.labels, torch.full((2, 9), -100)], 1)
    )
    assert torch.allclose(rank_experts(model, [padded])[:2], rank_experts(model, [short])[:2], atol=1e-6)
    asked = Batch(short.tokens, short.labels.index_fill(1, torch.arange(8), -100))  # a prompt counts
    assert torch.allclose(rank_experts(model, [asked])[:2], rank_experts(model, [short])[:2], atol=1e-6)


def test_documents_do_not_see_each_other(model: Transformer) -> None:
    batch = _batch(0)
    apart = Batch(batch.tokens, batch.labels, torch.arange(12).div(6, rounding_mode="floor").expand(2, 12))
    halves = [Batch(batch.tokens[:, s], batch.labels[:, s]) for s in (slice(0, 6), slice(6, 12))]
    assert torch.allclose(rank_experts(model, [apart])[:2], rank_experts(model, halves)[:2], atol=1e-6)


def test_with_dynamic_gating_and_without_mtp() -> None:
    torch.manual_seed(0)
    model = Transformer(
        CONFIG.replace(num_nextn_predict_layers=0, dynamic_gating=DynamicGating(share=0.2, minimum=1, maximum=3))
    )
    scores = rank_experts(model, [_batch(0)], by="token")
    assert scores.shape == (2, 8) and torch.allclose(scores.sum(-1), torch.ones(2, dtype=torch.float64))


def test_rows_too_short_for_mtp_score_nothing_there(model: Transformer) -> None:
    scores = rank_experts(model, [_batch(0, width=2)])
    assert scores[:2].sum(-1).tolist() == pytest.approx([1, 1]) and not scores[2].any()
    assert choose_experts(scores, 0.5)[2] == []


def test_the_fewest_experts_that_reach_the_share() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0], [0.0] * 4])
    assert choose_experts(scores, 0.4) == {0: [1], 1: [0, 1], 2: [2], 3: []}
    assert choose_experts(scores, 0.41) == {0: [1, 3], 1: [0, 1], 2: [2], 3: []}
    assert choose_experts(scores, 0.7) == {0: [1, 3], 1: [0, 1, 2], 2: [2], 3: []}
    assert choose_experts(scores, 1.0) == {0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 2: [2], 3: []}
    for share in (0.0, 1.1):
        with pytest.raises(UsageError, match="share is"):
            choose_experts(scores, share)


@pytest.mark.parametrize("tune_shared", [True, False])
@pytest.mark.parametrize("tune_rest", [True, False])
def test_what_takes_gradients(model: Transformer, tune_shared: bool, tune_rest: bool) -> None:
    restrict(model, {0: [1], 1: [], 2: [3]}, tune_shared=tune_shared, tune_rest=tune_rest)
    for name, parameter in model.named_parameters():
        if ".mlp.gate." in name:
            wanted = False
        elif ".mlp.experts." in name:
            wanted = not name.startswith("layers.2.")
        elif "shared_experts" in name:
            wanted = tune_shared
        else:
            wanted = tune_rest
        assert parameter.requires_grad is wanted, name


def test_only_the_chosen_learn_and_the_loss_falls(model: Transformer) -> None:
    batch = _batch(0)
    chosen = choose_experts(rank_experts(model, [batch]), 0.3)
    restrict(model, chosen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build(model, OptimizerSection(lr=0.02, weight_decay=0.1), chosen_experts=chosen)
    first = model.loss(batch.tokens).main.item()
    for _ in range(8):
        model.loss(batch.tokens).total.backward()  # type: ignore[no-untyped-call]
        optimizer.clip(1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert model.loss(batch.tokens).main.item() < 0.9 * first
    layers = {"layers.1.": 0, "layers.2.": 1, "mtp.0.": 2}
    for name, value in model.state_dict().items():
        if ".experts." not in name:
            assert torch.equal(value, before[name]), name
            continue
        changed = (value != before[name]).flatten(1).any(-1)
        mine = chosen[next(place for prefix, place in layers.items() if name.startswith(prefix))]
        assert changed.nonzero().flatten().tolist() == mine


def test_networks_without_experts_and_empty_samples(model: Transformer) -> None:
    dense = Transformer(ModelConfig.named("debug").replace(num_hidden_layers=1))
    for call in (lambda: rank_experts(dense, [_batch(0)]), lambda: restrict(dense, {})):
        with pytest.raises(UsageError, match="no experts to choose from") as caught:
            call()
        assert "lora" in caught.value.hint
    with pytest.raises(UsageError, match="no rows"):
        rank_experts(model, [])
    with pytest.raises(UsageError, match="nothing to tune"):
        restrict(model, {0: []})
