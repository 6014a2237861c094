"""Memory for what is read from end to end in every step: in large pages, where the system has them.

A processor foresees what it will need up to the end of a page, and a page is 4 KB unless one asks for more. Weights and
the cache are therefore cut out of a few large pieces that ask for pages of 2 MB.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

ALIGN = 64
_PIECE = 2**25
"""Bytes of a piece; what is larger gets one of its own. Only what is written takes memory."""
_LARGE_PAGE = 2**21


class Pages:
    """Tensors, one after the other, each at a whole cache line. A piece lives as long as any tensor of it."""

    def __init__(self) -> None:
        self._piece: Tensor | None = None
        self._used = 0

    def take(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor of memory that was never used."""
        count = math.prod(shape)
        size = count * torch.empty((), dtype=dtype).element_size()
        if self._piece is None or self._used + size > len(self._piece):
            self._piece, self._used = _piece(max(size, _PIECE)), 0
        taken = self._piece[self._used : self._used + size]
        self._used += -(-size // ALIGN) * ALIGN
        return taken.view(dtype).view(shape)


def _piece(size: int) -> Tensor:
    """At least ``size`` bytes that begin at a large page."""
    # Private: mapped shared, as is the default, a forked child would compute in its parent's rows.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    whole = mmap.mmap(-1, -(-size // _LARGE_PAGE) * _LARGE_PAGE + _LARGE_PAGE, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        whole.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(whole, dtype=torch.uint8)
    skip = -memory.data_ptr() % _LARGE_PAGE
    return memory[skip : skip + -(-size // ALIGN) * ALIGN]
