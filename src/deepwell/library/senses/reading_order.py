"""The order in which a person reads the lines of a page: columns one after the other, headings before what they head.

A recursive cut of the page. Where a white channel runs through it from top to bottom and what stands on both sides is
wide enough to be columns of prose (a table's cells are not), read the left side, then the right. Otherwise cut between
two rows, at the place that frees the most lines to be read in columns, so that a heading across the page is cut off
before the columns below it. What cannot be cut is read row by row, from the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_COLUMN_WIDTH = 8.0
"""Half of a column's lines are at least this many line heights wide; narrower blocks are cells of a table."""

_COLUMN_LINES = 3
_CHANNEL = 0.4
"""A channel between columns is at least this many line heights wide."""


def reading_order(boxes: Sequence[tuple[float, float, float, float]]) -> list[int]:
    """Indexes of lines in reading order.

    Args:
        boxes: Left, top, right, bottom of each line, in one unit for both axes (pixels, not fractions).
    """
    if not boxes:
        return []
    array = np.asarray(boxes, dtype=np.float64)  # [N, 4]
    height = float(np.median(array[:, 3] - array[:, 1])) or 1.0
    return _ordered(array, np.arange(len(array)), height)


def _ordered(boxes: NDArray[np.float64], lines: NDArray[np.intp], height: float) -> list[int]:
    columns = _columns(boxes, lines, height)
    if columns is not None:
        return [i for column in columns for i in _ordered(boxes, column, height)]
    best, freed = None, 0
    for cut in _gaps(boxes[lines, 1], boxes[lines, 3], at_least=0.0):
        above = lines[boxes[lines, 3] <= cut + 1e-9]
        below = lines[boxes[lines, 3] > cut + 1e-9]
        free = sum(len(part) for part in (above, below) if _columns(boxes, part, height) is not None)
        if free > freed:
            best, freed = (above, below), free
    if best is not None:
        return [i for part in best for i in _ordered(boxes, part, height)]
    return _by_rows(boxes, lines)


def _columns(boxes: NDArray[np.float64], lines: NDArray[np.intp], height: float) -> list[NDArray[np.intp]] | None:
    """Columns of prose from the left, or None when these lines do not stand in columns."""
    if len(lines) < 2 * _COLUMN_LINES:
        return None
    cuts = _gaps(boxes[lines, 0], boxes[lines, 2], at_least=_CHANNEL * height)
    if not cuts:
        return None
    edges = [-np.inf, *cuts, np.inf]
    lefts = boxes[lines, 0]
    parts = [lines[(lefts >= a) & (lefts < b)] for a, b in pairwise(edges)]
    if not all(len(part) >= _COLUMN_LINES and _is_prose(boxes[part], height) for part in parts):
        return None
    return parts


def _is_prose(boxes: NDArray[np.float64], height: float) -> bool:
    return float(np.median(boxes[:, 2] - boxes[:, 0])) >= _COLUMN_WIDTH * height


def _gaps(starts: NDArray[np.float64], ends: NDArray[np.float64], *, at_least: float) -> list[float]:
    """Middles of the gaps that no interval covers, in order; intervals that only just touch still leave a gap of 0."""
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    room = starts[1:] - reach[:-1]
    return [float((starts[i + 1] + reach[i]) / 2) for i in np.flatnonzero(room >= at_least)]


def _by_rows(boxes: NDArray[np.float64], lines: NDArray[np.intp]) -> list[int]:
    """Top to bottom; lines whose middles lie within each other's height form a row and are read from the left."""
    rows: list[list[int]] = []
    for i in sorted(lines.tolist(), key=lambda i: (boxes[i, 1] + boxes[i, 3]) / 2):
        middle = (boxes[i, 1] + boxes[i, 3]) / 2
        if rows and boxes[rows[-1][0], 1] <= middle <= boxes[rows[-1][0], 3]:
            rows[-1].append(i)
        else:
            rows.append([i])
    return [i for row in rows for i in sorted(row, key=lambda i: boxes[i, 0])]
