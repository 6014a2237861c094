"""Puts things of different lengths into rows of one length, none cut: first fit over a window of open rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

WINDOW = 64
"""Rows that are open at once. More fill rows better and take longer; with 64, rows of chats are about 99% full."""


def first_fit(lengths: Iterable[int], capacity: int, *, window: int = WINDOW) -> list[list[int]]:
    """Rows of numbers of items, each item in the first open row that has room for it.

    Rows come in the order in which they were opened, items in each in the order given. When a row more than ``window``
    would be open, the fullest one is closed.

    Args:
        lengths: Of the items, each at most ``capacity``.
    """
    rows: list[list[int]] = []
    # Of each open row its number and what is left, in the order of their opening.
    numbers: list[int] = []
    left = np.empty(0, dtype=np.int64)
    for item, length in enumerate(lengths):
        fits = left >= length
        place = int(fits.argmax()) if len(fits) else 0
        if len(fits) and fits[place]:
            rows[numbers[place]].append(item)
            left[place] -= length
            continue
        if len(numbers) == window:
            fullest = int(left.argmin())
            del numbers[fullest]
            left = np.delete(left, fullest)
        numbers.append(len(rows))
        left = np.append(left, capacity - length)
        rows.append([item])
    return rows
