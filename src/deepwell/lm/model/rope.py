"""Rotary position: frequencies, their stretching to long contexts, and the rotation itself (arXiv 2104.09864).

In memory the two values of a pair stand half a part apart: pair j is dimensions j and j + D/2. DeepSeek's files hold
them side by side (2j, 2j + 1); `deepwell.lm.weights` permutes rows once when it reads or writes, and nothing is
permuted here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from deepwell.lm.model.config import ModelConfig, RopeScaling, yarn_mscale


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians a position for each pair, float32 [qk_rope_head_dim / 2], stretched as the config says."""
    if config.rope_frequencies is not None:
        return torch.tensor(config.rope_frequencies, dtype=torch.float32)
    width = config.qk_rope_head_dim
    plain = 1.0 / (config.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(plain, scaling)
    return _yarn(plain, scaling, config)


def _yarn(plain: Tensor, scaling: RopeScaling, config: ModelConfig) -> Tensor:
    """Fast pairs keep their frequency, slow ones are divided by the factor, a ramp between (arXiv 2309.00071, 3.2)."""
    width = config.qk_rope_head_dim

    def pair_that_turns(times: float) -> float:
        span = scaling.original_max_position_embeddings / (times * 2 * math.pi)
        return width * math.log(span) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(scaling.beta_slow)), width - 1)
    ramp = (torch.arange(width // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    return plain / scaling.factor * (1 - keep) + plain * keep


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """By wavelength: short ones stay, long ones are divided by the factor, a blend between (Llama 3.1)."""
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0, 1)
    return plain / scaling.factor * (1 - keep) + plain * keep


def magnitude(config: ModelConfig) -> float:
    """What cosines and sines are multiplied by. 1 in every DeepSeek model, whose two mscales are equal."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor, 1.0)


class Rope:
    """Cosines and sines for positions, made when first asked for and kept. No module: no dtype can be forced on it."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """For ``positions`` [...] int64, all below ``length``: cosines and sines, float32 [..., D/2]."""
        cos, sin = self._table(positions.device, length)
        return cos[positions], sin[positions]

    def _table(self, device: torch.device, length: int) -> tuple[Tensor, Tensor]:
        known = self._tables.get(device)
        if known is None or known[0].shape[0] < length:
            length = max(256, 1 << (length - 1).bit_length())
            angles = torch.arange(length, dtype=torch.float32)[:, None] * inverse_frequencies(self._config)
            times = magnitude(self._config)
            known = ((angles.cos() * times).to(device), (angles.sin() * times).to(device))
            self._tables[device] = known
        return known

    def __deepcopy__(self, memo: dict[int, Any]) -> Rope:
        return Rope(self._config)


class _Rotate(torch.autograd.Function):
    """The backward pass of a turn is the turn back: nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    half = first.shape[-1]
    out[..., :half] = first * cos - second * sin
    out[..., half:] = second * cos + first * sin
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of ``x`` [..., D] by the angles of ``cos`` and ``sin`` [..., D/2], which broadcast. Same dtype."""
    return _Rotate.apply(x, cos, sin)  # type: ignore[no-any-return,no-untyped-call]
