"""Multi-head latent attention in its two forms (V2 section 2.1, V3 section 2.1.1).

A token leaves one row in the cache: its latent c and its rotary key k_R. From the same weights,

- *decompressed*: keys and values of every head are expanded from the latents, then plain attention. Cheap when there
  are many queries: training and prefill;
- *absorbed*: the up-projection of the keys moves to the query, that of the values behind the sum, so that all heads
  look at the latent rows themselves. Cheap when there are few queries: decoding.

The two are equal but for rounding. Which is cheaper is counted, not guessed (``_absorbing_is_cheaper``).

Shapes: B batch, T queries, S rows to look at, H heads, G rotary keys, N and D the parts of a head without and with
rope, V width of a value, R rank of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepwell.lm.model.attending import attend
from deepwell.lm.model.cache import LatentCache
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.products import Linear, at_least_float32, matmul
from deepwell.lm.model.rope import rotate
from deepwell.lm.model.rowwise import RMSNorm

LATENT_NORM_EPS = 1e-6
"""The latent norms' own epsilon: DeepSeek's code and transformers use it whatever ``rms_norm_eps`` says."""

Form = Literal["absorbed", "decompressed"]


@dataclass(frozen=True, slots=True)
class Sight:
    """Where the tokens of a step stand and what they may look at; the same for all layers."""

    cos: Tensor
    """[B or 1, T, D/2] float32"""
    sin: Tensor
    mask: Tensor | None
    """[B or 1, 1, T, S] bool, True where a query may look; None: causal from the first row on."""
    cache: LatentCache | None = None
    form: Form | None = None
    """Which form to take; None: the cheaper one."""
    recompute: bool = False
    """Whether keys, values and attention are computed again in the backward pass in place of being kept."""


class MultiHeadLatentAttention(nn.Module):
    """MLA with DeepSeek's tensor names; grouped-query attention is the case without an up-projection."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.scale = config.softmax_scale
        hidden, heads = config.hidden_size, config.num_attention_heads
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        queries = heads * config.qk_head_dim
        if config.q_lora_rank is None:
            self.q_proj = Linear(hidden, queries, bias=config.qkv_bias, **made)
        else:
            self.q_a_proj = Linear(hidden, config.q_lora_rank, bias=config.qkv_bias, **made)
            if config.latent_norm:
                self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS, **made)
            self.q_b_proj = Linear(config.q_lora_rank, queries, bias=False, **made)
        self.kv_a_proj_with_mqa = Linear(hidden, config.latent_width, bias=config.qkv_bias, **made)
        if config.latent_norm:
            self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, LATENT_NORM_EPS, **made)
        if config.kv_up_proj:
            expanded = heads * (config.qk_nope_head_dim + config.v_head_dim)
            self.kv_b_proj = Linear(config.kv_lora_rank, expanded, bias=False, **made)
        self.o_proj = Linear(heads * config.v_head_dim, hidden, bias=config.o_bias, **made)

    def forward(self, x: Tensor, sight: Sight, layer: int) -> Tensor:
        """``x`` [B, T, hidden], normed -> [B, T, hidden]; appends T rows to the cache if there is one."""
        q_nope, q_rope = self.queries(x, sight.cos, sight.sin)
        rows = self.rows(x, sight.cos, sight.sin)
        fresh = sight.cache is None or sight.cache.length == 0
        if sight.cache is not None:
            seen = sight.cache.append(layer, rows)
            rows = rows if fresh else seen.to(x.dtype)
        form = sight.form
        if form is None:
            form = "absorbed" if not fresh and self._absorbing_is_cheaper(x.shape[1], rows.shape[1]) else "decompressed"
        look = self.absorbed if form == "absorbed" else self.decompressed
        if sight.recompute and torch.is_grad_enabled():
            seen_values = checkpoint(look, q_nope, q_rope, rows, sight.mask, use_reentrant=False)
        else:
            seen_values = look(q_nope, q_rope, rows, sight.mask)
        return self.o_proj(seen_values.flatten(2))  # type: ignore[no-any-return]

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of the queries without and with rope: [B, T, H, N] and [B, T, H, D], the second turned."""
        config = self.config
        if config.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            latent = self.q_a_proj(x)
            q = self.q_b_proj(self.q_a_layernorm(latent) if config.latent_norm else latent)
        q = q.unflatten(-1, (config.num_attention_heads, config.qk_head_dim))
        q_nope, q_rope = q.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        return q_nope, rotate(q_rope, cos[:, :, None], sin[:, :, None])

    def rows(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What the tokens leave in the cache: [B, T, R + G*D], latents normed and keys turned."""
        config = self.config
        latent, key = self.kv_a_proj_with_mqa(x).split([config.kv_lora_rank, config.rope_key_width], dim=-1)
        if config.latent_norm:
            latent = self.kv_a_layernorm(latent)
        key = key.unflatten(-1, (config.rope_key_heads, config.qk_rope_head_dim))
        return torch.cat([latent, rotate(key, cos[:, :, None], sin[:, :, None]).flatten(2)], dim=-1)

    def decompressed(self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Expand every head's keys and values, then attend: [B, T, H, V]."""
        config = self.config
        latent, key = rows.split([config.kv_lora_rank, config.rope_key_width], dim=-1)
        key = key.unflatten(-1, (config.rope_key_heads, config.qk_rope_head_dim))  # [B, S, G, D]
        if config.kv_up_proj:
            heads = config.num_attention_heads
            expanded = self.kv_b_proj(latent).unflatten(-1, (heads, config.qk_nope_head_dim + config.v_head_dim))
            k_nope, value = expanded.split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)
            key = key.repeat_interleave(heads // config.rope_key_heads, dim=2) if config.rope_key_heads > 1 else key
            key = torch.cat([k_nope, key.expand(-1, -1, heads, -1)], dim=-1)  # [B, S, H, N + D]
            query = torch.cat([q_nope, q_rope], dim=-1)
        else:
            value = latent.unflatten(-1, (config.rope_key_heads, config.v_head_dim))
            query = q_rope
        out = attend(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            scale=self.scale,
            causal=mask is None and query.shape[1] == key.shape[1],
            mask=mask,
        )
        return out.transpose(1, 2)

    def absorbed(self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Attend to the latent rows as they stand: [B, T, H, V]."""
        config = self.config
        batch, count, heads = q_rope.shape[:3]
        groups, seen = config.rope_key_heads, rows.shape[1]
        latent, key = rows.split([config.kv_lora_rank, config.rope_key_width], dim=-1)
        key = key.unflatten(-1, (groups, config.qk_rope_head_dim)).transpose(1, 2)  # [B, G, S, D]
        turned = q_rope.unflatten(2, (groups, heads // groups)).permute(0, 2, 3, 1, 4)  # [B, G, H/G, T, D]
        scores = matmul(turned.flatten(2, 3), key.transpose(2, 3)).view(batch, heads, count, seen)
        if config.kv_up_proj:
            up_key, up_value = self.up_projections()
            absorbed = matmul(q_nope.transpose(1, 2), up_key)  # [B, H, T, R]
            scores = scores + matmul(absorbed.flatten(1, 2), latent.transpose(1, 2)).view_as(scores)
        scores = at_least_float32(scores) * self.scale
        if mask is None:
            ahead = torch.ones(count, seen, dtype=torch.bool, device=rows.device).triu_(seen - count + 1)
            scores = scores.masked_fill(ahead, -torch.inf)
        else:
            scores = scores.masked_fill(~mask, -torch.inf)
        shares = scores.softmax(-1).to(rows.dtype)
        if config.kv_up_proj:
            summed = matmul(shares.flatten(1, 2), latent).view(batch, heads, count, -1)  # [B, H, T, R]
            return matmul(summed, up_value.transpose(1, 2)).transpose(1, 2)
        value = latent.unflatten(-1, (groups, config.v_head_dim)).transpose(1, 2)  # [B, G, S, V]
        summed = matmul(shares.view(batch, groups, -1, seen), value)
        return summed.view(batch, heads, count, -1).transpose(1, 2)

    def up_projections(self) -> tuple[Tensor, Tensor]:
        """Views of ``kv_b_proj``: keys [H, N, R] and values [H, V, R]."""
        config = self.config
        each = self.kv_b_proj.weight.unflatten(0, (config.num_attention_heads, -1))
        key, value = each.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        return key, value

    def _absorbing_is_cheaper(self, count: int, seen: int) -> bool:
        """Compare multiplications, expansions included, for ``count`` queries over ``seen`` rows."""
        config = self.config
        if not config.kv_up_proj:
            return count == 1
        plain, rank = config.qk_nope_head_dim + config.v_head_dim, config.kv_lora_rank
        expand = seen * rank * plain + count * seen * (plain + config.qk_rope_head_dim)
        absorb = count * rank * plain + count * seen * (2 * rank + config.qk_rope_head_dim)
        return absorb < expand
