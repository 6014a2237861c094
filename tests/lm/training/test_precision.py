"""Which layers compute in FP8, and that a network learns so."""

from typing import Any

import pytest
import torch

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.moe import MLP, Experts
from deepwell.lm.model.products import Linear, grouped_linear, linear
from deepwell.lm.model.rowwise import swiglu
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.precision.fp8_training import Fp8Products
from deepwell.lm.training.precision import describe, set_precision
from deepwell.lm.training.recipe import PrecisionSection
from deepwell.lm.weights.lora import LoraConfig, LoraLinear, add_lora


def network(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig.named("debug-moe").replace(initializer_range=0.02, **changes))


def in_fp8(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module.product, "__self__", None), Fp8Products)


def test_fp8_reaches_attention_and_feed_forward_and_nothing_else() -> None:
    model = network()
    set_precision(model, PrecisionSection(compute="fp8"))
    assert model.compute_dtype is torch.bfloat16
    for name, module in model.named_modules():
        if isinstance(module, (Linear, Experts)):
            assert in_fp8(module) == (".self_attn." in name or ".mlp." in name), name
        if isinstance(module, (MLP, Experts)):
            assert isinstance(module.activation.__self__, Fp8Products)
    assert not in_fp8(model.lm_head)
    assert not in_fp8(model.mtp[0].eh_proj)
    assert in_fp8(model.mtp[0].block.self_attn.o_proj)


def test_the_section_says_which_fp8() -> None:
    model = network()
    section = PrecisionSection(compute="fp8", scaling="tensor", scales="power-of-two", keep="bf16")
    set_precision(model, section)
    assert model.layers[0].self_attn.o_proj.product.__self__ == Fp8Products("tensor", True, "bf16")


@pytest.mark.parametrize(("compute", "dtype"), [("f32", None), ("bf16", torch.bfloat16)])
def test_other_precisions_put_everything_back(compute: Any, dtype: torch.dtype | None) -> None:
    model = network()
    set_precision(model, PrecisionSection(compute="fp8"))
    set_precision(model, PrecisionSection(compute=compute))
    assert model.compute_dtype is dtype
    for module in model.modules():
        if isinstance(module, Linear):
            assert module.product is linear
        if isinstance(module, Experts):
            assert (module.product, module.activation) == (grouped_linear, swiglu)


@pytest.mark.parametrize(
    "options",
    [{}, *(pytest.param(one, marks=pytest.mark.slow) for one in ({"scales": "power-of-two"}, {"keep": "bf16"}))],
)
def test_a_network_learns_in_fp8(options: dict[str, Any]) -> None:
    model = network(num_hidden_layers=2, num_nextn_predict_layers=0)
    set_precision(model, PrecisionSection(compute="fp8", **options))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.randint(0, model.config.vocab_size, (1, 48))
    losses = []
    for _ in range(20):
        losses_now = model.loss(tokens)
        losses_now.total.backward()
        assert all(one.grad is not None and one.grad.dtype is torch.float32 for one in model.parameters())
        assert all(one.dtype is torch.float32 for one in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(losses_now.main.item())
    assert losses[-1] < losses[9] < losses[0]
    assert losses[-1] < 0.8 * losses[0]


def test_a_first_step_is_that_of_bf16_but_for_rounding() -> None:
    tokens = torch.randint(0, 512, (2, 48))
    found = {}
    for compute in ("bf16", "fp8"):
        model = network()
        set_precision(model, PrecisionSection(compute=compute))  # type: ignore[arg-type]
        losses = model.loss(tokens)
        losses.total.backward()
        found[compute] = losses.main.item(), model.layers[0].mlp.down_proj.weight.grad
    assert found["fp8"][0] == pytest.approx(found["bf16"][0], rel=2e-3)
    assert found["fp8"][0] != found["bf16"][0]
    # Behind it, some tokens go to other experts, so this is less alike than one product's gradients are.
    assert float(torch.cosine_similarity(found["fp8"][1].flatten(), found["bf16"][1].flatten(), dim=0)) > 0.9


@pytest.mark.parametrize("recompute", ["attention", "blocks"])
def test_what_is_computed_again_has_the_same_bits(recompute: Any) -> None:
    tokens = torch.randint(0, 512, (2, 32))
    grads = []
    for wish in ("none", recompute):
        model = network()
        model.recompute = wish
        set_precision(model, PrecisionSection(compute="fp8"))
        model.loss(tokens).total.backward()
        grads.append([one.grad for one in model.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_an_adapter_is_trained_over_a_base_in_fp8() -> None:
    model = network()
    model.requires_grad_(False)
    add_lora(model, LoraConfig(rank=4, alpha=8, targets=("o_proj",)))
    set_precision(model, PrecisionSection(compute="fp8"))
    layer = model.layers[0].self_attn.o_proj
    assert isinstance(layer, LoraLinear)
    assert in_fp8(layer)
    model.loss(torch.randint(0, 512, (1, 32))).total.backward()
    assert layer.lora_b.grad is not None
    assert bool(layer.lora_b.grad.any())
    assert layer.base_weight.grad is None


def test_it_says_that_a_cpu_emulates() -> None:
    assert describe(PrecisionSection(compute="f32"), "cpu") == "float32"
    assert describe(PrecisionSection(), "cpu") == "bf16 over float32 weights"
    told = describe(PrecisionSection(compute="fp8", scales="power-of-two"), "cpu")
    assert "powers of two" in told
    assert "emulated" in told
    assert "emulated" not in describe(PrecisionSection(compute="fp8"), "cuda")
    assert "one scale a tensor" in describe(PrecisionSection(compute="fp8", scaling="tensor"), "cpu")
