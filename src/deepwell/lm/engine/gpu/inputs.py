"""The inputs of a decoding step, always at the same place in a GPU's memory, as a recorded graph needs them.

A step is written into memory of the host that the GPU can fetch by itself (pinned) and copied over in one go. Tables of
blocks are long and change at every sixteenth token only, so they are copied when one of them has changed.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from deepwell.lm.engine.gpu.attention import Looks
from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.engine.scheduler import Part


class DecodeInputs:
    """Room for ``most`` tokens: what they are, where they stand, and what they look at."""

    def __init__(self, cache: PagedCache, *, most: int, longest: int, window: int | None) -> None:
        """Make room.

        Args:
            cache: Where the rows are.
            most: Tokens of a step.
            longest: Tokens of a sequence.
            window: As the network's sliding window.
        """
        device = cache.rows.device
        pinned = device.type == "cuda"
        blocks = -(-longest // cache.block_size)
        self._cache = cache
        self._window = window
        self._known: list[list[int]] = [[] for _ in range(most)]
        self._numbers = torch.zeros(3, most, dtype=torch.int64, pin_memory=pinned)
        self._spans = torch.zeros(2, most, dtype=torch.int32, pin_memory=pinned)
        self._tables = torch.zeros(most, blocks, dtype=torch.int32, pin_memory=pinned)
        self._device_numbers = torch.zeros_like(self._numbers, device=device)
        self._device_spans = torch.zeros_like(self._spans, device=device)
        self._device_tables = torch.zeros_like(self._tables, device=device)
        self._copied = torch.cuda.Event() if pinned else None

    def fill(self, parts: Items[Part], size: int) -> None:
        """Write a step of up to ``size`` tokens; the last token is repeated until there are ``size``.

        A repeated token computes what its original does and writes the same row to the same place, so it harms nobody.
        The copies are not waited for here, but before the next step is written over what they read.
        """
        tokens: list[int] = []
        places: list[int] = []
        slots: list[int] = []
        changed = False
        if self._copied is not None:
            self._copied.synchronize()
        for part in parts:
            end, table = part.start + part.count, part.sequence.table
            for row in range(len(tokens), len(tokens) + part.count):
                changed |= self._write_table(row, table)
            tokens += part.tokens
            places += range(part.start, end)
            slots += self._cache.slots(table, part.start, end)
        for row in range(len(tokens), size):
            changed |= self._write_table(row, parts[-1].sequence.table)
        more = size - len(tokens)
        numbers = [[*values, *values[-1:] * more] for values in (tokens, places, slots)]
        firsts = [first_seen(place, self._window) for place in numbers[1]]
        self._numbers[:, :size] = torch.tensor(numbers)
        self._spans[:, :size] = torch.tensor([firsts, [place + 1 for place in numbers[1]]])
        self._device_numbers.copy_(self._numbers, non_blocking=True)
        self._device_spans.copy_(self._spans, non_blocking=True)
        if changed:
            self._device_tables[:size].copy_(self._tables[:size], non_blocking=True)
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._device_numbers.device))

    def _write_table(self, row: int, table: list[int]) -> bool:
        if self._known[row] == table:
            return False
        self._known[row] = list(table)
        self._tables[row, : len(table)] = torch.tensor(table, dtype=torch.int32)
        return True

    def tokens(self, size: int) -> Tensor:
        """[size] int64 on the device, as the views below."""
        return self._device_numbers[0, :size]

    def places(self, size: int) -> Tensor:
        """[size] int64: where the tokens stand in their sequences."""
        return self._device_numbers[1, :size]

    def slots(self, size: int) -> Tensor:
        """[size] int64: their rows in the cache."""
        return self._device_numbers[2, :size]

    def looks(self, size: int) -> Looks:
        """Which rows they look at."""
        return Looks(self._device_tables[:size], self._device_spans[0, :size], self._device_spans[1, :size])


def first_seen(place: int, window: int | None) -> int:
    """The first place that a token at ``place`` looks at."""
    return 0 if window is None else max(0, place - window + 1)
