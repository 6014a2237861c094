"""One step of the engine by the compiled program: what ``deepwell.lm.engine.runner.Runner`` is for PyTorch.

The result of a token has the same bits alone and in company, in one piece of a prompt or in many, as a guess that is
checked or as the next token: guesses and reuse can never change an answer.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence as Items
from typing import cast

import numpy as np
import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.engine.native import library as native
from deepwell.lm.engine.native.program import Precision, Program, Rows, supports, write, write_head, write_mtp
from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.engine.scheduler import Part
from deepwell.lm.model.transformer import Block, Transformer


class NativeRunner:
    """The network's program and the cache, ready to compute steps.

    Attributes:
        precision: Of the weights.
        threads: That compute a step; at first as many as torch has.
    """

    def __init__(
        self,
        model: Transformer,
        cache: PagedCache,
        precision: Precision,
        *,
        most_rows: int,
        most_chosen: int,
        consume: bool = False,
        library: native.Library | None = None,
    ) -> None:
        """Write the program.

        Args:
            model: The network, on the CPU.
            cache: Where its tokens leave their rows, float32 or bf16.
            precision: Of the weights in the program.
            most_rows: Tokens of a step.
            most_chosen: Rows that are asked for logits at once; more are asked in turns.
            consume: Let go of the network's own weights as they are copied; it keeps its shape alone (on ``meta``).
            library: The build to use; None: the best for this processor.

        Raises:
            UsageError: There is no compiled part here, or it cannot carry out this network.
        """
        found = library or native.library()
        if found is None or not supports(model.config):
            raise UsageError("the compiled engine cannot carry out this network here")
        self.precision = precision
        self.threads = torch.get_num_threads()
        self._library = found
        self._cache = cache
        self._rope = model.rope
        self._config = config = model.config
        self._rows = Rows(most_rows)
        self._few = Rows(most_chosen)
        hidden = config.hidden_size
        self._x, self._hidden = self._rows("x", hidden), self._rows("hidden", hidden)
        self._chosen, self._logits = self._few("chosen", hidden), self._few("logits", config.vocab_size)
        self._embedding = self._table(model, consume)
        self._head = write_head(model, precision, self._few)
        self._drafts: Program | None = None
        modules = model.mtp_modules()[:1]
        if modules and cache.rows.shape[0] > config.num_hidden_layers:
            self._following = self._rows("following", hidden)
            self._drafted = self._rows("drafted", hidden)
            self._drafts = write_mtp(modules[0], config, cache, precision, self._rows)
        for layer, program in enumerate(write(model, cache, precision, self._rows)):
            self._program = program
            if consume and layer < len(model.layers):
                cast(Block, model.layers[layer]).to("meta")
        if consume:
            model.to("meta")
            gc.collect()

    def _table(self, model: Transformer, consume: bool) -> Tensor:
        """The embedding: the network's own, or a copy that is as small as the precision allows."""
        table = model.embed_tokens.weight.detach()
        if self.precision == "f32" or table.dtype is torch.bfloat16:
            return table if not consume or table.dtype is torch.bfloat16 else table.clone()
        return table.to(torch.bfloat16)

    @property
    def weight_bytes(self) -> int:
        """Of the matrices that a step multiplies with; the embedding, of which it reads few rows, is not among them."""
        return self._program.weight_bytes + self._head.weight_bytes

    def run(self, parts: Items[Part]) -> tuple[Tensor, native.Batch]:
        """The normed states [n, h] of all tokens of the parts, good until the next step, and the step itself."""
        tokens = [token for part in parts for token in part.tokens]
        batch = self._batch(parts, len(tokens))
        self._embed(tokens, self._x)
        self._program.run(self._library, batch)
        return self._hidden[: len(tokens)], batch

    def head(self, states: Tensor) -> Tensor:
        """Logits [n, vocabulary] of states [n, h], good until the next call where n is small."""
        most = self._few.most
        if len(states) <= most:
            return self._head_of(states)
        return torch.cat([self._head_of(states[first : first + most]).clone() for first in range(0, len(states), most)])

    def draft(
        self, hidden: Tensor, following: Items[int], step: native.Batch, wanted: Items[int]
    ) -> tuple[list[int], Tensor]:
        """As ``Runner.draft``; the program reads ``hidden`` where ``run`` left it."""
        assert self._drafts is not None
        if hidden.data_ptr() != self._hidden.data_ptr():
            self._hidden[: len(hidden)] = hidden
        self._embed(following, self._following)
        self._drafts.run(self._library, step)
        states = self._drafted[list(wanted)]
        best: list[int] = self.head(states).argmax(-1).tolist() if wanted else []
        return best, states

    def draft_on(self, parts: Items[Part], states: Tensor, guessed: Items[int]) -> tuple[list[int], Tensor]:
        """As ``Runner.draft_on``."""
        return self.draft(states, guessed, self._batch(parts, len(parts)), range(len(parts)))

    def _head_of(self, states: Tensor) -> Tensor:
        rows = len(states)
        self._chosen[:rows] = states
        self._head.run(self._library, native.Batch(rows=rows, threads=self.threads))
        return self._logits[:rows]

    def _embed(self, tokens: Items[int], to: Tensor) -> None:
        to[: len(tokens)] = self._embedding[torch.tensor(tokens)]

    def _batch(self, parts: Items[Part], rows: int) -> native.Batch:
        """The step's places, slots and tables. What it points to lives as long as it does."""
        size = self._cache.block_size
        stretches = (native.Stretch * len(parts))()
        places = np.empty(rows, dtype=np.int64)
        slots = np.empty(rows, dtype=np.int64)
        tables: list[int] = []
        first = 0
        for index, part in enumerate(parts):
            last, end = first + part.count, part.start + part.count
            used = part.sequence.table[: -(-end // size)]
            here = np.arange(part.start, end)
            places[first:last] = here
            slots[first:last] = np.array(used, dtype=np.int64)[here // size] * size + here % size
            stretches[index] = native.Stretch(first, last, part.start, len(tables))
            tables += used
            first = last
        cosine, sine = self._rope(torch.from_numpy(places), int(places.max()) + 1)
        blocks = np.array(tables, dtype=np.int32)
        batch = native.Batch(
            rows, len(parts), size, self.threads, cosine.data_ptr(), sine.data_ptr(), slots.ctypes.data,
            ctypes.addressof(stretches), blocks.ctypes.data,
        )  # fmt: skip
        batch.kept = (cosine, sine, slots, stretches, blocks)
        return batch
