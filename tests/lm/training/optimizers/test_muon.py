import copy
from typing import Any

import pytest
import torch

from deepwell.lm.model import products
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training.optimizers import build, muon
from deepwell.lm.training.optimizers.groups import slots
from deepwell.lm.training.optimizers.muon import SCALE, Muon, orthogonalised
from deepwell.lm.training.recipe import OptimizerSection

SECTION = OptimizerSection(name="muon", muon_lr=0.01, weight_decay=0.1, moments="f32")


@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (64, 64), (1, 32), (3, 40, 24), (2, 3, 16, 32)])
@pytest.mark.parametrize("multiplies", [True, False])
def test_singular_values_become_about_one(
    shape: tuple[int, ...], multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "cpu_multiplies", lambda dtype: multiplies)
    found = orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3)
    assert found.shape == shape and found.dtype is (torch.bfloat16 if multiplies else torch.float32)
    values = torch.linalg.svdvals(found.float())
    # A square random matrix has singular values near 0, which five iterations do not lift all the way.
    assert values.max() < 1.3 and (values.median() if shape == (64, 64) else values.min()) > 0.6


def test_singular_vectors_stay() -> None:
    """The nearest orthogonal matrix is U V^T; where singular values are alike, the two are close to parallel."""
    generator = torch.Generator().manual_seed(2)
    u, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(64, 32, generator=generator))
    matrix = u * torch.linspace(0.5, 1.5, 32) @ v.T
    inner = u.T @ orthogonalised(matrix).float() @ v
    assert (inner - torch.diag(inner.diag())).abs().max() < 0.05


def test_zeros_stay_zeros() -> None:
    assert not orthogonalised(torch.zeros(4, 8)).any()


def _one_matrix(before: torch.Tensor, grads: list[torch.Tensor], section: OptimizerSection) -> torch.Tensor:
    """The definition, for one matrix."""
    value, momentum, mu = before.clone(), torch.zeros_like(before), section.muon_momentum
    for grad in grads:
        momentum = mu * momentum + (1 - mu) * grad
        direction = orthogonalised(mu * momentum + (1 - mu) * grad).float()
        scale = SCALE * max(value.shape) ** 0.5
        value = value * (1 - section.muon_lr * section.weight_decay) - section.muon_lr * scale * direction
    return value


def test_each_expert_and_each_half_is_a_matrix_of_its_own(
    model: Transformer, fill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "_BATCH", 3000)  # a few experts at a time
    before = copy.deepcopy(model)
    optimizer = build(model, SECTION)
    grads: dict[str, list[torch.Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for number in range(3):
        fill(model, number)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            grads[name].append(parameter.grad.clone())
        optimizer.step()
    for name in ("layers.1.mlp.experts.gate_up_proj", "layers.1.mlp.experts.down_proj"):
        after, start = model.get_parameter(name), before.get_parameter(name)
        halves = 2 if "gate_up" in name else 1
        for expert in range(8):
            for half in range(halves):
                rows = slice(half * 16, half * 16 + 16) if halves == 2 else slice(None)
                expected = _one_matrix(start[expert, rows].detach(), [g[expert, rows] for g in grads[name]], SECTION)
                assert torch.allclose(after[expert, rows], expected, atol=2e-4), (name, expert, half)
    name = "layers.0.self_attn.o_proj.weight"
    expected = _one_matrix(before.get_parameter(name).detach(), grads[name], SECTION)
    assert torch.allclose(model.get_parameter(name), expected, atol=2e-4)


def test_an_update_has_the_size_of_adamws(model: Transformer, fill: Any) -> None:
    """RMS of 0.2 times the rate, whatever the shape (Moonlight section 2.2)."""
    section = OptimizerSection(name="muon", muon_lr=1.0, weight_decay=0.0, moments="f32")
    before = copy.deepcopy(model)
    optimizer = build(model, section)
    fill(model, 0)
    optimizer.step()
    for slot in slots(model, "muon"):
        if slot.method == "muon":
            change = slot.parameter.detach() - before.get_parameter(slot.name).detach()
            assert 0.13 < change.square().mean().sqrt() < 0.25, slot.name


def test_the_others_are_adamws(model: Transformer, fill: Any) -> None:
    other = copy.deepcopy(model)
    for network, name in ((model, "muon"), (other, "adamw")):
        optimizer = build(network, OptimizerSection(name=name, lr=0.01))  # type: ignore[arg-type]
        fill(network, 0)
        optimizer.step()
    for name in ("embed_tokens.weight", "lm_head.weight", "layers.1.mlp.gate.weight", "norm.weight"):
        assert torch.equal(model.get_parameter(name), other.get_parameter(name))
    assert not torch.equal(model.layers[0].mlp.up_proj.weight, other.layers[0].mlp.up_proj.weight)  # type: ignore[union-attr]


def test_small_directions_move_as_far_as_large_ones() -> None:
    """What plain descent is slow at: a gradient whose directions differ in size by a hundred."""
    generator = torch.Generator().manual_seed(3)
    u, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(48, 32, generator=generator))
    values = torch.linalg.svdvals(orthogonalised(u * torch.logspace(0, -2, 32) @ v.T).float())
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_loss_falls_as_by_adamw(model: Transformer) -> None:
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    found = {}
    first = model.loss(tokens).main.item()
    for name in ("muon", "adamw"):
        network = copy.deepcopy(model)
        optimizer = build(network, OptimizerSection(name=name, lr=1e-2, muon_lr=1e-2))  # type: ignore[arg-type]
        for _ in range(12):
            network.loss(tokens).total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        found[name] = network.loss(tokens).main.item()
    assert found["muon"] < 0.5 * first and found["muon"] < 1.5 * found["adamw"]


def test_momentum_in_bf16_and_what_has_no_gradient(model: Transformer, fill: Any) -> None:
    optimizer = build(model, OptimizerSection(name="muon", moments="bf16"))
    fill(model, 0)
    head = model.mtp[0].eh_proj.weight  # type: ignore[union-attr]
    head.grad = None
    before = head.detach().clone()  # type: ignore[operator, union-attr]
    optimizer.step()
    assert torch.equal(head, before)  # type: ignore[arg-type]
    buffers = {key: value for key, value in optimizer.state_dict().items() if key.startswith("muon.momentum.")}
    assert len(buffers) == len([slot for slot in slots(model, "muon") if slot.method == "muon"])
    assert all(isinstance(value, torch.Tensor) and value.dtype is torch.bfloat16 for value in buffers.values())


def test_without_slots_it_does_nothing() -> None:
    Muon([], 0.95, 0.1, "f32").step(0.1)
    assert products.cpu_multiplies(torch.float32)
