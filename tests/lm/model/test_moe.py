"""Routing against a plain reference, one token at a time; what each trap of other code would change."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepwell.errors import UsageError
from deepwell.lm.model.cache import LatentCache
from deepwell.lm.model.config import DynamicGating, ModelConfig
from deepwell.lm.model.moe import Experts, Gate, MixtureOfExperts
from deepwell.lm.model.routes import Routes
from deepwell.lm.model.transformer import Transformer

_BASE: dict[str, Any] = {
    "vocab_size": 31, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4, "moe_intermediate_size": 6,
    "initializer_range": 0.5,
}  # fmt: skip


@st.composite
def mixtures(draw: Any) -> ModelConfig:
    method = draw(st.sampled_from(["noaux_tc", "group_limited_greedy", "greedy"]))
    groups, size = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    kept = groups if method == "greedy" else draw(st.integers(1, groups))
    most = kept * size
    gating = None
    if draw(st.booleans()):
        least = draw(st.integers(1, most))
        gating = DynamicGating(share=draw(st.floats(0.1, 1)), minimum=least, maximum=draw(st.integers(least, most)))
    return ModelConfig(
        **_BASE,
        n_routed_experts=groups * size,
        n_group=groups,
        topk_group=kept,
        num_experts_per_tok=draw(st.integers(1, most)),
        topk_method=method,
        scoring_func=draw(st.sampled_from(["sigmoid", "softmax"])),
        norm_topk_prob=draw(st.booleans()),
        weigh_experts=draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])),
        n_shared_experts=draw(st.integers(0, 2)),
        dynamic_gating=gating,
    )


def made(config: ModelConfig, dtype: torch.dtype = torch.float64) -> MixtureOfExperts:
    """A mixture with random weights and a bias large enough to move choices, often negative."""
    torch.manual_seed(0)
    mixture = MixtureOfExperts(config, dtype=dtype).eval()
    for tensor in mixture.parameters():
        torch.nn.init.normal_(tensor, 0, 0.7)
    if config.topk_method == "noaux_tc":
        torch.nn.init.normal_(mixture.gate.e_score_correction_bias, -0.5, 0.5)
    return mixture


def chosen_by_hand(config: ModelConfig, scores: list[float], bias: list[float]) -> list[int]:
    """V3 section 2.1.2 and V2 section 2.2 read aloud, for one token."""
    biased = [s + b for s, b in zip(scores, bias, strict=True)]
    size = config.n_routed_experts // config.n_group
    allowed = list(range(config.n_routed_experts))
    if config.topk_method != "greedy":
        best = 2 if config.topk_method == "noaux_tc" else 1
        worth = [sum(sorted(biased[g * size : g * size + size])[-best:]) for g in range(config.n_group)]
        kept = sorted(range(config.n_group), key=lambda g: -worth[g])[: config.topk_group]
        allowed = [e for e in allowed if e // size in kept]
    order = sorted(allowed, key=lambda e: -biased[e])
    gating = config.dynamic_gating
    if gating is None:
        return order[: config.num_experts_per_tok]
    mass, taken = sum(scores[e] for e in allowed), []
    for expert in order[: gating.maximum]:
        if len(taken) >= gating.minimum and sum(scores[e] for e in taken) / mass >= gating.share:
            break
        taken.append(expert)
    return taken


def by_hand(mixture: MixtureOfExperts, config: ModelConfig, x: Tensor) -> tuple[Tensor, list[list[int]]]:
    """One token and one expert after the other."""
    out, experts = torch.zeros_like(x), []
    gate = mixture.gate
    bias = gate.e_score_correction_bias.tolist() if config.topk_method == "noaux_tc" else [0.0] * gate.weight.shape[0]
    for row, token in enumerate(x):
        logits = gate.weight @ token
        scores = logits.sigmoid() if config.scoring_func == "sigmoid" else logits.softmax(-1)
        taken = chosen_by_hand(config, scores.tolist(), bias)
        experts.append(taken)
        weights = scores[taken] if config.weigh_experts else torch.ones(len(taken), dtype=x.dtype)
        if config.norm_topk_prob and config.weigh_experts:
            weights = weights / weights.sum()
        for weight, expert in zip(weights * config.routed_scaling_factor, taken, strict=True):
            first, second = (mixture.experts.gate_up_proj[expert] @ token).chunk(2)
            out[row] += weight * (mixture.experts.down_proj[expert] @ (torch.nn.functional.silu(first) * second))
        if mixture.shared_experts is not None:
            out[row] += mixture.shared_experts(token)
    return out, experts


@settings(max_examples=120, deadline=None)
@given(mixtures())
def test_a_mixture_is_its_definition_read_aloud(config: ModelConfig) -> None:
    mixture = made(config)
    x = torch.randn(1, 9, config.hidden_size, dtype=torch.float64)
    with torch.no_grad():
        got, routing = mixture(x)
        expected, experts = by_hand(mixture, config, x[0])
    assert [sorted(e for e in row if e >= 0) for row in routing.experts.tolist()] == [sorted(row) for row in experts]
    assert torch.allclose(got[0], expected, atol=1e-9)


def plain(**changes: Any) -> ModelConfig:
    content = _BASE | {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2} | changes
    return ModelConfig(**content)


def test_the_bias_chooses_and_never_weighs() -> None:
    gate = made(plain(norm_topk_prob=False, n_group=1, topk_group=1)).gate
    x = torch.randn(1, 5, 12, dtype=torch.float64)
    before = gate(x)
    gate.e_score_correction_bias += 100.0  # the same for all: the choice stays
    assert torch.equal(gate(x).experts, before.experts)
    assert torch.equal(gate(x).weights, before.weights)
    gate.e_score_correction_bias[3] += 10.0
    assert (gate(x).experts == 3).any(-1).all()


def test_dropped_groups_stay_dropped_when_all_scores_are_negative() -> None:
    """Masked with 0 and not with -inf, experts of dropped groups would win over negative ones."""
    gate = made(plain(num_experts_per_tok=4)).gate
    gate.e_score_correction_bias.copy_(torch.tensor([-2.0, -2, -9, -9, -9, -9, -3, -3]))
    assert gate(torch.randn(1, 6, 12, dtype=torch.float64)).experts.sort(-1).values.tolist() == [[0, 1, 6, 7]] * 6


def test_router_and_bias_stay_float32_through_bfloat16() -> None:
    config = plain(num_nextn_predict_layers=1)
    model = Transformer(config)
    exact = torch.linspace(-0.123456, 0.123456, 8)
    for gate in model.gates():
        gate.e_score_correction_bias.copy_(exact)
    model.bfloat16()
    assert model.dtype is torch.bfloat16
    assert model.gates()
    for gate in model.gates():
        assert gate.e_score_correction_bias.dtype is torch.float32
        assert torch.equal(gate.e_score_correction_bias, exact)
        assert gate(torch.randn(1, 2, 12, dtype=torch.bfloat16)).weights.dtype is torch.float32
    assert (
        Transformer(config, device="meta").to_empty(device="cpu").gates()[0].e_score_correction_bias.dtype
        is torch.float32
    )


def test_training_counts_load_and_evaluation_does_not() -> None:
    model = Transformer(plain(first_k_dense_replace=1))
    tokens = torch.randint(0, 31, (2, 7))
    model.eval().loss(tokens)
    model.train()
    with torch.no_grad():
        model.loss(tokens)
    assert model.expert_loads().sum() == 0
    model.loss(tokens)
    assert model.expert_loads().shape == (1, 8)
    assert model.expert_loads().sum() == 2 * 7 * 3
    assert "expert_load" not in "".join(model.state_dict())
    model.reset_expert_loads()
    assert model.expert_loads().sum() == 0


def test_checkpointing_counts_once() -> None:
    mixture = made(plain(), torch.float32).train()
    x = torch.randn(1, 5, 12, requires_grad=True)
    checkpoint(lambda x: mixture(x)[0], x, use_reentrant=False).sum().backward()
    assert mixture.gate.expert_load.sum() == 5 * 3


def test_balance_is_the_formula_of_the_report() -> None:
    config = plain(aux_loss_alpha=0.01)
    gate = made(config).gate.train()
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    routing = gate(x)
    scores = (x @ gate.weight.T).sigmoid()
    losses = []
    for sequence in range(2):
        shares = scores[sequence] / scores[sequence].sum(-1, keepdim=True)
        taken = routing.experts.view(2, 6, 3)[sequence].flatten().bincount(minlength=8)
        losses.append(sum(8 / (3 * 6) * taken[e] * shares[:, e].mean() for e in range(8)))
    assert routing.balance is not None
    assert routing.balance.item() == pytest.approx(0.01 * float(sum(losses).detach()) / 2)
    routing.balance.backward()
    assert gate.weight.grad is not None
    assert gate.weight.grad.abs().max() > 0
    assert made(plain(aux_loss_alpha=0.0)).gate.train()(x).balance is None


def test_gradients_flow_to_router_and_experts() -> None:
    config = plain(n_shared_experts=1)
    mixture = made(config)
    x = torch.randn(1, 3, 12, dtype=torch.float64, requires_grad=True)
    given = mixture.gate(x).experts  # held, so that no small step changes the choice
    names, values = zip(*mixture.named_parameters(), strict=True)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(mixture, dict(zip(names, parameters, strict=True)), (x, given))[0]

    assert torch.autograd.gradcheck(function, (x, *values), fast_mode=True)


@pytest.mark.parametrize("partial", [False, True])
def test_experts_without_tokens_and_tokens_without_experts(partial: bool) -> None:
    torch.manual_seed(0)
    experts = Experts(plain(), dtype=torch.float64)
    for tensor in experts.parameters():
        torch.nn.init.normal_(tensor)
    x = torch.randn(3, 12, dtype=torch.float64)
    taken = torch.tensor([[5, 5], [5, 2], [5, 5]])
    if partial:
        taken[1] = -1
    out = experts(x, taken, torch.ones(3, 2, dtype=torch.float64), partial=partial)
    assert out.shape == x.shape
    assert bool((out[1] == 0).all()) == partial
    assert out[0].abs().max() > 0


# ---- dynamic gating and routes ----


def test_dynamic_gating_takes_what_it_needs_and_says_what_it_saved() -> None:
    config = plain(num_experts_per_tok=4, first_k_dense_replace=0)
    model = Transformer(config).eval()
    tokens = torch.randint(0, 31, (2, 16))
    means = []
    for share in (0.1, 0.5, 0.99):
        model.set_dynamic_gating(DynamicGating(share=share, minimum=1, maximum=4))
        routes = Routes()
        model(tokens, routes=routes)
        means.append(routes.mean_experts())
        assert routes.compute_saved(config) == pytest.approx(1 - means[-1] / 4)
    assert means[0] == 1
    assert means[0] < means[1] < means[2] <= 4
    model.set_dynamic_gating(None)
    routes = Routes()
    model(tokens, routes=routes)
    assert routes.mean_experts() == 4
    assert model.config == config


def test_routes_are_followed_even_where_the_router_would_choose_otherwise() -> None:
    config = plain(first_k_dense_replace=1)
    model = Transformer(config, dtype=torch.float64).eval()
    tokens = torch.randint(0, 31, (2, 5))
    with torch.no_grad():
        routes = Routes()
        expected = model(tokens, routes=routes)
        assert set(routes.choices) == {1}
        assert torch.equal(model(tokens, routes=routes.replay()), expected)
        model.gates()[0].e_score_correction_bias.copy_(torch.linspace(3, -3, 8))
        assert not torch.allclose(model(tokens), expected)
        assert torch.equal(model(tokens, routes=routes.replay()), expected)


def test_dynamic_routes_are_followed_by_a_network_of_fixed_number() -> None:
    model = Transformer(plain(), dtype=torch.float64).eval()
    tokens = torch.randint(0, 31, (1, 9))
    model.set_dynamic_gating(DynamicGating(share=0.4, minimum=1, maximum=3))
    with torch.no_grad():
        routes = Routes()
        expected = model(tokens, routes=routes)
        model.set_dynamic_gating(None)
        assert torch.allclose(model(tokens, routes=routes.replay()), expected, atol=1e-12)


def test_routes_of_other_tokens_or_networks_are_errors() -> None:
    model = Transformer(plain()).eval()
    routes = Routes()
    model(torch.zeros(1, 4, dtype=torch.int64), routes=routes)
    with pytest.raises(UsageError, match="of 4 tokens, and 6 came"):
        model(torch.zeros(1, 6, dtype=torch.int64), routes=routes.replay())
    with pytest.raises(UsageError, match="nothing for layer 0"):
        model(torch.zeros(1, 4, dtype=torch.int64), routes=Routes({}))
    assert Routes().mean_experts() == 0


def test_gates_are_found_in_order() -> None:
    model = Transformer(plain(first_k_dense_replace=1, num_nextn_predict_layers=1))
    assert len(model.gates()) == 2
    assert all(isinstance(gate, Gate) for gate in model.gates())
    assert model.gates()[0] is model.layers[1].mlp.gate
    cache = LatentCache(model.config, batch=1, capacity=2, mtp=True)
    assert cache.rows.shape[0] == 3
