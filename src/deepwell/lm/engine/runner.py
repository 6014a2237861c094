"""One step: a ragged batch once through the network.

The tokens of all sequences stand in one row [n, h], so that every matrix is read once for all of them; only attention
goes sequence by sequence, each over its own rows of the cache. No sequence is padded and none sees another.

Decoding looks at the cached rows as they stand: for MLA the absorbed form, one query of width R + D a head against the
row that all heads share; for grouped attention each group's queries against its part of the row. Both are two small
matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from deepwell.lm.engine.fused import FusedLayer, normed
from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.engine.scheduler import Part
from deepwell.lm.model.attention import MultiHeadLatentAttention
from deepwell.lm.model.products import at_least_float32, matmul
from deepwell.lm.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Stretch:
    """One sequence's tokens in a step: rows ``first`` to ``last`` of the batch, and what they look at."""

    first: int
    last: int
    reader: slice | Tensor
    mask: Tensor | None
    """[T, S] bool, True where a query may look; None: everything (one token), or causal from the first row on."""
    fresh: bool
    """Whether nothing stands before, so that the rows just made are all there is to see."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is the same for all layers of a pass."""

    cos: Tensor
    sin: Tensor
    slots: Tensor | slice
    stretches: tuple[Stretch, ...]


class Runner:
    """The network and the cache, ready to compute steps."""

    def __init__(self, model: Transformer, cache: PagedCache) -> None:
        self.model = model
        self.cache = cache
        config = model.config
        self._config = config
        with torch.no_grad():
            self._layers = [FusedLayer(block, config) for block in model.layers]  # type: ignore[arg-type]
            self._mtp_layers = [FusedLayer(module.block, config) for module in model.mtp_modules()[:1]]
        rows, rank, groups = cache.rows, config.kv_lora_rank, config.rope_key_heads
        self._keys = rows[..., rank:].unflatten(2, (groups, -1)).permute(0, 2, 3, 1)  # [layers, G, D, slots]
        if config.is_grouped:
            self._values = rows[..., :rank].unflatten(2, (groups, -1)).transpose(1, 2)  # [layers, G, slots, V]

    @property
    def weight_bytes(self) -> int:
        """Of the matrices that a step multiplies with; an embedding that is not the head is not among them."""
        config = self._config
        apart = 0 if config.tie_word_embeddings else self.model.embed_tokens.weight.numel()
        width = self.model.embed_tokens.weight.element_size()
        return (sum(one.numel() for one in self.model.parameters()) - apart) * width

    @torch.no_grad()
    def run(self, parts: Items[Part]) -> tuple[Tensor, Step]:
        """The normed states [n, h] of all tokens of the parts, and what ``draft`` needs of this step."""
        step = self._step(parts)
        x = self.model.embed_tokens(self._tensor([token for part in parts for token in part.tokens]))
        for layer in self._layers:
            x = self._through(layer, x, step)
        return normed(x, self.model.norm), step

    @torch.no_grad()
    def head(self, states: Tensor) -> Tensor:
        """Logits [n, vocabulary] of states [n, h]."""
        logits: Tensor = self.model.head(states)
        return logits

    @torch.no_grad()
    def draft(self, hidden: Tensor, following: Items[int], step: Step, wanted: Items[int]) -> tuple[list[int], Tensor]:
        """What the first module of multi-token prediction thinks comes next but one.

        Args:
            hidden: [n, h] of ``run``.
            following: The token behind each of the n tokens, any where it is not known.
            step: Of ``run``.
            wanted: Rows to answer for, all with a known following token.

        Returns:
            A token for each of the wanted rows, and the module's own normed states there [wanted, h].
        """
        module = self.model.mtp_modules()[0]
        embedded = self.model.embed_tokens(self._tensor(following))
        x = module.eh_proj(torch.cat([module.enorm(embedded), module.hnorm(hidden)], dim=-1))
        states = module.norm(self._through(self._mtp_layers[0], x, step)[self._tensor(wanted)])
        best: list[int] = self.head(states).argmax(-1).tolist()
        return best, states

    def draft_on(self, parts: Items[Part], states: Tensor, guessed: Items[int]) -> tuple[list[int], Tensor]:
        """One token further, the module's own guesses and states [n, h] taken for the network's.

        Args:
            parts: One token of each sequence, at the place of the state that the module made up; what is left there is
                overwritten when the network itself comes to it.
            states: Of the last guess.
            guessed: The tokens guessed last.
        """
        return self.draft(states, guessed, self._step(parts), range(len(parts)))

    def _step(self, parts: Items[Part]) -> Step:
        places: list[int] = []
        slots: list[int] = []
        stretches = []
        for part in parts:
            end, table = part.start + part.count, part.sequence.table
            first = len(places)
            places += range(part.start, end)
            slots += self.cache.slots(table, part.start, end)
            seen = self._first_seen(part.start) if part.count == 1 else 0
            reader = self.cache.reader(table, end)
            if seen:
                reader = slice(reader.start + seen, reader.stop) if isinstance(reader, slice) else reader[seen:]
            stretches.append(Stretch(first, len(places), reader, self._mask(part.start, end), part.start == 0))
        cos, sin = self.model.rope(self._tensor(places), max(places) + 1)
        beside = slots[-1] - slots[0] == len(slots) - 1 and len(parts) == 1
        return Step(
            cos=torch.cat([cos, cos], dim=-1)[:, None],
            sin=torch.cat([-sin, sin], dim=-1)[:, None],
            slots=slice(slots[0], slots[-1] + 1) if beside else self._tensor(slots),
            stretches=tuple(stretches),
        )

    def _first_seen(self, place: int) -> int:
        window = self._config.sliding_window
        return 0 if window is None else max(0, place - window + 1)

    def _mask(self, start: int, end: int) -> Tensor | None:
        window = self._config.sliding_window
        if end - start == 1 or (start == 0 and (window is None or end <= window)):
            return None
        place = torch.arange(start, end, device=self.model.device)[:, None]
        seen = torch.arange(end, device=self.model.device)
        mask = seen <= place
        return mask if window is None else mask & (seen > place - window)

    def _through(self, layer: FusedLayer, x: Tensor, step: Step) -> Tensor:
        rows, without, turned = layer.into(x, step.cos, step.sin)
        self.cache.write(layer.layer, step.slots, rows)
        return layer.out_of(x, self._attend(layer, rows, without, turned, step).flatten(1))

    def _attend(self, layer: FusedLayer, rows: Tensor, without: Tensor, turned: Tensor, step: Step) -> Tensor:
        """What each token finds: ``rows`` [n, W] just cached, queries [n, H, N] and [n, H, D] -> [n, H, V]."""
        attention = layer.attention
        found = turned.new_empty(turned.shape[0], self._config.num_attention_heads, self._config.v_head_dim)
        absorbing = []
        for stretch in step.stretches:
            here = slice(stretch.first, stretch.last)
            count = stretch.last - stretch.first
            if count == 1 and self._config.is_grouped:
                self._decode_grouped(layer.layer, turned[stretch.first], stretch, found[stretch.first])
                continue
            seen = rows[here] if stretch.fresh else self.cache.read(layer.layer, stretch.reader)
            if self._absorbs(attention, count, seen.shape[0], stretch.fresh):
                absorbing.append((stretch, seen))
                continue
            mask = None if stretch.mask is None else stretch.mask[None, None]
            found[here] = attention.decompressed(without[None, here], turned[None, here], seen[None], mask)[0]
        if absorbing:
            self._absorbed(attention, without, turned, absorbing, found)
        return found

    def _absorbs(self, attention: MultiHeadLatentAttention, count: int, seen: int, fresh: bool) -> bool:
        if self._config.is_grouped or self._config.rope_key_heads > 1:
            return False
        return count == 1 or (not fresh and attention._absorbing_is_cheaper(count, seen))

    def _decode_grouped(self, layer: int, query: Tensor, stretch: Stretch, out: Tensor) -> None:
        """``query`` [H, D] of one token, turned -> ``out`` [H, V]."""
        groups = self._config.rope_key_heads
        if isinstance(stretch.reader, slice):
            keys, values = self._keys[layer, :, :, stretch.reader], self._values[layer, :, stretch.reader]
        else:
            rows = self.cache.read(layer, stretch.reader)
            values, keys = rows.split([self._config.kv_lora_rank, self._config.rope_key_width], dim=-1)
            keys = keys.unflatten(1, (groups, -1)).permute(1, 2, 0)
            values = values.unflatten(1, (groups, -1)).transpose(0, 1)
        scores = at_least_float32(matmul(query.unflatten(0, (groups, -1)), keys)) * self._config.softmax_scale
        out.copy_(matmul(scores.softmax(-1).to(query.dtype), values).flatten(0, 1))

    def _absorbed(
        self,
        attention: MultiHeadLatentAttention,
        without: Tensor,
        turned: Tensor,
        stretches: list[tuple[Stretch, Tensor]],
        found: Tensor,
    ) -> None:
        """MLA over latent rows as they stand, for all stretches that do; writes into ``found`` [n, H, V]."""
        up_key, up_value = attention.up_projections()  # [H, N, R], [H, V, R]
        rank = self._config.kv_lora_rank
        # Queries in the space of the rows: [n, H, R + D].
        queries = torch.cat([matmul(without.transpose(0, 1), up_key).transpose(0, 1), turned], dim=-1)
        for stretch, rows in stretches:
            here = slice(stretch.first, stretch.last)
            count, heads = stretch.last - stretch.first, queries.shape[1]
            scores = at_least_float32(matmul(queries[here].flatten(0, 1), rows.t())) * self._config.softmax_scale
            if stretch.mask is not None:
                hidden = ~stretch.mask[:, None]
                scores = scores.view(count, heads, -1).masked_fill_(hidden, -torch.inf).view_as(scores)
            shares = scores.softmax(-1).to(rows.dtype)
            summed = matmul(shares, rows[:, :rank]).view(count, heads, rank)
            found[here] = matmul(summed.transpose(0, 1), up_value.transpose(1, 2)).transpose(0, 1)

    def _tensor(self, values: Items[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.model.device)
