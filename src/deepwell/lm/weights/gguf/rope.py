"""How GGUF says that rope is stretched to longer contexts, and what llama.cpp makes of it.

llama.cpp knows two numbers that matter beside the stretched frequencies: what cosines and sines are multiplied by (our
``magnitude``) and what the softmax is multiplied by (the square of YaRN's ``mscale``). Which metadata gives which pair
depends on the architecture (its src/llama-context.cpp and src/models/deepseek2.cpp). With f the factor, A the key
``attn_factor``, L ten times the key ``yarn_log_multiplier`` and g = 1 + 0.1 ln f:

                          cosines and sines x    softmax x
    llama, qwen2          A g                    1
    deepseek2, L not 0    A                      (A (1 + 0.1 L ln f))^2
    deepseek2, L = 0      A g                    (A g)^2
    deepseek2, linear     A                      (A g (1 + 0.1 L ln f))^2

Llama 3.1 has no keys: its file holds a vector ``rope_freqs.weight`` by which frequencies are divided.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deepwell.errors import ModelFileError, ModelFormatError
from deepwell.lm.model.config import ModelConfig, RopeScaling
from deepwell.lm.model.rope import inverse_frequencies, magnitude

_LLAMA31 = RopeScaling(
    kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)


def read_scaling(fields: Mapping[str, Any], architecture: str, *, where: str) -> RopeScaling | None:
    """The scaling that the metadata describe; None where there is none.

    Raises:
        ModelFileError: A kind that no network here has (longrope).
    """

    def key(name: str, otherwise: Any) -> float:
        value = fields.get(f"{architecture}.rope.scaling.{name}", otherwise)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ModelFileError(f"{where}: {architecture}.rope.scaling.{name} is {value!r}; it is a number")
        return value

    factor = key("factor", fields.get(f"{architecture}.rope.scale_linear", 1.0)) or 1.0
    if factor < 1:
        raise ModelFileError(f"{where}: {architecture}.rope.scaling.factor is {factor}; it is at least 1")
    kind = fields.get(f"{architecture}.rope.scaling.type", "linear")
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if kind != "yarn":
        raise ModelFileError(
            f"{where}: {architecture}.rope.scaling.type is {kind!r}; linear, yarn and none can be read"
        )
    log = math.log(factor) / 10
    attn, multiplier = key("attn_factor", 1.0), key("yarn_log_multiplier", 0.0) * 10
    length = fields.get(f"{architecture}.context_length", 4096)
    shape: dict[str, Any] = {
        "factor": factor,
        "original_max_position_embeddings": max(1, int(key("original_context_length", length))),
        "beta_fast": key("yarn_beta_fast", 32.0),
        "beta_slow": key("yarn_beta_slow", 1.0),
    }
    if architecture == "deepseek2" and multiplier:
        multiplier = round(multiplier, 6)  # 0.1 x 0.707 in float32 is not 0.0707
        if attn == 1:
            return RopeScaling(kind="yarn", mscale=multiplier, mscale_all_dim=multiplier, **shape)
        softmax = attn * (1 + multiplier * log)
        usual = math.isclose(attn, 1 + log, rel_tol=1e-6)  # what is taken where a config says nothing
        factor_or_none = None if usual else attn
        return RopeScaling(kind="yarn", attention_factor=factor_or_none, mscale_all_dim=_mscale(softmax, log), **shape)
    attention_factor = None if attn == 1 else attn * (1 + log)
    if architecture == "deepseek2":
        return RopeScaling(
            kind="yarn", attention_factor=attention_factor, mscale_all_dim=_mscale(attn * (1 + log), log), **shape
        )
    return RopeScaling(kind="yarn", attention_factor=attention_factor, **shape)


def write_scaling(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """The keys after ``{architecture}.rope.``; the inverse of ``read_scaling``.

    Raises:
        ModelFormatError: llama.cpp would compute something else.
    """
    theta = config.rope_theta
    if config.rope_frequencies is not None and architecture != "llama":
        found = _theta_of(config.rope_frequencies)
        if found is None:
            raise ModelFormatError(
                f"GGUF {architecture} cannot express rope_frequencies: its frequencies follow from rope_theta",
                hint="compress with as many rope dimensions as a head has, or save in the deepseek format",
            )
        theta = found
    keys: dict[str, Any] = {"freq_base": float(theta)}
    scaling = config.rope_scaling
    if scaling is None:
        return keys
    if scaling.kind == "llama3":
        if architecture != "llama":
            raise ModelFormatError(
                f"GGUF {architecture} cannot express rope_scaling.kind llama3", hint="save in the deepseek format"
            )
        return keys  # said by the vector, see frequency_factors
    keys["scaling.type"] = scaling.kind
    keys["scaling.factor"] = float(scaling.factor)
    log = math.log(scaling.factor) / 10
    if scaling.kind == "linear":
        if architecture == "deepseek2":
            keys["scaling.yarn_log_multiplier"] = -0.1 / (1 + log)  # g (1 + 0.1 L ln f) = 1
        return keys
    if (scaling.beta_fast, scaling.beta_slow) != (32.0, 1.0):
        raise ModelFormatError(
            f"GGUF {architecture} cannot express rope_scaling.beta_fast {scaling.beta_fast} and beta_slow "
            f"{scaling.beta_slow}: llama.cpp always takes 32 and 1",
            hint="save in the deepseek format",
        )
    keys["scaling.original_context_length"] = scaling.original_max_position_embeddings
    times = magnitude(config)
    softmax = math.sqrt(config.softmax_scale * math.sqrt(config.qk_head_dim))
    if architecture != "deepseek2":
        attn = times * softmax / (1 + log)  # rope turns the whole key, so both factors meet in the same product
    elif math.isclose(times, softmax):
        attn = times / (1 + log)
    else:
        attn = times
        keys["scaling.yarn_log_multiplier"] = (softmax / times - 1) / log / 10 if log else 0.1
    if not math.isclose(attn, 1):
        keys["scaling.attn_factor"] = attn
    return keys


def read_frequency_factors(factors: Tensor, config: ModelConfig) -> ModelConfig:
    """The config with what a vector ``rope_freqs.weight`` says: Llama 3.1's scaling where it fits, else frequencies."""
    if bool((factors == 1).all()):
        return config
    plain = inverse_frequencies(config.replace(rope_scaling=None))
    wanted = plain / factors
    if factors.max() < 1:
        return config.replace(rope_scaling=None, rope_frequencies=tuple(wanted.tolist()))
    llama31 = config.replace(rope_scaling=dataclasses.replace(_LLAMA31, factor=float(factors.max())))
    if torch.allclose(inverse_frequencies(llama31), wanted, rtol=1e-5, atol=0):
        return llama31
    return config.replace(rope_scaling=None, rope_frequencies=tuple(wanted.tolist()))


def frequency_factors(config: ModelConfig) -> Tensor | None:
    """The vector ``rope_freqs.weight``, float32 [D/2], where the network needs one."""
    llama3 = config.rope_scaling is not None and config.rope_scaling.kind == "llama3"
    if config.rope_frequencies is None and not llama3:
        return None
    plain = inverse_frequencies(config.replace(rope_scaling=None, rope_frequencies=None))
    return plain / inverse_frequencies(config)


def _mscale(softmax: float, log: float) -> float:
    """The ``mscale_all_dim`` that gives this factor."""
    return round((softmax - 1) / log, 6) + 0.0 if log else 0.0


def _theta_of(frequencies: tuple[float, ...]) -> float | None:
    """The theta that gives these frequencies, if one does."""
    wanted = torch.tensor(frequencies, dtype=torch.float64)
    pairs = torch.arange(len(frequencies), dtype=torch.float64) / len(frequencies)
    theta = float(wanted[-1] ** (-1 / pairs[-1])) if len(frequencies) > 1 else 10_000.0
    return theta if torch.allclose(theta**-pairs, wanted, rtol=1e-6, atol=0) else None
