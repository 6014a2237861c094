"""Rope scaling in GGUF's words and back."""

import math
from typing import Any

import pytest
import torch

from deepwell.errors import ModelFileError, ModelFormatError
from deepwell.lm.model.config import ModelConfig, RopeScaling
from deepwell.lm.model.rope import inverse_frequencies, magnitude
from deepwell.lm.weights.gguf.rope import frequency_factors, read_frequency_factors, read_scaling, write_scaling

LATENT = ModelConfig.named("debug")
GROUPED = ModelConfig.named("smollm2-135m")


def llama_cpp(keys: dict[str, Any], architecture: str) -> tuple[float, float]:
    """What llama.cpp multiplies cosines and the softmax by: its llama-context.cpp and deepseek2.cpp, line by line."""
    factor, yarn = keys["scaling.factor"], keys["scaling.type"] == "yarn"
    log_mul = keys.get("scaling.yarn_log_multiplier", 0.0) / 0.1
    log = math.log(factor)
    attn = 1.0
    if yarn:
        attn = 1.0 if log_mul != 0 else 1 + 0.1 * log
        attn *= 1 / (1 + 0.1 * log)
    attn *= keys.get("scaling.attn_factor", 1.0)
    cosines = attn * (1 + 0.1 * log) if yarn else attn
    if architecture != "deepseek2":
        return cosines, 1.0
    return cosines, (attn * (1 + 0.1 * log) * (1 + 0.1 * log_mul * log)) ** 2


SCALINGS = [
    RopeScaling(kind="yarn", factor=40, mscale=1.0, mscale_all_dim=1.0),
    RopeScaling(kind="yarn", factor=40, mscale=0.707, mscale_all_dim=0.707),
    RopeScaling(kind="yarn", factor=8, mscale=1.0, mscale_all_dim=0.5),
    RopeScaling(kind="yarn", factor=8),
    RopeScaling(kind="yarn", factor=8, mscale_all_dim=1.0),
    RopeScaling(kind="yarn", factor=4, attention_factor=1.0),
    RopeScaling(kind="yarn", factor=4, attention_factor=1.3, mscale_all_dim=0.4),
    RopeScaling(kind="linear", factor=4),
]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_llama_cpp_computes_the_same_from_the_keys(scaling: RopeScaling) -> None:
    config = LATENT.replace(rope_scaling=scaling)
    keys = write_scaling(config, "deepseek2")
    softmax = config.softmax_scale * math.sqrt(config.qk_head_dim)
    assert llama_cpp(keys, "deepseek2") == pytest.approx((magnitude(config), softmax), rel=1e-6)
    grouped = GROUPED.replace(rope_scaling=scaling)
    cosines, _ = llama_cpp(write_scaling(grouped, "llama"), "llama")
    wanted = magnitude(grouped) ** 2 * grouped.softmax_scale * math.sqrt(grouped.qk_head_dim)
    assert cosines**2 == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_what_is_written_is_read_back_to_the_same_network(scaling: RopeScaling) -> None:
    config = LATENT.replace(rope_scaling=scaling)
    fields = {f"deepseek2.rope.{key}": value for key, value in write_scaling(config, "deepseek2").items()}
    read = config.replace(rope_scaling=read_scaling(fields, "deepseek2", where="a.gguf"))
    assert magnitude(read) == pytest.approx(magnitude(config), rel=1e-5)
    assert read.softmax_scale == pytest.approx(config.softmax_scale, rel=1e-5)
    assert torch.allclose(inverse_frequencies(read), inverse_frequencies(config))
    if scaling.mscale == scaling.mscale_all_dim != 0:
        assert read.rope_scaling == scaling


def test_a_scaling_that_is_not_known_is_an_error() -> None:
    with pytest.raises(ModelFileError, match=r"a\.gguf: llama\.rope\.scaling\.type is 'longrope'"):
        read_scaling({"llama.rope.scaling.type": "longrope"}, "llama", where="a.gguf")
    assert (
        read_scaling({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, "llama", where="") is None
    )


def test_llama_31_is_a_vector_of_factors() -> None:
    llama31 = ModelConfig.named("r1-distill-llama-8b")
    factors = frequency_factors(llama31)
    assert factors is not None
    assert factors.min() == 1
    assert factors.max() == pytest.approx(8)
    assert read_frequency_factors(factors, llama31.replace(rope_scaling=None)) == llama31
    assert read_frequency_factors(torch.ones(64), llama31.replace(rope_scaling=None)).rope_scaling is None


def test_factors_of_no_known_formula_become_frequencies() -> None:
    factors = torch.linspace(1, 3, 32)
    read = read_frequency_factors(factors, GROUPED)
    assert read.rope_frequencies is not None
    assert torch.allclose(inverse_frequencies(read), inverse_frequencies(GROUPED) / factors)
    written = frequency_factors(read)
    assert written is not None
    assert torch.allclose(written, factors, rtol=1e-5)


def test_frequencies_that_a_theta_gives_are_that_theta() -> None:
    plain = inverse_frequencies(LATENT.replace(rope_theta=5000.0))
    keys = write_scaling(LATENT.replace(rope_frequencies=tuple(plain.tolist())), "deepseek2")
    assert keys["freq_base"] == pytest.approx(5000, rel=1e-4)
    with pytest.raises(ModelFormatError, match="rope_frequencies"):
        write_scaling(LATENT.replace(rope_frequencies=tuple((plain * torch.rand(8)).tolist())), "deepseek2")


@pytest.mark.parametrize(
    ("scaling", "field"),
    [
        (RopeScaling(kind="yarn", factor=4, beta_fast=16.0), "beta_fast"),
        (RopeScaling(kind="llama3", factor=8), "llama3"),
    ],
)
def test_what_deepseek2_cannot_say_names_the_field(scaling: RopeScaling, field: str) -> None:
    with pytest.raises(ModelFormatError, match=field):
        write_scaling(LATENT.replace(rope_scaling=scaling), "deepseek2")
