"""What a network costs, counted from its config alone: parameters, bytes, cache, FLOPs.

    >>> from deepwell.lm.model.config import ModelConfig
    >>> account = Account.of(ModelConfig.named("deepseek-v3"))
    >>> round(account.parameters / 1e9, 1), round(account.active_parameters / 1e9, 1), account.cache_bytes_per_token
    (671.0, 36.6, 70272)

- **parameters** are those of the network itself; modules of multi-token prediction are counted apart, as DeepSeek does
  (671B, and 14B more in the files with the copies of embedding and head that these hold).
- **active parameters** take part in a product for one token: of the routed experts those that a token takes, and not
  the embedding, which is looked up. (DeepSeek's README says 36.7B with embedding and head.) A tied embedding is the
  head, and counts. With dynamic gating the configured ``num_experts_per_tok`` is counted.
- **plain cache** is that of the same heads with keys and values of their own, without a decoupled rotary part (V2,
  table 1: 2 * n_h * d_h a layer).
- **FLOPs** are two for each active parameter, and the attention of a token that sees ``context`` tokens, decompressed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deepwell.lm.model.config import ModelConfig

Precision = Literal["bf16", "f16", "f32", "fp8"]

PARTS = (
    "embedding", "attention", "feed-forward", "routed experts", "shared experts", "router", "norms", "head",
    "multi-token prediction",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter tensor of the network, by its name in memory."""

    name: str
    shape: tuple[int, ...]
    part: str
    layer: int | None = None
    active: float = 1.0
    """The share of it that one token takes part in: K/E for stacked experts, 0 for a table that is looked up."""

    @property
    def size(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)

    def stored_bytes(self, precision: Precision = "bf16") -> int:
        """What it takes in a file. FP8 as DeepSeek stores it: projections in one byte, and a float32 for each block of
        128 x 128; the rest (embedding, head, router, norms, ``eh_proj``) in bf16.
        """
        if precision != "fp8":
            return self.size * (4 if precision == "f32" else 2)
        if not self.is_projection:
            return self.size * 2
        # Stacked experts are stored one by one, gate and up apart.
        halves = 2 if self.name.endswith("gate_up_proj") else 1
        rows, columns = self.shape[-2] // halves, self.shape[-1]
        matrices = halves * math.prod(self.shape[:-2])
        return self.size + 4 * matrices * math.ceil(rows / 128) * math.ceil(columns / 128)

    @property
    def is_projection(self) -> bool:
        """Whether it is a matrix of attention or feed-forward, the kind that FP8 files quantise."""
        return "_proj" in self.name and not self.name.endswith((".bias", "eh_proj.weight"))


@dataclass(frozen=True, slots=True)
class LayerAccount:
    """One layer; modules of multi-token prediction follow the last."""

    layer: int
    kind: Literal["dense", "experts", "mtp"]
    attention: int
    feed_forward: int
    """Everything behind the second norm: dense, or router, routed and shared experts."""
    other: int
    active: int

    @property
    def parameters(self) -> int:
        """All of the layer."""
        return self.attention + self.feed_forward + self.other


@dataclass(frozen=True, slots=True)
class Account:
    """What a network costs. See the module for what each figure counts."""

    parameters: int
    mtp_parameters: int
    active_parameters: int
    by_part: dict[str, int]
    bytes_by_part: dict[str, int]
    layers: tuple[LayerAccount, ...]
    context: int
    cache_bytes_per_token: int
    plain_cache_bytes_per_token: int
    grouped_cache_bytes_per_token: int | None
    """Of plain grouped-query attention with the same key heads; None where the latent is expanded."""
    attention_flops_per_token: int
    flops_per_token: int

    @classmethod
    def of(cls, config: ModelConfig, *, context: int = 4096, precision: Precision = "bf16") -> Account:
        """Count.

        Args:
            config: The network.
            context: How many tokens the one whose FLOPs are counted sees, itself included.
            precision: Of the weights whose bytes are counted. The cache is counted at two bytes a value.
        """
        weights = list(weights_of(config))
        main = [weight for weight in weights if weight.part != PARTS[-1]]
        active = round(sum(weight.size * weight.active for weight in main))
        heads, layers = config.num_attention_heads, config.num_hidden_layers
        key = (config.qk_nope_head_dim if config.kv_up_proj else 0) or config.qk_rope_head_dim
        seen = context if config.sliding_window is None else min(context, config.sliding_window)
        attention = 2 * layers * heads * (config.qk_head_dim + config.v_head_dim) * seen
        return cls(
            parameters=sum(weight.size for weight in main),
            mtp_parameters=sum(weight.size for weight in weights) - sum(weight.size for weight in main),
            active_parameters=active,
            by_part=_sums((weight.part, weight.size) for weight in weights),
            bytes_by_part=_sums((weight.part, weight.stored_bytes(precision)) for weight in weights),
            layers=tuple(_layers(config, weights)),
            context=context,
            cache_bytes_per_token=config.cache_bytes_per_token(),
            plain_cache_bytes_per_token=layers * heads * (key + config.v_head_dim) * 2,
            grouped_cache_bytes_per_token=(
                layers * config.rope_key_heads * (key + config.v_head_dim) * 2 if config.is_grouped else None
            ),
            attention_flops_per_token=attention,
            flops_per_token=2 * active + attention,
        )


def weights_of(config: ModelConfig) -> Iterator[Weight]:
    """Every parameter of ``Transformer(config)``, with name and shape. A tied head is the embedding and comes once."""
    c = config
    tied = c.tie_word_embeddings
    yield Weight("embed_tokens.weight", (c.vocab_size, c.hidden_size), "embedding", active=1.0 if tied else 0.0)
    for layer in range(c.num_hidden_layers):
        yield from _block(c, layer, f"layers.{layer}.")
    yield Weight("norm.weight", (c.hidden_size,), "norms")
    for depth in range(c.num_nextn_predict_layers):
        layer, prefix = c.num_hidden_layers + depth, f"mtp.{depth}."
        inner = [Weight(f"{prefix}{norm}.weight", (c.hidden_size,), "") for norm in ("enorm", "hnorm", "norm")]
        inner.append(Weight(f"{prefix}eh_proj.weight", (c.hidden_size, 2 * c.hidden_size), ""))
        for weight in (*inner, *_block(c, layer, f"{prefix}block.")):
            yield Weight(weight.name, weight.shape, PARTS[-1], layer, weight.active)
    if not tied:
        yield Weight("lm_head.weight", (c.vocab_size, c.hidden_size), "head")


def _block(c: ModelConfig, layer: int, prefix: str) -> Iterator[Weight]:
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield Weight(f"{prefix}{norm}.weight", (c.hidden_size,), "norms", layer)
    yield from _attention(c, layer, f"{prefix}self_attn.")
    if not c.is_moe_layer(layer):
        yield from _mlp(c, layer, f"{prefix}mlp.", c.intermediate_size, "feed-forward", c.mlp_bias)
        return
    experts, width, hidden = c.n_routed_experts, c.moe_intermediate_size, c.hidden_size
    share = c.num_experts_per_tok / experts
    yield Weight(f"{prefix}mlp.gate.weight", (experts, hidden), "router", layer)
    yield Weight(f"{prefix}mlp.experts.gate_up_proj", (experts, 2 * width, hidden), "routed experts", layer, share)
    yield Weight(f"{prefix}mlp.experts.down_proj", (experts, hidden, width), "routed experts", layer, share)
    if c.n_shared_experts:
        shared = c.n_shared_experts * width
        yield from _mlp(c, layer, f"{prefix}mlp.shared_experts.", shared, "shared experts", False)


def _attention(c: ModelConfig, layer: int, prefix: str) -> Iterator[Weight]:
    def linear(name: str, rows: int, columns: int, bias: bool = False) -> Iterator[Weight]:
        yield Weight(f"{prefix}{name}.weight", (rows, columns), "attention", layer)
        if bias:
            yield Weight(f"{prefix}{name}.bias", (rows,), "attention", layer)

    heads, hidden = c.num_attention_heads, c.hidden_size
    if c.q_lora_rank is None:
        yield from linear("q_proj", heads * c.qk_head_dim, hidden, c.qkv_bias)
    else:
        yield from linear("q_a_proj", c.q_lora_rank, hidden, c.qkv_bias)
        if c.latent_norm:
            yield Weight(f"{prefix}q_a_layernorm.weight", (c.q_lora_rank,), "norms", layer)
        yield from linear("q_b_proj", heads * c.qk_head_dim, c.q_lora_rank)
    yield from linear("kv_a_proj_with_mqa", c.latent_width, hidden, c.qkv_bias)
    if c.latent_norm:
        yield Weight(f"{prefix}kv_a_layernorm.weight", (c.kv_lora_rank,), "norms", layer)
    if c.kv_up_proj:
        yield from linear("kv_b_proj", heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank)
    yield from linear("o_proj", hidden, heads * c.v_head_dim, c.o_bias)


def _mlp(c: ModelConfig, layer: int, prefix: str, width: int, part: str, bias: bool) -> Iterator[Weight]:
    for name, rows, columns in (
        ("gate_proj", width, c.hidden_size),
        ("up_proj", width, c.hidden_size),
        ("down_proj", c.hidden_size, width),
    ):
        yield Weight(f"{prefix}{name}.weight", (rows, columns), part, layer)
        if bias:
            yield Weight(f"{prefix}{name}.bias", (rows,), part, layer)


def _layers(config: ModelConfig, weights: list[Weight]) -> Iterator[LayerAccount]:
    for layer in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        own = [weight for weight in weights if weight.layer == layer]
        mtp = layer >= config.num_hidden_layers
        attention = sum(weight.size for weight in own if ".self_attn." in weight.name)
        feed_forward = sum(weight.size for weight in own if ".mlp." in weight.name)
        yield LayerAccount(
            layer=layer,
            kind="mtp" if mtp else "experts" if config.is_moe_layer(layer) else "dense",
            attention=attention,
            feed_forward=feed_forward,
            other=sum(weight.size for weight in own) - attention - feed_forward,
            active=round(sum(weight.size * weight.active for weight in own)),
        )


def _sums(pairs: Iterator[tuple[str, int]]) -> dict[str, int]:
    """Sums by part, in the order of ``PARTS``; parts that a network lacks are left out."""
    sums = dict.fromkeys(PARTS, 0)
    for part, count in pairs:
        sums[part] += count
    return {part: count for part, count in sums.items() if count}
