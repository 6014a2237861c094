"""What a network is: one frozen record with the field's own names.

A ``ModelConfig`` describes every network of Deepwell. DeepSeek-V2-Lite, V2, V3 and R1 are plain values of it. Llama,
Mistral, Qwen2 and SmolLM are exact special cases, by four switches that DeepSeek's models leave at their defaults:

- ``kv_up_proj=False``: the latent *is* the values of the key/value heads, side by side; nothing is expanded;
- ``rope_key_heads=G``: G rotary keys a token and not one that all heads share (G divides the heads);
- ``latent_norm=False``: latents are not normalised;
- ``qk_nope_head_dim=0``: rope turns the whole key.

So grouped-query attention with G heads of width d has a latent row of G*d values and G*d rotated keys: exactly what it
would cache anyway.

Names follow the configuration files of DeepSeek on the Hugging Face hub; ``from_hf`` and ``to_hf`` translate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deepwell.errors import ModelConfigError

ScoringFunction = Literal["sigmoid", "softmax"]
TopkMethod = Literal["noaux_tc", "group_limited_greedy", "greedy"]
RopeKind = Literal["yarn", "llama3", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched to a longer context than a model was trained on.

    ``yarn`` (arXiv 2309.00071, as DeepSeek uses it; ``mscale`` and ``mscale_all_dim`` temper the softmax), ``llama3``
    (Llama 3.1), or ``linear``.
    """

    kind: RopeKind
    factor: float
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in {"yarn", "llama3", "linear"}:
            raise ModelConfigError(f"rope_scaling.kind is {self.kind!r}; known are yarn, llama3 and linear")
        if self.factor < 1:
            raise ModelConfigError(f"rope_scaling.factor is {self.factor}; it stretches, so it is at least 1")
        if self.beta_fast < self.beta_slow:
            raise ModelConfigError(
                f"rope_scaling.beta_fast ({self.beta_fast}) is below rope_scaling.beta_slow ({self.beta_slow})"
            )
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ModelConfigError(
                f"rope_scaling.high_freq_factor ({self.high_freq_factor}) is not above "
                f"rope_scaling.low_freq_factor ({self.low_freq_factor})"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicGating:
    """Each token takes the fewest best experts whose share of its gate mass reaches ``share``.

    The mass is over all experts that the groups leave it to choose from. At least ``minimum`` and at most ``maximum``
    experts are taken. After "Harder Tasks Need More Experts" (arXiv 2403.07652).
    """

    share: float
    minimum: int = 1
    maximum: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ModelConfigError(f"dynamic_gating.share is {self.share}; it lies above 0 and up to 1")
        if not 1 <= self.minimum <= self.maximum:
            raise ModelConfigError(
                f"dynamic_gating.minimum ({self.minimum}) and dynamic_gating.maximum ({self.maximum}): "
                "the minimum is at least 1 and no more than the maximum"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a network. Values are checked against each other when one is made.

    Raises:
        ModelConfigError: Two fields contradict each other (the message names both), or one is out of its range.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    """None: queries come straight from the hidden state, as in V2-Lite."""

    moe_intermediate_size: int = 0
    n_routed_experts: int = 0
    """0: every layer is dense."""
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    n_group: int = 1
    topk_group: int = 1
    scoring_func: ScoringFunction = "sigmoid"
    topk_method: TopkMethod = "noaux_tc"
    norm_topk_prob: bool = True
    weigh_experts: bool = True
    """False: scores choose and do not weigh; every chosen expert counts fully (a dense layer that was split)."""
    routed_scaling_factor: float = 1.0
    aux_loss_alpha: float = 1e-4
    """Weight of the sequence-wise balance loss; the V3 report says 1e-4, published config files say 1e-3."""
    dynamic_gating: DynamicGating | None = None

    num_nextn_predict_layers: int = 0
    """Depth D of multi-token prediction."""

    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rope_frequencies: tuple[float, ...] | None = None
    """The qk_rope_head_dim / 2 inverse frequencies themselves, where no formula gives them (a compressed model)."""
    max_position_embeddings: int = 4096
    sliding_window: int | None = None
    """A token sees itself and the ``sliding_window - 1`` before it; None: all before it."""
    tie_word_embeddings: bool = False
    initializer_range: float = 0.006
    """Standard deviation of the initial weights (V3 report; published config files say 0.02)."""

    kv_up_proj: bool = True
    rope_key_heads: int = 1
    latent_norm: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False

    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    name: str = ""
    """What people call it; means nothing to the network."""

    def __post_init__(self) -> None:
        _check(self)

    # ---- what follows from the fields ----

    @property
    def qk_head_dim(self) -> int:
        """Width of one query head: the part without rope, then the part with it."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def rope_key_width(self) -> int:
        """Values of rotary key that a token caches in a layer."""
        return self.rope_key_heads * self.qk_rope_head_dim

    @property
    def latent_width(self) -> int:
        """Values that a token caches in a layer: the latent and the rotary key. Nothing else is cached."""
        return self.kv_lora_rank + self.rope_key_width

    @property
    def is_grouped(self) -> bool:
        """Whether the attention is plain grouped-query attention, as in Llama and Qwen2."""
        return not self.kv_up_proj

    def is_moe_layer(self, layer: int) -> bool:
        """Whether this layer (from 0; the MTP modules follow the last) mixes experts."""
        return (
            self.n_routed_experts > 0
            and layer >= self.first_k_dense_replace
            and (layer % self.moe_layer_freq == 0 or layer >= self.num_hidden_layers)
        )

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers that mix experts, MTP modules not counted."""
        return tuple(layer for layer in range(self.num_hidden_layers) if self.is_moe_layer(layer))

    def cache_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """What one token costs in the cache, over all layers, MTP modules not counted."""
        return self.num_hidden_layers * self.latent_width * bytes_per_value

    @property
    def softmax_scale(self) -> float:
        """1 / sqrt(width of a head), times YaRN's ``mscale`` squared (V3code; arXiv 2309.00071)."""
        scale: float = self.qk_head_dim**-0.5
        scaling = self.rope_scaling
        if scaling is not None and scaling.kind == "yarn" and scaling.mscale_all_dim:
            scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
        return scale

    # ---- making one ----

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def named(cls, name: str) -> ModelConfig:
        """One of the published or test shapes: see ``NAMES`` in ``deepwell.lm.model.named``.

        Raises:
            ModelConfigError: No such name; the message lists them.
        """
        from deepwell.lm.model.named import named

        return named(name)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, where: str = "config.json") -> ModelConfig:
        """Read the content of a ``config.json``: deepseek_v2, deepseek_v3, llama, mistral, qwen2, or our own.

        Raises:
            ModelConfigError: The architecture is unknown, a field is missing or has the wrong type, or two disagree.
        """
        from deepwell.lm.model.hf_config import read

        return read(config, where=where)

    def to_hf(self) -> dict[str, Any]:
        """The content of a ``config.json`` that stock tools read.

        ``model_type`` is deepseek_v2, deepseek_v3, llama, mistral or qwen2 where one of these says all that this config
        says, and ``deepwell`` where none does; ``from_hf`` reads each back to an equal config.
        """
        from deepwell.lm.model.hf_config import write

        return write(self)


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's temper: 0.1 * mscale * ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _check(c: ModelConfig) -> None:
    """Every contradiction, each with the names and values of the fields that disagree."""
    for field in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank",
        "qk_rope_head_dim", "v_head_dim", "n_group", "topk_group", "moe_layer_freq", "max_position_embeddings",
        "rope_key_heads",
    ):  # fmt: skip
        _at_least(c, field, 1)
    for field in (
        "qk_nope_head_dim", "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
        "first_k_dense_replace", "num_nextn_predict_layers",
    ):  # fmt: skip
        _at_least(c, field, 0)
    if c.q_lora_rank is not None:
        _at_least(c, "q_lora_rank", 1)
    if c.sliding_window is not None:
        _at_least(c, "sliding_window", 1)
    if c.rms_norm_eps <= 0 or c.rope_theta <= 0:
        raise ModelConfigError(f"rms_norm_eps ({c.rms_norm_eps}) and rope_theta ({c.rope_theta}) must be above 0")
    if c.scoring_func not in {"sigmoid", "softmax"}:
        raise ModelConfigError(f"scoring_func is {c.scoring_func!r}; known are sigmoid and softmax")
    if c.topk_method not in {"noaux_tc", "group_limited_greedy", "greedy"}:
        raise ModelConfigError(f"topk_method is {c.topk_method!r}; known are noaux_tc, group_limited_greedy and greedy")
    _check_attention(c)
    if c.n_routed_experts:
        _check_experts(c)
    for field, value in (("bos_token_id", c.bos_token_id), ("pad_token_id", c.pad_token_id)):
        if value is not None and value >= c.vocab_size:
            _clash(c, field, "vocab_size", "the token lies outside the vocabulary")
    if any(token >= c.vocab_size for token in c.eos_token_id):
        _clash(c, "eos_token_id", "vocab_size", "the token lies outside the vocabulary")


def _check_attention(c: ModelConfig) -> None:
    if c.qk_rope_head_dim % 2:
        raise ModelConfigError(f"qk_rope_head_dim is {c.qk_rope_head_dim}; rope turns pairs, so it is even")
    if c.num_attention_heads % c.rope_key_heads:
        _clash(c, "num_attention_heads", "rope_key_heads", "every rotary key serves equally many heads")
    if c.rope_frequencies is not None:
        if len(c.rope_frequencies) * 2 != c.qk_rope_head_dim:
            raise ModelConfigError(
                f"rope_frequencies has {len(c.rope_frequencies)} values and qk_rope_head_dim is {c.qk_rope_head_dim}: "
                "there is one frequency for every two dimensions"
            )
        if c.rope_scaling is not None:
            raise ModelConfigError("rope_frequencies and rope_scaling are both given: frequencies given are final")
    if c.is_grouped:
        if c.kv_lora_rank != c.rope_key_heads * c.v_head_dim:
            raise ModelConfigError(
                f"kv_up_proj is off, so kv_lora_rank ({c.kv_lora_rank}) must be rope_key_heads x v_head_dim "
                f"({c.rope_key_heads} x {c.v_head_dim}): the latent is the values themselves"
            )
        for field in ("latent_norm", "qk_nope_head_dim", "q_lora_rank"):
            if getattr(c, field):
                _clash(c, "kv_up_proj", field, "grouped attention has no such part")


def _check_experts(c: ModelConfig) -> None:
    if not c.moe_intermediate_size:
        _clash(c, "n_routed_experts", "moe_intermediate_size", "experts need a width")
    if not 1 <= c.num_experts_per_tok <= c.n_routed_experts:
        _clash(c, "num_experts_per_tok", "n_routed_experts", "a token takes at least one and at most all")
    if c.n_routed_experts % c.n_group:
        _clash(c, "n_routed_experts", "n_group", "groups are of equal size")
    if c.topk_group > c.n_group:
        _clash(c, "topk_group", "n_group", "more groups are kept than there are")
    size = c.n_routed_experts // c.n_group
    if c.num_experts_per_tok > c.topk_group * size:
        raise ModelConfigError(
            f"num_experts_per_tok ({c.num_experts_per_tok}) is above what topk_group ({c.topk_group}) groups of "
            f"{size} experts hold"
        )
    if c.topk_method == "noaux_tc" and c.n_group > 1 and size < 2:
        _clash(c, "n_group", "n_routed_experts", "a group's score is the sum of its two best, so it holds at least two")
    if c.topk_method == "greedy" and c.n_group > 1 and c.topk_group != c.n_group:
        _clash(c, "topk_method", "topk_group", "greedy choice knows no groups")
    gating = c.dynamic_gating
    if gating is not None and gating.maximum > c.topk_group * size:
        raise ModelConfigError(
            f"dynamic_gating.maximum ({gating.maximum}) is above what topk_group ({c.topk_group}) groups of "
            f"{size} experts hold"
        )


def _at_least(c: ModelConfig, field: str, least: int) -> None:
    value = getattr(c, field)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ModelConfigError(f"{field} is {value!r}; it is a whole number of at least {least}")


def _clash(c: ModelConfig, one: str, other: str, why: str) -> None:
    raise ModelConfigError(f"{one} ({getattr(c, one)!r}) and {other} ({getattr(c, other)!r}) disagree: {why}")
