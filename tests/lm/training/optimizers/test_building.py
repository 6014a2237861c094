import copy
from typing import Any

import pytest
import torch

from deepwell.errors import TrainingError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training.optimizers import Optimizer, build
from deepwell.lm.training.optimizers.groups import Slot
from deepwell.lm.training.recipe import OptimizerSection

SECTIONS = [OptimizerSection(name=name, moments=m) for name in ("adamw", "muon") for m in ("bf16", "f32")]  # type: ignore[arg-type]


def test_the_norm_is_that_of_all_gradients_together(model: Transformer, fill: Any) -> None:
    fill(model, 0)
    everything = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
    optimizer = build(model, OptimizerSection())
    norm = optimizer.clip(0)
    assert norm.dtype is torch.float32 and norm.dim() == 0
    assert abs(float(norm) / float(everything.norm()) - 1) < 1e-6
    unchanged = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
    assert torch.equal(unchanged, everything)
    assert optimizer.clip(float(norm) * 1.01) == norm  # not above the limit: nothing is scaled
    before = copy.deepcopy([p.grad for p in model.parameters()])
    optimizer.clip(0.5)
    torch.nn.utils.clip_grad_norm_(_with(model, before), 0.5)
    assert abs(float(optimizer.clip(0)) - 0.5) < 1e-5


def _with(model: Transformer, grads: list[torch.Tensor | None]) -> list[torch.nn.Parameter]:
    found = []
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        copied = torch.nn.Parameter(parameter.detach().clone())
        copied.grad = grad
        found.append(copied)
    return found


def test_clipping_scales_as_torch_does(model: Transformer, fill: Any) -> None:
    fill(model, 0)
    theirs = _with(model, [None if p.grad is None else p.grad.clone() for p in model.parameters()])
    torch.nn.utils.clip_grad_norm_(theirs, 0.25)
    build(model, OptimizerSection()).clip(0.25)
    for ours, other in zip(model.parameters(), theirs, strict=True):
        assert ours.grad is not None and other.grad is not None
        assert torch.allclose(ours.grad, other.grad, rtol=1e-5, atol=0)


def test_a_long_sum_of_squares_stays_exact() -> None:
    """torch's own float32 norm of so many values is off by a thousandth, and more for larger parameters."""
    grad = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).add_(1.0)
    norm = grad.norm(dtype=torch.float64)
    parameter = torch.nn.Parameter(grad.clone())
    parameter.grad = grad
    optimizer = Optimizer([Slot("x", parameter, "adamw", True)], OptimizerSection())
    assert abs(float(optimizer.clip(0)) / float(norm) - 1) < 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_reported_and_scales_nothing(model: Transformer, fill: Any, bad: float) -> None:
    fill(model, 0)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    grads[0].view(-1)[0] = bad
    before = grads[1].clone()
    assert not build(model, OptimizerSection()).clip(1.0).isfinite()
    assert torch.equal(grads[1], before)


def test_without_gradients_the_norm_is_zero(model: Transformer) -> None:
    assert build(model, OptimizerSection()).clip(1.0) == 0


def test_zero_grad_forgets(model: Transformer, fill: Any) -> None:
    fill(model, 0)
    optimizer = build(model, OptimizerSection())
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_factor_of_zero_changes_nothing_but_the_moments(model: Transformer, fill: Any) -> None:
    before = copy.deepcopy(model)
    for section in SECTIONS:
        fill(model, 0)
        build(model, section).step(0.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: f"{s.name}-{s.moments}")
def test_a_state_that_is_saved_and_loaded_goes_on_to_the_bit(
    model: Transformer, fill: Any, section: OptimizerSection
) -> None:
    optimizer = build(model, section)
    for number in range(3):
        fill(model, number)
        optimizer.step(0.5)
    twin = copy.deepcopy(model)
    state = copy.deepcopy(optimizer.state_dict())
    resumed = build(twin, section)
    resumed.load_state_dict(state)
    assert resumed.steps == state["step"] == 3
    for number in range(3, 6):
        for network, its in ((model, optimizer), (twin, resumed)):
            fill(network, number)
            its.step(0.5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    after, other = optimizer.state_dict(), resumed.state_dict()
    assert list(after) == list(other)
    assert all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]  # type: ignore[arg-type]
        for key, value in after.items()
    )


def test_a_state_is_the_moments_and_not_a_copy(model: Transformer) -> None:
    optimizer = build(model, OptimizerSection())
    first, again = optimizer.state_dict(), optimizer.state_dict()
    key = "adamw.exp_avg_sq.lm_head.weight"
    assert first[key].data_ptr() == again[key].data_ptr()  # type: ignore[union-attr]


def test_a_state_that_does_not_fit_names_the_parameter(model: Transformer) -> None:
    optimizer = build(model, OptimizerSection())
    state = optimizer.state_dict()
    key = "adamw.exp_avg.norm.weight"
    with pytest.raises(TrainingError, match=r"lacks adamw.exp_avg.norm.weight of norm.weight"):
        optimizer.load_state_dict({name: value for name, value in state.items() if name != key})
    with pytest.raises(TrainingError, match=r"holds muon.momentum.x, which is not trained"):
        optimizer.load_state_dict({**state, "muon.momentum.x": torch.zeros(1)})
    with pytest.raises(TrainingError, match=r"norm.weight does not fit"):
        optimizer.load_state_dict({**state, key: torch.zeros(7)})
    with pytest.raises(TrainingError, match="lacks its step"):
        optimizer.load_state_dict({name: value for name, value in state.items() if name != "step"})


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: f"{s.name}-{s.moments}")
def test_experts_that_are_not_chosen_keep_every_bit(model: Transformer, fill: Any, section: OptimizerSection) -> None:
    before = copy.deepcopy(model)
    optimizer = build(model, section, chosen_experts={0: [0, 3, 4]})
    for number in range(3):
        fill(model, number)
        optimizer.clip(1.0)
        optimizer.step()
    for name in ("gate_up_proj", "down_proj"):
        full = f"layers.1.mlp.experts.{name}"
        same = (model.get_parameter(full) == before.get_parameter(full)).flatten(1)
        assert same.all(-1).tolist() == [False, True, True, False, False, True, True, True]
        assert not same[[0, 3, 4]].any(-1).all()
        other = f"mtp.0.block.mlp.experts.{name}"  # a layer in which none is chosen
        assert torch.equal(model.get_parameter(other), before.get_parameter(other))
    moments = [v for k, v in optimizer.state_dict().items() if k.endswith("layers.1.mlp.experts.down_proj")]
    assert moments and all(isinstance(v, torch.Tensor) and v.shape == (3, 32, 16) for v in moments)


def test_chosen_experts_move_as_if_all_were_trained(model: Transformer, fill: Any) -> None:
    other, section = copy.deepcopy(model), OptimizerSection()
    for network, chosen in ((model, {0: [1, 2, 6]}), (other, None)):
        optimizer = build(network, section, chosen_experts=chosen)
        for number in range(2):
            fill(network, number)
            optimizer.step()
    name = "layers.1.mlp.experts.gate_up_proj"
    assert torch.equal(model.get_parameter(name)[[1, 2, 6]], other.get_parameter(name)[[1, 2, 6]])


def test_the_others_have_no_say_in_the_norm(model: Transformer, fill: Any) -> None:
    model.requires_grad_(False)
    stack = model.get_parameter("layers.1.mlp.experts.down_proj").requires_grad_(True)
    fill(model, 0)
    assert stack.grad is not None
    norm = build(model, OptimizerSection(), chosen_experts={0: [2, 5]}).clip(0)
    assert abs(float(norm) / float(stack.grad[[2, 5]].norm()) - 1) < 1e-6


def test_frozen_parameters_are_left_alone(model: Transformer, fill: Any) -> None:
    model.embed_tokens.requires_grad_(False)
    optimizer = build(model, OptimizerSection())
    assert isinstance(optimizer, Optimizer)
    assert "adamw.exp_avg.embed_tokens.weight" not in optimizer.state_dict()
    before = model.embed_tokens.weight.clone()
    fill(model, 0)
    optimizer.step()
    assert torch.equal(model.embed_tokens.weight, before)
