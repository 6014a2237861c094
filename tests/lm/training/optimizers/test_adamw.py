import copy
from typing import Any

import pytest
import torch

from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training.optimizers import adamw, build
from deepwell.lm.training.optimizers.adamw import AdamW
from deepwell.lm.training.optimizers.groups import slots
from deepwell.lm.training.recipe import OptimizerSection

SECTION = OptimizerSection(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.3, moments="f32")


def _theirs(model: Transformer, section: OptimizerSection) -> torch.optim.AdamW:
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for slot in slots(model, "adamw"):
        groups[slot.decay].append(slot.parameter)
    decays = [{"params": found, "weight_decay": section.weight_decay * decay} for decay, found in groups.items()]
    return torch.optim.AdamW(decays, lr=section.lr, betas=section.betas, eps=section.eps, foreach=False)


def _run(model: Transformer, fill: Any, section: OptimizerSection, count: int = 5) -> Transformer:
    optimizer = build(model, section)
    for number in range(count):
        fill(model, number)
        optimizer.step(1 / (1 + number))
    return model


def _run_theirs(model: Transformer, fill: Any, section: OptimizerSection, count: int = 5) -> Transformer:
    optimizer = _theirs(model, section)
    for number in range(count):
        fill(model, number)
        for group in optimizer.param_groups:
            group["lr"] = section.lr / (1 + number)
        optimizer.step()
    return model


def _farthest(a: Transformer, b: Transformer) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float(((x - y).norm() / y.norm()).detach()) for x, y in pairs)


def test_float32_moments_step_as_torch_does(model: Transformer, fill: Any) -> None:
    theirs = _run_theirs(copy.deepcopy(model), fill, SECTION)
    assert _farthest(_run(model, fill, SECTION), theirs) < 1e-6


def test_float64_steps_as_torch_does(model: Transformer, fill: Any) -> None:
    model = model.double()
    theirs = _run_theirs(copy.deepcopy(model), fill, SECTION)
    assert _farthest(_run(model, fill, SECTION), theirs) < 1e-12


def test_bf16_moments_are_rounded_to_nearest_after_each_step(
    model: Transformer, fill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the formula on whole tensors; chunks are made small so that every parameter has several."""
    monkeypatch.setattr(adamw, "CPU_CHUNK", 100)
    section = OptimizerSection(lr=3e-3, weight_decay=0.3, moments="bf16")
    expected = {slot.name: slot.parameter.detach().clone().double() for slot in slots(model, "adamw")}
    decays = {slot.name: slot.decay for slot in slots(model, "adamw")}
    m = {name: torch.zeros_like(p) for name, p in expected.items()}
    v = {name: torch.zeros_like(p) for name, p in expected.items()}
    optimizer = build(model, section)
    b1, b2 = section.betas
    for number in range(1, 5):
        fill(model, number)
        for slot in slots(model, "adamw"):
            name, grad = slot.name, slot.parameter.grad
            assert grad is not None
            m[name] = (b1 * m[name] + (1 - b1) * grad.double()).float()
            v[name] = (b2 * v[name] + (1 - b2) * grad.double() ** 2).float()
            root = (v[name].double() / (1 - b2**number)).sqrt() + section.eps
            p = expected[name] * (1 - section.lr * section.weight_decay * decays[name])
            expected[name] = p - section.lr * m[name].double() / (1 - b1**number) / root
            m[name], v[name] = m[name].bfloat16().double(), v[name].bfloat16().double()
        optimizer.step()
    state = optimizer.state_dict()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.double(), expected[name], rtol=1e-4, atol=2e-5), name
        kept = state[f"adamw.exp_avg.{name}"]
        assert isinstance(kept, torch.Tensor) and kept.dtype is torch.bfloat16
        assert torch.allclose(kept.double(), m[name], rtol=2**-7, atol=1e-6)


def test_bf16_moments_learn_as_float32_ones(model: Transformer) -> None:
    """The same batch again and again: both fall, and to the same loss within a few percent."""
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    last = {}
    for moments in ("f32", "bf16"):
        network = copy.deepcopy(model)
        optimizer = build(network, OptimizerSection(lr=1e-2, moments=moments))  # type: ignore[arg-type]
        first = network.loss(tokens).main.item()
        for _ in range(15):
            network.loss(tokens).total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        last[moments] = network.loss(tokens).main.item()
        assert last[moments] < 0.6 * first
    assert abs(last["bf16"] / last["f32"] - 1) < 0.1


def test_bf16_weights_are_updated_in_float32_and_rounded(model: Transformer, fill: Any) -> None:
    wide = copy.deepcopy(model.bfloat16()).float()
    fill(model, 0)
    for narrow, parameter in zip(model.parameters(), wide.parameters(), strict=True):
        assert narrow.grad is not None
        parameter.grad = narrow.grad.float()
    build(model, SECTION).step()
    build(wide, SECTION).step()
    for narrow, parameter in zip(model.parameters(), wide.parameters(), strict=True):
        assert narrow.dtype is torch.bfloat16
        assert torch.equal(narrow, parameter.bfloat16())


def test_what_has_no_gradient_stays(model: Transformer, fill: Any) -> None:
    optimizer = build(model, SECTION)
    fill(model, 0)
    model.lm_head.weight.grad = None
    before = model.lm_head.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.lm_head.weight, before)
    moment = optimizer.state_dict()["adamw.exp_avg.lm_head.weight"]
    assert isinstance(moment, torch.Tensor) and not moment.any()


def test_a_gradient_that_lies_crosswise_is_read_right(model: Transformer, fill: Any) -> None:
    other = copy.deepcopy(model)
    fill(model, 0)
    fill(other, 0)
    grad = model.lm_head.weight.grad
    assert grad is not None
    model.lm_head.weight.grad = grad.t().contiguous().t()
    build(model, SECTION).step()
    build(other, SECTION).step()
    assert torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_the_state_has_both_moments_of_each_parameter(model: Transformer) -> None:
    found = slots(model, "adamw")
    optimizer = AdamW(found, (0.9, 0.95), 1e-8, 0.1, "bf16")
    keys = [key for key, _, _ in optimizer.state()]
    assert keys[0] == "adamw.exp_avg.embed_tokens.weight" and len(set(keys)) == 2 * len(found)
