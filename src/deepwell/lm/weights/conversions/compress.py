"""Grouped attention to true multi-head latent attention with a smaller cache.

A grouped network of G key/value heads caches G keys and G values a token and layer. Here one rotary key of
``rope_dims`` dimensions, which all heads share, and a latent of rank ``kv_rank`` take their place:

1. a calibration text is read once, forward and backward, for what matters where (``calibration``);
2. key heads are mixed, frequency by frequency, and the pairs that need to turn become the shared key (``rotary``);
3. all else, the keys that no longer turn and the values, becomes one latent of low rank (``lowrank``), in which keys
   and values have their weights by what the loss loses;
4. on request, output matrices are fitted again by least squares, behind what was changed (``refit``).

Facts from TransMLA (arXiv 2502.07864) and MHA2MLA (arXiv 2502.14837); the weighing by Fisher information, the mean turn
in place of lost rope, and factors per query head are our own additions. No weight is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.rope import inverse_frequencies, magnitude
from deepwell.lm.model.transformer import Block, Transformer
from deepwell.lm.weights.conversions.calibration import (
    AttentionStatistics,
    Progress,
    Projections,
    observe,
    projections,
)
from deepwell.lm.weights.conversions.lowrank import Targets, factorise
from deepwell.lm.weights.conversions.rebuild import rebuilt, windows_of
from deepwell.lm.weights.conversions.refit import refit as refit_outputs
from deepwell.lm.weights.conversions.rotary import SharedKey, choose_pairs, mix_pairs, share_key

__all__ = ["CalibratedNetwork", "calibrate", "compress"]

WINDOW = 512
"""Tokens that a calibration window has; attention is looked at in full, so time grows with its square."""
WINDOWS = 12
"""Windows that are looked at; a longer text is sampled evenly."""
KEYS = 3.0
"""How much more an error of keys counts than the Fisher information says, which sees small errors only. On SmolLM2 at a
quarter of the cache 3 was better than 1/3, 1 and 10 (perplexity 74 to 109, 79 and 85 before fitting again)."""
REFIT_WINDOWS = 16
"""Windows that output matrices are fitted to."""


@dataclass(frozen=True, slots=True)
class CalibratedNetwork:
    """A network and what a text showed of it, for compressing it more than once."""

    model: Transformer
    statistics: list[AttentionStatistics]
    windows: Tensor
    """[count, length] tokens for fitting output matrices again"""

    def compress(
        self,
        *,
        kv_rank: int,
        rope_dims: int,
        refit: bool = False,
        rounds: int = 4,
        on_progress: Progress | None = None,
    ) -> Transformer:
        """As the function ``compress``, without looking at the whole text again."""
        model, config = self.model, self.model.config
        _check(config, kv_rank, rope_dims)
        matrices = [projections(cast(Block, block).self_attn, config) for block in model.layers]
        mixes = [mix_pairs(matrix, seen) for matrix, seen in zip(matrices, self.statistics, strict=True)]
        counts = choose_pairs(mixes, rope_dims // 2)
        new = _config(config, kv_rank, counts)
        changes: dict[str, Tensor | None] = {}
        for layer, (matrix, seen, mix) in enumerate(zip(matrices, self.statistics, mixes, strict=True)):
            shared = share_key(matrix, seen, mix, counts)
            for name, tensor in _attention(config, new, matrix, seen, shared, rounds).items():
                changes[f"layers.{layer}.self_attn.{name}"] = tensor
            if on_progress is not None:
                on_progress(layer + 1, len(matrices))
        smaller = rebuilt(model, new, changes)
        return refit_outputs(model, smaller, self.windows, on_progress=on_progress) if refit else smaller


def calibrate(model: Transformer, calibration: Tensor, *, on_progress: Progress | None = None) -> CalibratedNetwork:
    """Look at ``calibration`` [N], the tokens of a text; 12 windows of 512 tokens are taken from it.

    Raises:
        UsageError: The network's attention is not grouped, or the text has fewer tokens than one window.
    """
    if not model.config.is_grouped:
        raise UsageError(
            "this network has multi-head latent attention already", hint="compress Llama, Mistral, Qwen2 or SmolLM"
        )
    if model.mtp:
        raise UsageError("modules of multi-token prediction are not compressed", hint="save the network without them")
    length = min(WINDOW, model.config.max_position_embeddings)
    windows = windows_of(calibration, length, most=WINDOWS)
    statistics = observe(model, windows, on_progress=on_progress)
    return CalibratedNetwork(model, statistics, windows_of(calibration, length, most=REFIT_WINDOWS))


def compress(
    model: Transformer,
    *,
    kv_rank: int,
    rope_dims: int,
    calibration: Tensor,
    refit: bool = False,
    on_progress: Progress | None = None,
) -> Transformer:
    """MLA with one shared rotary key and a latent of low rank.

    Args:
        model: Has grouped attention, in float32 best. It keeps its weights.
        kv_rank: Rank of the latent. With ``rope_dims`` it is what a token caches in a layer.
        rope_dims: Dimensions of the shared rotary key. As many as a head has: one pair of every frequency, so that the
            new network turns as any other. Otherwise the pairs that need it most, and ``rope_frequencies`` says which.
        calibration: [N] tokens of a text like those that the network will see; 6,000 are looked at.
        refit: Fit ``o_proj`` and ``down_proj`` again behind each compressed layer, by least squares. On short texts it
            fits the text more than the network, so it is off.
        on_progress: Called with the steps done and the steps there are.

    Returns:
        A network without latent norm whose cache has ``kv_rank + rope_dims`` values a token and layer. With all
        ``rope_dims`` (key heads times head) and ``kv_rank`` as wide as all values it equals ``model``.

    Raises:
        UsageError: The network is MLA already, a number is out of its range, or the text is too short.
    """
    _check(model.config, kv_rank, rope_dims)
    calibrated = calibrate(model, calibration, on_progress=on_progress)
    return calibrated.compress(kv_rank=kv_rank, rope_dims=rope_dims, refit=refit, on_progress=on_progress)


def _check(config: ModelConfig, kv_rank: int, rope_dims: int) -> None:
    if kv_rank < 1:
        raise UsageError(f"kv_rank is {kv_rank}; a latent has at least 1 value")
    if rope_dims < 2 or rope_dims % 2:
        raise UsageError(f"rope_dims is {rope_dims}; rope turns pairs, so it is even and at least 2")
    if rope_dims > config.rope_key_width:
        raise UsageError(f"rope_dims is {rope_dims}; the keys of this network have {config.rope_key_width}")


def _config(config: ModelConfig, kv_rank: int, counts: Tensor) -> ModelConfig:
    """The new shape. Frequencies are named one by one unless they are those that the network had."""
    frequencies = inverse_frequencies(config).repeat_interleave(counts)
    same = bool((counts == 1).all())
    return config.replace(
        kv_up_proj=True,
        kv_lora_rank=kv_rank,
        qk_nope_head_dim=2 * int((counts < config.rope_key_heads).sum()),
        qk_rope_head_dim=2 * len(frequencies),
        rope_key_heads=1,
        rope_frequencies=config.rope_frequencies if same else tuple(frequencies.tolist()),
        rope_scaling=config.rope_scaling if same else None,
    )


def _attention(
    old: ModelConfig, new: ModelConfig, matrix: Projections, seen: AttentionStatistics, shared: SharedKey, rounds: int
) -> dict[str, Tensor | None]:
    """The tensors of one attention layer."""
    heads, still = old.num_attention_heads, new.qk_nope_head_dim
    each = heads // old.rope_key_heads
    value = matrix.value.repeat_interleave(each, dim=0)  # [H, V, X]
    matter = KEYS * seen.queries[:, shared.kept][:, :, shared.kept]
    targets = Targets(*(_stacked(one, other) for one, other in (
        (shared.still_key, value), (matter, seen.outputs), (seen.scored, seen.attended)
    )))  # fmt: skip
    found = factorise(targets, new.kv_lora_rank, rounds=rounds)
    up = torch.cat([found.up[:heads, :still], found.up[heads:, : old.v_head_dim]], dim=1)
    # The softmax divides by the new width; and cosines may have been stretched (YaRN) and be so no longer.
    scale = old.softmax_scale * magnitude(old) ** 2 / new.softmax_scale
    query = torch.cat([shared.still_query * scale, shared.query * (scale / magnitude(new) ** 2)], dim=1).flatten(0, 1)
    rows = torch.cat([found.down, shared.key])
    hidden = old.hidden_size
    tensors: dict[str, Tensor | None] = {
        "q_proj.weight": query[:, :hidden],
        "kv_a_proj_with_mqa.weight": rows[:, :hidden],
        "kv_b_proj.weight": up.flatten(0, 1),
    }
    if old.qkv_bias:
        tensors |= {"q_proj.bias": query[:, hidden], "kv_a_proj_with_mqa.bias": rows[:, hidden]}
    return tensors


def _stacked(keys: Tensor, values: Tensor) -> Tensor:
    """Those of keys and those of values as one stack, the narrower ones filled with zeros."""
    shape = [max(one, other) for one, other in zip(keys.shape[1:], values.shape[1:], strict=True)]
    stack = keys.new_zeros(len(keys) + len(values), *shape)
    stack[: len(keys), : keys.shape[1], : keys.shape[2]] = keys
    stack[len(keys) :, : values.shape[1], : values.shape[2]] = values
    return stack
