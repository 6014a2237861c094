"""The latent rows of all sequences, in blocks.

One tensor [layers, blocks * block_size, latent_width]: what a token leaves in a layer is one row, whatever the
attention (a latent and a rotary key, or the values and keys of grouped attention). A sequence's rows lie in its blocks,
in order; where the blocks lie side by side its rows are a view, and nothing is copied to read them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepwell.lm.engine.pages import Pages
from deepwell.lm.model.config import ModelConfig


class PagedCache:
    """Rows of latents for every layer, modules of multi-token prediction last if ``mtp`` is set."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        mtp: bool = False,
    ) -> None:
        layers = config.num_hidden_layers + (config.num_nextn_predict_layers if mtp else 0)
        self.block_size = block_size
        self.blocks = blocks
        # Not zeroed: memory that was never written is not taken from the system, and never read either.
        shape = (layers, blocks * block_size, config.latent_width)
        if torch.device(device).type == "cpu":
            self.rows = Pages().take(*shape, dtype=dtype)
        else:
            self.rows = torch.empty(shape, dtype=dtype, device=device)

    @property
    def bytes(self) -> int:
        """Memory that the rows take when all are written."""
        return self.rows.numel() * self.rows.element_size()

    def slots(self, table: Sequence[int], start: int, end: int) -> list[int]:
        """The rows at which the tokens ``start`` to ``end`` of a sequence with this table lie."""
        size = self.block_size
        return [table[place // size] * size + place % size for place in range(start, end)]

    def reader(self, table: Sequence[int], length: int) -> slice | Tensor:
        """What to index a layer with to get the first ``length`` rows: a slice where they lie side by side."""
        blocks = -(-length // self.block_size)
        first = table[0]
        if table[blocks - 1] - first == blocks - 1 and list(table[:blocks]) == list(range(first, first + blocks)):
            start = first * self.block_size
            return slice(start, start + length)
        return torch.tensor(self.slots(table, 0, length), device=self.rows.device)

    def write(self, layer: int, slots: Tensor | slice, rows: Tensor) -> None:
        """Store ``rows`` [N, W] of one layer at ``slots`` [N]."""
        self.rows[layer, slots] = rows

    def read(self, layer: int, reader: slice | Tensor) -> Tensor:
        """Rows [S, W] of one layer; a view for a slice, else a copy."""
        return self.rows[layer, reader] if isinstance(reader, slice) else self.rows[layer].index_select(0, reader)
