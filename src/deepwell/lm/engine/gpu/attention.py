"""Decoding attention on a GPU: every query of a batch over its own rows of the paged cache, in two launches.

The runner for a CPU goes from sequence to sequence. Here one kernel serves all of them: each query has a table of
blocks and a length, so drafts of one sequence are queries of growing length over the same table, and a causal mask is
never written. Long rows are cut into splits, so that a few sequences fill the whole GPU; a second, small kernel joins
what the splits found.

One kernel does for all forms of attention that the network has:

- MLA absorbed: queries in the space of the latents, one row for all heads, latents both scored and summed;
- the same with several rotary keys, as a compressed Llama has;
- grouped attention: each group's heads look at their own key and value in the row, and latents are not scored.

Products are in the dtype of the cache, sums and softmax in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from deepwell.lm.engine.gpu.attention_kernels import attend_split, join_splits
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.precision.operands import operand

_MOST_SPLITS = 32
_PROGRAMS_A_CORE = 2
"""Programs for each multiprocessor that the splits aim at."""


@dataclass(frozen=True, slots=True)
class Looks:
    """Which rows each query of a step looks at; the same for all layers."""

    tables: Tensor
    """[n, blocks] int32: the blocks of the query's sequence; what stands behind its last block is not read."""
    firsts: Tensor
    """[n] int32: the first place it looks at, 0 unless there is a window."""
    lengths: Tensor
    """[n] int32: one behind the last place, greater than the first."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """What a program of the kernel takes at once, and how it is compiled."""

    heads: int
    places: int
    warps: int
    stages: int


def tiling_for(config: ModelConfig, shared: int = 227 * 1024) -> Tiling:
    """A tiling for this network's attention: as many heads as share a row, up to what a GPU's block can hold.

    Args:
        config: Of the network.
        shared: Bytes of shared memory that a block may have.
    """
    wide = summed_width(config) > 256
    most = 64 if not wide or shared >= 200 * 1024 else 32 if shared >= 160 * 1024 else 16
    heads = min(most, max(16, triton.next_power_of_2(config.num_attention_heads // config.rope_key_heads)))
    return Tiling(heads=heads, places=32 if wide else 64, warps=8 if wide and heads > 16 else 4, stages=2)


def splits_for(queries: int, config: ModelConfig, tiling: Tiling, cores: int, longest: int | None = None) -> int:
    """Into how many parts the rows of each query are cut.

    Args:
        queries: Of the batch.
        config: Of the network.
        tiling: Of the kernel.
        cores: Multiprocessors of the GPU.
        longest: Rows that the longest query looks at, where it is known.
    """
    programs = queries * _programs_a_query(config, tiling)
    wanted = -(-_PROGRAMS_A_CORE * cores // programs)
    if longest is not None:
        wanted = min(wanted, -(-longest // tiling.places))
    return max(1, min(_MOST_SPLITS, wanted))


def summed_width(config: ModelConfig) -> int:
    """Columns that a head sums: the latent, or in grouped attention one group's value."""
    return config.v_head_dim if config.is_grouped else config.kv_lora_rank


def decode_attention(
    config: ModelConfig,
    latent_queries: Tensor | None,
    rope_queries: Tensor,
    rows: Tensor,
    looks: Looks,
    *,
    block_size: int,
    splits: int = 1,
    tiling: Tiling | None = None,
) -> Tensor:
    """Attend to cached rows as they stand.

    Args:
        config: Of the network.
        latent_queries: [n, H, R], the queries without rope times the up-projection of the keys; None in grouped
            attention. Only the last dimension must be contiguous, here and below.
        rope_queries: [n, H, D], turned.
        rows: [slots, R + G * D], one layer of the cache.
        looks: What each query sees.
        block_size: Tokens of a block.
        splits: Parts into which each query's rows are cut.
        tiling: Of the kernel; None: that of ``tiling_for``.

    Returns:
        [n, H, R], summed latents; in grouped attention [n, H, V]. In the dtype of ``rows``.
    """
    tiling = tiling or tiling_for(config)
    count, heads, rope = rope_queries.shape
    width = summed_width(config)
    out = rows.new_empty(count, heads, width)
    parts, sums = out, out  # not touched where there is one split
    if splits > 1:
        parts = rows.new_empty(count, heads, splits, width, dtype=torch.float32)
        sums = rows.new_empty(count, heads, splits, dtype=torch.float32)
    latents = rope_queries if latent_queries is None else latent_queries
    heads_a_group = heads // config.rope_key_heads
    value_tile = max(16, triton.next_power_of_2(width))
    with torch.cuda.device_of(rows):
        attend_split[(count, _programs_a_query(config, tiling), splits)](
            latents,
            rope_queries,
            rows,
            looks.tables,
            looks.firsts,
            looks.lengths,
            parts,
            sums,
            config.softmax_scale * math.log2(math.e),
            latents.stride(0),
            latents.stride(1),
            rope_queries.stride(0),
            rope_queries.stride(1),
            rows.stride(0),
            looks.tables.stride(0),
            rank=config.kv_lora_rank,
            rope=rope,
            value=width,
            value_step=width if config.is_grouped else 0,
            absorbed=not config.is_grouped,
            heads_a_group=heads_a_group,
            tiles_a_group=-(-heads_a_group // tiling.heads),
            block_size=block_size,
            splits=splits,
            head_tile=tiling.heads,
            place_tile=tiling.places,
            value_tile=value_tile,
            rope_tile=max(16, triton.next_power_of_2(rope)),
            operand=operand(rows.dtype),
            num_warps=tiling.warps,
            num_stages=tiling.stages,
        )
        if splits > 1:
            join_splits[(count * heads,)](parts, sums, out, value=width, splits=splits, value_tile=value_tile)
    return out


def _programs_a_query(config: ModelConfig, tiling: Tiling) -> int:
    groups = config.rope_key_heads
    return groups * -(-config.num_attention_heads // groups // tiling.heads)
