"""Every operation but products and experts, beside the network's own modules in float64."""

import ctypes
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from deepwell.lm.engine.native.library import Batch, Library, Stretch
from deepwell.lm.engine.native.program import Program, Rows
from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.rope import rotate

from .shapes import close, shape

MOST = 70


# ---- what is done to each row by itself ----


@pytest.mark.parametrize("width", [1, 7, 8, 24, 45])
@pytest.mark.parametrize("count", [1, 3, 4, 13])
def test_norm(width: int, count: int, library: Library) -> None:
    rows = Rows(MOST)
    x, y = rows("x", width + 3)[:, 2 : 2 + width], rows("y", width)
    weight = torch.randn(width)
    apart, in_place = Program(rows), Program(rows)
    apart.norm(x, weight, 1e-5, y)
    in_place.norm(x, weight, 1e-5, x)
    given = torch.randn(count, width) * torch.rand(count, 1).exp() ** 4
    x[:count] = given
    wanted = F.rms_norm(given.double(), (width,), weight.double(), 1e-5)
    apart.run(library, Batch(rows=count, threads=2))
    close(y[:count], wanted)
    in_place.run(library, Batch(rows=count, threads=3))
    assert torch.equal(x[:count], y[:count])


@pytest.mark.parametrize("width", [2, 10, 16, 24])
@pytest.mark.parametrize("heads", [1, 3])
def test_rope(width: int, heads: int, library: Library) -> None:
    count, step = 13, width + 4
    rows = Rows(MOST)
    x, y = rows("x", heads * step), rows("y", heads * step)
    apart, in_place = Program(rows), Program(rows)
    apart.rope(x, step, heads, width, y, step)
    in_place.rope(x, step, heads, width, x, step)
    angles = torch.randn(count, width // 2)
    cosine, sine = angles.cos().contiguous(), angles.sin().contiguous()
    given = torch.randn(count, heads * step)
    x[:count] = given
    y.zero_()
    batch = Batch(rows=count, threads=2, cosine=cosine.data_ptr(), sine=sine.data_ptr())
    apart.run(library, batch)
    parts = given.double().unflatten(1, (heads, step))
    turned = rotate(parts[..., :width], cosine[:, None].double(), sine[:, None].double())
    close(y[:count].unflatten(1, (heads, step))[..., :width], turned)
    assert not y[:count].unflatten(1, (heads, step))[..., width:].any()
    in_place.run(library, batch)
    close(x[:count].unflatten(1, (heads, step)), torch.cat([turned, parts[..., width:]], dim=-1))


@pytest.mark.parametrize("width", [1, 8, 21])
def test_swiglu_and_copy(width: int, library: Library) -> None:
    rows = Rows(MOST)
    x, y, copied = rows("x", 2 * width), rows("y", width), rows("copy", width)
    program = Program(rows)
    program.swiglu(x, y)
    program.copy(x[:, :width], copied)
    x.copy_(torch.randn(MOST, 2 * width) * 10)
    x[0], x[1], x[2] = 200.0, -200.0, torch.nan
    program.run(library, Batch(rows=50, threads=2))
    gate, up = x[:50].double().split(width, dim=1)
    torch.testing.assert_close(y[:50].double(), F.silu(gate) * up, rtol=1e-6, atol=1e-30, equal_nan=True)
    assert torch.equal(copied[3:50], x[3:50, :width])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_store(dtype: torch.dtype, library: Library) -> None:
    config = shape("grouped")
    cache = PagedCache(config, blocks=10, block_size=4, dtype=dtype)
    cache.rows.zero_()
    rows = Rows(MOST)
    x = rows("x", config.latent_width)
    program = Program(rows)
    program.store(x, cache, 1)
    x.copy_(torch.randn(MOST, config.latent_width) * 10.0 ** torch.randint(-30, 30, (MOST, 1)))
    x[0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    x[1, :2] = torch.tensor([1.00390625, 1.01171875])  # half way between two of bf16: to the even one
    slots = np.random.default_rng(0).permutation(40)[:13].astype(np.int64)
    program.run(library, Batch(rows=13, threads=2, slots=slots.ctypes.data))
    torch.testing.assert_close(cache.rows[1, slots], x[:13].to(dtype), rtol=0, atol=0, equal_nan=True)
    others = [slot for slot in range(40) if slot not in set(slots.tolist())]
    assert not cache.rows[1, others].any()
    assert not cache.rows[0].any()


# ---- attention ----


LOOKS = {
    "grouped": shape("grouped"),
    "grouped, odd widths": shape("grouped", qk_rope_head_dim=10, v_head_dim=13, kv_lora_rank=26),
    "every head its own key": shape("grouped", rope_key_heads=6, kv_lora_rank=6 * 8, v_head_dim=8),
    "many heads a key": shape(
        "grouped", num_attention_heads=55, rope_key_heads=1, kv_lora_rank=8, v_head_dim=8, qk_rope_head_dim=4
    ),
    "grouped, window": shape("grouped", sliding_window=9),
    "latent": shape("latent"),
    "latent, odd widths": shape("latent", kv_lora_rank=21, qk_rope_head_dim=6),
    "latent, window": shape("latent", sliding_window=70),
}


class Attention:
    """Sequences in a cache of shuffled blocks, and what their queries should find."""

    def __init__(self, config: ModelConfig, lengths: list[int], block: int, dtype: torch.dtype) -> None:
        self.config, self.block = config, block
        grouped = config.is_grouped
        self.key = config.qk_rope_head_dim if grouped else config.latent_width
        self.value = config.v_head_dim if grouped else config.kv_lora_rank
        counts = [-(-length // block) for length in lengths]
        self.cache = PagedCache(config, blocks=sum(counts) + 3, block_size=block, dtype=dtype)
        self.cache.rows.fill_(torch.nan)  # what nobody wrote must not be seen
        order = random.Random(0).sample(range(sum(counts) + 3), sum(counts) + 3)
        self.tables = [[order.pop() for _ in range(count)] for count in counts]
        self.texts = [torch.randn(length, config.latent_width).to(dtype) for length in lengths]
        for table, text in zip(self.tables, self.texts, strict=True):
            self.cache.write(1, torch.tensor(self.cache.slots(table, 0, len(text))), text)
        heads = config.num_attention_heads
        self.queries = [torch.randn(length, heads * self.key) * 0.5 for length in lengths]
        self.rows = Rows(300)
        self.x, self.y = self.rows("x", heads * self.key), self.rows("y", heads * self.value)
        self.program = Program(self.rows)
        self.program.attend(self.x, self.y, self.cache, 1, config)

    def __call__(self, library: Library, parts: list[tuple[int, int, int]], threads: int) -> list[Tensor]:
        """What the queries of (sequence, start, end) find."""
        stretches = (Stretch * len(parts))()
        tables: list[int] = []
        first = 0
        for index, (which, start, end) in enumerate(parts):
            stretches[index] = Stretch(first, first + end - start, start, len(tables))
            tables += self.tables[which][: -(-end // self.block)]
            self.x[first : first + end - start] = self.queries[which][start:end]
            first += end - start
        places = np.array(tables, np.int32)
        batch = Batch(
            rows=first, stretches=len(parts), block=self.block, threads=threads, tables=places.ctypes.data,
            stretch=ctypes.addressof(stretches),
        )  # fmt: skip
        self.y.fill_(7.5)
        self.program.run(library, batch)
        assert bool((self.y[first:] == 7.5).all())
        return list(self.y[:first].clone().split([end - start for _, start, end in parts]))

    def wanted(self, which: int, start: int, end: int) -> Tensor:
        """The definition in float64."""
        config, groups = self.config, self.config.rope_key_heads
        text, heads = self.texts[which].double(), config.num_attention_heads
        query = self.queries[which][start:end].double().unflatten(1, (heads, self.key))
        keys = text[:, None].expand(-1, heads, -1)
        values = text[:, None, : self.value].expand(-1, heads, -1)
        if config.is_grouped:
            values, keys = (
                part.unflatten(1, (groups, -1)) for part in text.split([config.kv_lora_rank, groups * self.key], 1)
            )
            keys, values = (part.repeat_interleave(heads // groups, 1) for part in (keys, values))
        scores = torch.einsum("qhd,shd->hqs", query, keys) * config.softmax_scale
        place, seen = torch.arange(start, end)[:, None], torch.arange(len(text))
        mask = seen <= place
        if config.sliding_window is not None:
            mask &= seen > place - config.sliding_window
        shares = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return torch.einsum("hqs,shd->qhd", shares, values).flatten(1)


@pytest.mark.parametrize("name", LOOKS)
@pytest.mark.parametrize(("block", "dtype"), [(4, torch.float32), (16, torch.bfloat16), (7, torch.float32)])
def test_attention(name: str, block: int, dtype: torch.dtype, library: Library) -> None:
    attention = Attention(LOOKS[name], [1, 5, 64, 150, 230], block, dtype)
    parts = [(3, 149, 150), (0, 0, 1), (2, 0, 64), (4, 130, 230), (1, 4, 5), (3, 100, 117)]
    for threads in (1, 2, 3):
        found = attention(library, parts, threads)
        for part, one in zip(parts, found, strict=True):
            close(one, attention.wanted(*part))


@pytest.mark.parametrize("name", LOOKS)
def test_what_a_query_finds_has_the_same_bits_in_any_company(name: str, library: Library) -> None:
    attention = Attention(LOOKS[name], [150, 230], 5, torch.bfloat16)
    (whole,) = attention(library, [(0, 0, 150)], 1)
    cuts = [
        [(0, 0, 150)],
        [(1, 200, 230), (0, 0, 70), (0, 70, 71), (0, 71, 150)],
        [(0, 0, 1), (0, 1, 129), (0, 129, 150)],
    ]
    for threads in (1, 2, 3):
        for cut in cuts:
            found = attention(library, cut, threads)
            assert torch.equal(torch.cat([one for one, part in zip(found, cut, strict=True) if part[0] == 0]), whole)
        alone = torch.cat([attention(library, [(0, at, at + 1)], threads)[0] for at in range(140, 150)])
        assert torch.equal(alone, whole[140:])


def test_a_long_text_is_seen_whole(library: Library) -> None:
    """Longer than the memory that scores should take at once."""
    config = shape("grouped", rope_key_heads=1, num_attention_heads=2, kv_lora_rank=8, v_head_dim=8, qk_rope_head_dim=8)
    attention = Attention(config, [3000], 16, torch.float32)
    parts = [(0, 2900, 3000)]
    close(attention(library, parts, 2)[0], attention.wanted(*parts[0]))
    long = Attention(config, [70_000], 64, torch.float32)
    close(long(library, [(0, 69_998, 70_000)], 2)[0], long.wanted(0, 69_998, 70_000))


def test_scores_far_apart_and_broken_queries(library: Library) -> None:
    attention = Attention(LOOKS["grouped"], [40, 20], 4, torch.float32)
    attention.queries[0] *= 1e4
    attention.queries[1][7] = torch.nan
    first, second = attention(library, [(0, 0, 40), (1, 0, 20)], 2)
    close(first, attention.wanted(0, 0, 40), 0.01)  # scores of thousands have three digits behind the point
    assert second[7].isnan().all()
    assert second[torch.arange(20) != 7].isfinite().all()


def test_random_attention(library: Library) -> None:
    """Any widths, heads, windows, blocks and stretches."""

    @settings(max_examples=40, deadline=None, database=None, derandomize=True)
    @given(data=st.data())
    def check_one(data: st.DataObject) -> None:
        groups, each = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20))
        width, rope = data.draw(st.integers(1, 20)), 2 * data.draw(st.integers(1, 9))
        window = data.draw(st.sampled_from([None, 1, 6, 65]))
        grouped = data.draw(st.booleans())
        heads = {"num_attention_heads": groups * each, "qk_rope_head_dim": rope, "sliding_window": window}
        if grouped:
            heads |= {"rope_key_heads": groups, "v_head_dim": width, "kv_lora_rank": groups * width}
        else:
            heads |= {"kv_lora_rank": width}
        config = shape("grouped" if grouped else "latent", **heads)
        lengths = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=4))
        torch.manual_seed(sum(lengths))
        dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
        attention = Attention(config, lengths, data.draw(st.integers(1, 17)), dtype)
        parts = []
        for which, length in enumerate(lengths):
            start = data.draw(st.integers(0, length - 1))
            parts.append((which, start, data.draw(st.integers(start + 1, length))))
        for part, found in zip(parts, attention(library, parts, data.draw(st.integers(1, 4))), strict=True):
            close(found, attention.wanted(*part))

    check_one()
