"""Kernels run in Triton's interpreter (see tests/conftest.py), beside the same attention written out in float64."""

import random

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from deepwell.lm.engine.gpu.attention import Looks, Tiling, decode_attention, splits_for, summed_width, tiling_for
from deepwell.lm.model.config import ModelConfig

from ..networks import SHAPES

WIDE = {
    "latent of 160 columns, 20 heads": SHAPES["latent"].replace(kv_lora_rank=160, num_attention_heads=20),
    "values of another width than keys": SHAPES["grouped"].replace(kv_lora_rank=2 * 24, v_head_dim=24),
}
TILES = Tiling(heads=16, places=16, warps=1, stages=1)


def paged(config: ModelConfig, lengths: list[int], block_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random rows [slots, W], NaN where no sequence stands, and tables of blocks in random order."""
    counts = [-(-length // block_size) for length in lengths]
    order = random.sample(range(sum(counts) + 3), sum(counts) + 3)
    rows = torch.full((len(order) * block_size, config.latent_width), torch.nan, dtype=dtype)
    tables = torch.full((len(lengths), max(counts)), 10**6, dtype=torch.int32)  # a read behind the end would crash
    for index, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table = [order.pop() for _ in range(count)]
        tables[index, :count] = torch.tensor(table)
        for place in range(length):
            slot = table[place // block_size] * block_size + place % block_size
            rows[slot] = torch.randn(config.latent_width).to(dtype)
    return rows, tables


def written_out(config: ModelConfig, latent: Tensor, rope: Tensor, rows: Tensor, looks: Looks, size: int) -> Tensor:
    """The definition, query after query and head after head."""
    out = []
    each = config.num_attention_heads // config.rope_key_heads
    for index in range(rope.shape[0]):
        places = torch.arange(int(looks.firsts[index]), int(looks.lengths[index]))
        seen = rows[looks.tables[index, places // size] * size + places % size].double()
        for head in range(rope.shape[1]):
            group = head // each
            start = config.kv_lora_rank + group * config.qk_rope_head_dim
            scores = seen[:, start : start + config.qk_rope_head_dim] @ rope[index, head].double()
            if config.is_grouped:
                values = seen[:, group * config.v_head_dim : (group + 1) * config.v_head_dim]
            else:
                values = seen[:, : config.kv_lora_rank]
                scores += values @ latent[index, head].double()
            out.append((scores * config.softmax_scale).softmax(0) @ values)
    return torch.stack(out).view(rope.shape[0], rope.shape[1], -1)


@pytest.mark.parametrize(("shape", "dtype"), [
    *((shape, torch.float32) for shape in (*SHAPES, *WIDE)),
    *((shape, dtype) for shape in ("latent", "grouped") for dtype in (torch.bfloat16, torch.float16)),
])  # fmt: skip
def test_the_kernel_is_attention(shape: str, dtype: torch.dtype) -> None:
    config = {**SHAPES, **WIDE}[shape]
    torch.manual_seed(0)
    random.seed(shape)
    for splits in (1, 3):
        lengths = [1, random.randrange(2, 16), 16, 17, random.randrange(30, 70)]
        block_size = random.choice([4, 16])
        rows, tables = paged(config, lengths, block_size, dtype)
        window = config.sliding_window or 10**6
        firsts = torch.tensor([max(0, length - window) for length in lengths], dtype=torch.int32)
        looks = Looks(tables, firsts, torch.tensor(lengths, dtype=torch.int32))
        heads = config.num_attention_heads
        latent = torch.randn(len(lengths), heads, config.kv_lora_rank).to(dtype)
        # As in the runner: a view of something wider.
        rope = torch.randn(len(lengths), heads, config.qk_rope_head_dim + 3).to(dtype)[..., 3:]
        given = None if config.is_grouped else latent
        found = decode_attention(config, given, rope, rows, looks, block_size=block_size, splits=splits, tiling=TILES)
        wanted = written_out(config, latent, rope, rows, looks, block_size)
        assert found.dtype is dtype
        assert found.shape == (len(lengths), heads, summed_width(config))
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5 if dtype is torch.float32 else 0.03)


def test_drafts_of_one_sequence_are_queries_of_growing_length() -> None:
    config = SHAPES["latent"]
    torch.manual_seed(1)
    rows, table = paged(config, [21], 8, torch.float32)
    lengths = torch.tensor([19, 20, 21], dtype=torch.int32)
    looks = Looks(table.expand(3, -1), torch.zeros(3, dtype=torch.int32), lengths)
    latent = torch.randn(3, config.num_attention_heads, config.kv_lora_rank)
    rope = torch.randn(3, config.num_attention_heads, config.qk_rope_head_dim)
    found = decode_attention(config, latent, rope, rows, looks, block_size=8, splits=2, tiling=TILES)
    torch.testing.assert_close(found.double(), written_out(config, latent, rope, rows, looks, 8), rtol=0, atol=1e-5)


def test_large_scores_do_not_overflow_and_far_splits_still_count() -> None:
    config = SHAPES["latent"]
    torch.manual_seed(2)
    rows, table = paged(config, [64], 16, torch.float32)
    rows[:, config.kv_lora_rank :] *= 40
    looks = Looks(table, torch.zeros(1, dtype=torch.int32), torch.tensor([64], dtype=torch.int32))
    latent = torch.randn(1, config.num_attention_heads, config.kv_lora_rank) * 40
    rope = torch.randn(1, config.num_attention_heads, config.qk_rope_head_dim) * 40
    found = decode_attention(config, latent, rope, rows, looks, block_size=16, splits=4, tiling=TILES)
    torch.testing.assert_close(found.double(), written_out(config, latent, rope, rows, looks, 16), rtol=0, atol=1e-3)


def test_few_queries_are_cut_into_more_parts_than_many_and_never_below_a_tile() -> None:
    config = ModelConfig.named("deepseek-v2-lite")
    tiling = tiling_for(config)
    assert (tiling.heads, tiling.places) == (16, 32)
    assert splits_for(1, config, tiling, cores=132) == 32
    assert splits_for(64, config, tiling, cores=132) == 5
    assert splits_for(1000, config, tiling, cores=132) == 1
    assert splits_for(1, config, tiling, cores=132, longest=100) == 4


def test_a_tile_holds_the_heads_that_share_a_row() -> None:
    assert tiling_for(ModelConfig.named("deepseek-v3")) == Tiling(heads=64, places=32, warps=8, stages=2)
    assert tiling_for(ModelConfig.named("deepseek-v3"), shared=99 * 1024).heads == 16
    assert tiling_for(ModelConfig.named("deepseek-v3"), shared=163 * 1024).heads == 32
    assert tiling_for(ModelConfig.named("r1-distill-llama-8b")).heads == 16
