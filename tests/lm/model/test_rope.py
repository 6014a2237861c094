"""Frequencies equal to transformers', rotation equal to complex multiplication."""

import pytest
import torch

from deepwell.lm.model.config import ModelConfig, RopeScaling
from deepwell.lm.model.rope import Rope, inverse_frequencies, magnitude, rotate

_V3 = ModelConfig.named("deepseek-v3")


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling(kind="yarn", factor=40, mscale=1, mscale_all_dim=1),
        RopeScaling(kind="yarn", factor=16, mscale=0.707, mscale_all_dim=1, beta_fast=24, beta_slow=2),
        RopeScaling(kind="yarn", factor=4, original_max_position_embeddings=32768),
        RopeScaling(kind="llama3", factor=8, original_max_position_embeddings=8192),
        RopeScaling(kind="llama3", factor=32, original_max_position_embeddings=8192, high_freq_factor=2),
        RopeScaling(kind="linear", factor=3),
    ],
)
def test_frequencies_are_those_of_transformers(scaling: RopeScaling) -> None:
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import DeepseekV3Config

    config = _V3.replace(rope_scaling=scaling)
    parameters = {"rope_type": scaling.kind, "rope_theta": 10_000.0, "factor": scaling.factor}
    if scaling.kind != "linear":
        parameters["original_max_position_embeddings"] = scaling.original_max_position_embeddings
    if scaling.kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        parameters |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        parameters |= {"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all_dim}
    theirs = DeepseekV3Config(rope_parameters=parameters, max_position_embeddings=163_840)
    expected, times = utils.ROPE_INIT_FUNCTIONS[scaling.kind](theirs, device="cpu")
    assert torch.allclose(inverse_frequencies(config), expected, rtol=1e-6, atol=0)
    assert magnitude(config) == pytest.approx(times)


def test_yarn_tempers_the_softmax_by_its_mscale_squared() -> None:
    plain = _V3.replace(rope_scaling=None).softmax_scale
    assert plain == pytest.approx(192**-0.5)
    assert _V3.softmax_scale / plain == pytest.approx(1.8739, abs=1e-4)


def test_frequencies_given_are_taken_as_they_are() -> None:
    config = ModelConfig.named("debug")
    given = tuple(0.5 + n for n in range(config.qk_rope_head_dim // 2))
    assert inverse_frequencies(config.replace(rope_frequencies=given)).tolist() == list(given)


def test_turning_is_multiplication_of_complex_numbers() -> None:
    config = ModelConfig.named("debug")
    half = config.qk_rope_head_dim // 2
    x = torch.randn(2, 5, 3, 2 * half, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 7, 300]])
    cos, sin = Rope(config)(positions, 301)
    turned = rotate(x, cos[:, :, None], sin[:, :, None])
    angle = positions[..., None, None] * inverse_frequencies(config)
    expected = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    assert torch.allclose(turned, torch.cat([expected.real, expected.imag], -1), atol=1e-5)


def test_a_turn_has_the_turn_back_as_its_gradient() -> None:
    x = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(1, 4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotate(x, angle.cos(), angle.sin()), x)


def test_tables_grow_and_keep_what_they_said() -> None:
    rope = Rope(ModelConfig.named("debug"))
    short = rope(torch.arange(10), 10)[0]
    rope(torch.tensor([5000]), 5001)
    assert torch.equal(rope(torch.arange(10), 10)[0], short)
