"""The runner for a GPU.

It computes what ``Runner`` does, with two differences. All tokens that decode, drafts included, attend in one kernel
instead of sequence by sequence (see ``attention``). And a step in which nothing but decoding happens is replayed from a
graph where there is one of its size (see ``graphs``); what cannot be recorded is computed step by step.

Pieces of prompts attend in the decompressed form by torch's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepwell.lm.engine.fused import FusedLayer, normed
from deepwell.lm.engine.gpu.attention import Looks, decode_attention, splits_for, tiling_for
from deepwell.lm.engine.gpu.graphs import SIZES, Graphs, Replay, size_for
from deepwell.lm.engine.gpu.inputs import DecodeInputs, first_seen
from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.engine.runner import Runner, Step, Stretch
from deepwell.lm.engine.scheduler import Part
from deepwell.lm.model.products import matmul
from deepwell.lm.model.transformer import Transformer

MOST_TOGETHER = 16
"""Tokens of one sequence that attend as decoding: one and its drafts, or a short piece behind a long beginning."""

Record = Callable[[Callable[[], tuple[Tensor, Step]]], Replay[tuple[Tensor, Step]]]


@dataclass(frozen=True, slots=True)
class GPUStep(Step):
    """A step whose first tokens decode; ``stretches`` are the others."""

    looks: Looks | None
    """Of the tokens that decode; None: there are none."""
    splits: int


class GPURunner(Runner):
    """The network and the cache on a GPU.

    Attributes:
        eager_because: Why no more steps are recorded; None while they are.
    """

    def __init__(self, model: Transformer, cache: PagedCache, *, record: Record | None = None) -> None:
        """Make ready.

        Args:
            model: The network, in float32 or less.
            cache: On its device.
            record: Makes a graph of a computation; None: CUDA's, and none where there is no GPU.
        """
        super().__init__(model, cache)
        config = model.config
        on_gpu = model.device.type == "cuda"
        longest = min(config.max_position_embeddings, cache.blocks * cache.block_size)
        self._tiling, self._cores = tiling_for(config), 2
        if on_gpu:
            gpu = torch.cuda.get_device_properties(model.device)
            self._tiling = tiling_for(
                config, getattr(gpu, "shared_memory_per_block_optin", gpu.shared_memory_per_block)
            )
            self._cores = gpu.multi_processor_count
        self._inputs = DecodeInputs(cache, most=SIZES[-1], longest=longest, window=config.sliding_window)
        self._longest = longest
        self._record: Record | None = record or (Graphs(model.device).record if on_gpu else None)
        self._replays: dict[int, Replay[tuple[Tensor, Step]]] = {}
        self.eager_because = None if self._record else "there is no GPU"
        # The whole table of angles now: a graph keeps the address of the one that it saw.
        model.rope(torch.zeros(1, dtype=torch.int64, device=model.device), longest)

    @torch.no_grad()
    def run(self, parts: Items[Part]) -> tuple[Tensor, Step]:
        """As of ``Runner``. The step is good until the next one: it stands in a graph's memory."""
        count = sum(part.count for part in parts)
        size = size_for(count) if self._leading(parts) == len(parts) else None
        if size is None or not self._recordable():
            return super().run(parts)
        self._inputs.fill(parts, size)
        replay = self._replays.get(size)
        if replay is None:
            replay = self._recorded(size)
            if replay is None:
                return super().run(parts)
        hidden, step = replay()
        assert isinstance(step, GPUStep)
        return hidden[:count].clone(), _first(step, count)

    def _recordable(self) -> bool:
        # With dynamic gating the host asks how many experts were taken.
        return self.eager_because is None and self.model.config.dynamic_gating is None

    def _recorded(self, size: int) -> Replay[tuple[Tensor, Step]] | None:
        assert self._record is not None
        try:
            self._replays[size] = self._record(lambda: self._decode(size))
        except RuntimeError as error:
            self.eager_because = str(error)
            self._replays.clear()
            return None
        return self._replays[size]

    def _decode(self, size: int) -> tuple[Tensor, Step]:
        """One step of ``size`` tokens out of ``_inputs``; asks nothing of the host."""
        cos, sin = self._angles(self._inputs.places(size), self._longest)
        splits = splits_for(size, self._config, self._tiling, self._cores)
        step = GPUStep(cos, sin, self._inputs.slots(size), (), self._inputs.looks(size), splits)
        x = self.model.embed_tokens(self._inputs.tokens(size))
        for layer in self._layers:
            x = self._through(layer, x, step)
        return normed(x, self.model.norm), step

    def _angles(self, places: Tensor, length: int) -> tuple[Tensor, Tensor]:
        cos, sin = self.model.rope(places, length)
        return torch.cat([cos, cos], dim=-1)[:, None], torch.cat([-sin, sin], dim=-1)[:, None]

    @staticmethod
    def _leading(parts: Items[Part]) -> int:
        """How many of the first parts attend as decoding; the scheduler plans those that do first."""
        few = (index for index, part in enumerate(parts) if not part.start or part.count > MOST_TOGETHER)
        return next(few, len(parts))

    def _step(self, parts: Items[Part]) -> Step:
        places: list[int] = []
        slots: list[int] = []
        tables: list[list[int]] = []
        stretches = []
        leading = self._leading(parts)
        for index, part in enumerate(parts):
            end, table = part.start + part.count, part.sequence.table
            first = len(places)
            places += range(part.start, end)
            slots += self.cache.slots(table, part.start, end)
            if index < leading:
                tables += [table] * part.count
            else:
                reader, mask = self.cache.reader(table, end), self._mask(part.start, end)
                stretches.append(Stretch(first, len(places), reader, mask, part.start == 0))
        cos, sin = self._angles(self._tensor(places), max(places) + 1)
        looks, splits = None, 1
        if tables:
            looks = self._looks(tables, places[: len(tables)])
            longest = max(places[: len(tables)]) + 1
            splits = splits_for(len(tables), self._config, self._tiling, self._cores, longest)
        return GPUStep(cos, sin, self._tensor(slots), tuple(stretches), looks, splits)

    def _looks(self, tables: list[list[int]], places: list[int]) -> Looks:
        widest = max(map(len, tables))
        padded = [table + [0] * (widest - len(table)) for table in tables]
        firsts = [first_seen(place, self._config.sliding_window) for place in places]
        numbers = (padded, firsts, [place + 1 for place in places])
        return Looks(*(torch.tensor(one, dtype=torch.int32, device=self.model.device) for one in numbers))

    def _mask(self, start: int, end: int) -> Tensor | None:
        if start and self._config.sliding_window is None and self.model.device.type == "cuda":
            from torch.nn.attention.bias import causal_lower_right

            # Causal up to the last row: torch's flash kernel does it without a matrix.
            bias: Tensor = causal_lower_right(end - start, end)
            return bias
        mask = super()._mask(start, end)
        return None if mask is None else mask[None, None]

    def _attend(self, layer: FusedLayer, rows: Tensor, without: Tensor, turned: Tensor, step: Step) -> Tensor:
        assert isinstance(step, GPUStep)
        config, attention = self._config, layer.attention
        found = turned.new_empty(turned.shape[0], config.num_attention_heads, config.v_head_dim)
        if step.looks is not None:
            count = step.looks.lengths.shape[0]
            found[:count] = self._decoded(layer, without[:count], turned[:count], step.looks, step.splits)
        for stretch in step.stretches:
            here = slice(stretch.first, stretch.last)
            seen = rows[here] if stretch.fresh else self.cache.read(layer.layer, stretch.reader)
            found[here] = attention.decompressed(without[None, here], turned[None, here], seen[None], stretch.mask)[0]
        return found

    def _decoded(self, layer: FusedLayer, without: Tensor, turned: Tensor, looks: Looks, splits: int) -> Tensor:
        """Queries [n, H, N] and [n, H, D] of tokens that decode -> [n, H, V]."""
        config, rows = self._config, self.cache.rows[layer.layer]
        size = self.cache.block_size
        if config.is_grouped:
            return decode_attention(
                config, None, turned, rows, looks, block_size=size, splits=splits, tiling=self._tiling
            )
        up_key, up_value = layer.attention.up_projections()  # [H, N, R], [H, V, R]
        queries = matmul(without.transpose(0, 1), up_key).transpose(0, 1)  # [n, H, R]
        summed = decode_attention(
            config, queries, turned, rows, looks, block_size=size, splits=splits, tiling=self._tiling
        )
        return matmul(summed.transpose(0, 1), up_value.transpose(1, 2)).transpose(0, 1)


def _first(step: GPUStep, count: int) -> GPUStep:
    """The step of the first ``count`` tokens alone."""
    looks, slots = step.looks, step.slots
    assert looks is not None and isinstance(slots, Tensor)
    cut = Looks(looks.tables[:count], looks.firsts[:count], looks.lengths[:count])
    return replace(step, cos=step.cos[:count], sin=step.sin[:count], slots=slots[:count], looks=cut)
