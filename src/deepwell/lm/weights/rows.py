"""The two orders in which files keep the rows that rope turns.

Rope turns pairs of dimensions. A file may keep the two of a pair side by side (dimensions 2j and 2j + 1: DeepSeek's
checkpoints, GGUF's ``llama`` and ``deepseek2``) or half a head apart (j and j + D/2: Llama and Qwen2 safetensors, and
every network in Deepwell's memory). Both give the same scores when queries and keys agree, so rows are moved once when
a file is read and moved back when it is written, and nothing else needs to know.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryRows:
    """Which rows of a projection rope turns: the last ``rope_dim`` of each of ``heads`` heads.

    Attributes:
        heads: How many heads (or rotary keys) lie one below the other.
        head_dim: Rows of one head, those without rope first.
        rope_dim: Rows of one head that rope turns.
        offset: Rows before the first head, which rope leaves alone (the latent).
    """

    heads: int
    head_dim: int
    rope_dim: int
    offset: int = 0

    def to_halves(self, rows: Tensor) -> Tensor:
        """From pairs side by side (a file) to halves (memory). ``rows``: ``[rows, ...]``; a new tensor, same shape."""
        return self._swapped(rows, (self.rope_dim // 2, 2))

    def to_pairs(self, rows: Tensor) -> Tensor:
        """From halves (memory) to pairs side by side (a file). ``rows``: ``[rows, ...]``; a new tensor, same shape."""
        return self._swapped(rows, (2, self.rope_dim // 2))

    def _swapped(self, rows: Tensor, grid: tuple[int, int]) -> Tensor:
        """The rows of each head that rope turns, written into a grid line by line and read column by column."""
        moved = rows.clone(memory_format=torch.contiguous_format)
        rotary = self._rotary(moved).clone()
        turned = rotary.reshape(self.heads, *grid, -1).transpose(1, 2).reshape(rotary.shape)
        self._rotary(moved).copy_(turned)
        return moved

    def _rotary(self, rows: Tensor) -> Tensor:
        """A view of the rows that rope turns: ``[heads, rope_dim, ...]``."""
        heads = rows[self.offset :].view(self.heads, self.head_dim, *rows.shape[1:])
        return heads[:, self.head_dim - self.rope_dim :]
