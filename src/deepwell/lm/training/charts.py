"""Charts as SVG, written by hand: lines over steps, and maps of expert load. They need no script and no network.

Colours are variables of the page (``var(--c0)``), so a chart is right on light and on dark paper. Values that are not
finite leave a gap. A line of more points than the chart has columns is drawn by the least and the largest value of
each column, so that no spike is lost.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

__all__ = ["Series", "heat_map", "line_chart", "ticks"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 66, 10, 26
_HEIGHT = 250


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart: ``y`` over ``x``, in the page's colour of that number."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    look: Literal["line", "faint", "dots"] = "line"
    """``faint``: behind the others and without a label; ``dots``: a line with a dot for each point."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels, straight or by the logarithm."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = field(default=False)

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(max(value, self.low * 1e-3)) if self.log else value
        return self.begin + (at - low) / (high - low) * (self.end - self.begin)


def ticks(low: float, high: float, count: int = 5, *, log: bool = False) -> list[float]:
    """Round numbers between two values: multiples of 1, 2 or 5, and for ``log`` powers of ten if there are enough."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
            found = [step * 10.0**decade for decade in decades for step in steps]
            found = [value for value in found if low <= value <= high]
            if len(found) >= 3:
                return found[:: -(-len(found) // (count + 2))]
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    show: Callable[[float], str],
    show_tick: Callable[[float], str] | None = None,
    width: int = 640,
    log: bool = False,
    from_zero: bool = False,
    marks: Iterable[float] = (),
) -> str:
    """Lines over steps, with axes, a label at the end of each line, and ticks below for ``marks`` (skipped steps).

    Args:
        series: What to draw; those without a finite value are left out.
        label: What is shown, for who cannot see it.
        show: A value as text.
        show_tick: A value of the axis as text; without it as ``show``.
        width: In pixels of the drawing; it is scaled to the page.
        log: A logarithmic axis. Values of 0 and below are left out.
        from_zero: The axis begins at 0.
        marks: Steps to mark.

    Returns:
        An ``svg`` element; an empty string where there is nothing to draw.
    """
    drawn = [one for one in (_usable(each, log) for each in series) if any(map(math.isfinite, one.y))]
    if not drawn:
        return ""
    low, high = _range([value for one in drawn for value in one.y if math.isfinite(value)], log, from_zero)
    steps = [value for one in drawn for value in one.x]
    first, last = min(steps), max(steps)
    if first == last:
        first, last = first - 1, last + 1
    across = _Scale(first, last, _LEFT, width - _RIGHT)
    up = _Scale(low, high, _HEIGHT - _BOTTOM, _TOP, log)
    parts = _axes(across, up, show_tick or show, width)
    parts += [f'<path class="mark" d="M{across(mark):.1f} {_HEIGHT - _BOTTOM}v-7"/>' for mark in marks]
    for one in sorted(drawn, key=lambda each: each.look != "faint"):
        look = "faint" if one.look == "faint" else "line"
        parts.append(f'<path class="{look}" style="stroke:var(--c{one.colour})" d="{_path(one, across, up)}"/>')
        if one.look == "dots" or sum(map(math.isfinite, one.y)) == 1:
            parts += _dots(one, across, up, show)
    parts += _end_labels([one for one in drawn if one.look != "faint"], up, show, width)
    return f'<svg viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="{escape(label)}">' + "".join(parts) + "</svg>"


def _usable(one: Series, log: bool) -> Series:
    y = [value if math.isfinite(value) and not (log and value <= 0) else math.nan for value in one.y]
    return Series(one.name, one.x, y, one.colour, one.look)


def _range(values: list[float], log: bool, from_zero: bool) -> tuple[float, float]:
    """What the axis spans: all values but the few highest, for one spike must not flatten the rest."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[min(len(ordered) - 1, math.ceil(len(ordered) * 0.998))]
    if log:
        return low / 1.15, high * 1.15
    if from_zero:
        return min(low, 0.0), high * 1.05 if high > 0 else 1.0
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _axes(across: _Scale, up: _Scale, show: Callable[[float], str], width: int) -> list[str]:
    parts = []
    for value in ticks(up.low, up.high, log=up.log):
        y = up(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{width - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(show(value))}</text>')
    whole = [value for value in ticks(across.low, across.high, max(2, width // 110)) if value == int(value) >= 0]
    parts += [
        f'<text x="{across(value):.1f}" y="{_HEIGHT - 7}" text-anchor="middle">{int(value):,}</text>' for value in whole
    ]
    parts.append(f'<path class="axis" d="M{_LEFT} {_HEIGHT - _BOTTOM}H{width - _RIGHT}"/>')
    parts.append(f'<text x="{width - 4}" y="{_HEIGHT - 7}" text-anchor="end">step</text>')
    return parts


def _path(one: Series, across: _Scale, up: _Scale) -> str:
    columns: dict[int, list[tuple[float, float]]] = {}
    pieces: list[str] = []
    begun = False
    crowded = len(one.x) > 2 * (across.end - across.begin)
    for x, y in zip(one.x, one.y, strict=True):
        columns.setdefault(round(across(x)) if crowded else len(columns), []).append((across(x), y))
    for points in columns.values():
        known = [(x, up(y)) for x, y in points if math.isfinite(y)]
        if not known:
            begun = False
            continue
        if len(known) > 2:
            known = sorted({min(known, key=lambda point: point[1]), max(known, key=lambda point: point[1])})
        for x, y in known:
            pieces.append(f"{'L' if begun else 'M'}{x:.1f} {y:.1f}" + ("" if begun else "h0"))  # h0: a lone point shows
            begun = True
    return "".join(pieces)


def _dots(one: Series, across: _Scale, up: _Scale, show: Callable[[float], str]) -> list[str]:
    radius = 3.5 if len(one.x) <= 40 else 2
    return [
        f'<circle class="dot" style="fill:var(--c{one.colour})" cx="{across(x):.1f}" cy="{up(y):.1f}" r="{radius}">'
        f"<title>{escape(one.name)}, step {x:,.0f}: {escape(show(y))}</title></circle>"
        for x, y in zip(one.x, one.y, strict=True)
        if math.isfinite(y)
    ]


def _end_labels(lines: Sequence[Series], up: _Scale, show: Callable[[float], str], width: int) -> list[str]:
    """The last value of each line beside its end, pushed apart where they would overlap."""
    if not lines:
        return []
    ends: list[tuple[float, str, int]] = []
    for one in lines:
        value = next(y for y in reversed(one.y) if math.isfinite(y))
        ends.append((min(max(up(value), _TOP + 4), _HEIGHT - _BOTTOM), show(value), one.colour))
    ends.sort()
    heights = [y for y, _, _ in ends]
    for at in range(1, len(heights)):
        heights[at] = max(heights[at], heights[at - 1] + 14)
    heights[-1] = min(heights[-1], _HEIGHT - _BOTTOM - 2)
    for at in range(len(heights) - 2, -1, -1):
        heights[at] = min(heights[at], heights[at + 1] - 14)
    x = width - _RIGHT + 8
    return [
        f'<text class="end" style="fill:var(--c{colour})" x="{x}" y="{y + 4:.1f}">{escape(text)}</text>'
        for y, (_, text, colour) in zip(heights, ends, strict=True)
    ]


# ---- maps of load ----

_COLD, _WARM = (42, 120, 214), (226, 90, 40)
_LEVELS = 127
_MOST = 2.0
"""Doublings above or below the mean at which the colour is full."""


def heat_map(loads: Sequence[Sequence[float]], *, label: str, columns: int = 160) -> str:
    """Load of each expert over time: experts from top to bottom, steps from left to right.

    Clear is the mean, warm is more, cold is less; full colour at four times the mean or a quarter of it.

    Args:
        loads: For each step, the share of every expert.
        label: What is shown, for who cannot see it.
        columns: Steps next to each other are averaged to so many at most.

    Returns:
        An ``img`` element with a PNG inside; an empty string where there is nothing to draw.
    """
    known = [row for row in loads if row and math.isfinite(sum(row)) and sum(row) > 0]
    if not known:
        return ""
    each = -(-len(known) // columns)
    pictures = [_mean_of(known[at : at + each]) for at in range(0, len(known), each)]
    rows = [bytes(_level(column[expert]) for column in pictures) for expert in range(len(pictures[0]))]
    picture = base64.b64encode(_png(rows)).decode()
    return f'<img class="heat" alt="{escape(label)}" src="data:image/png;base64,{picture}">'


def _mean_of(rows: Sequence[Sequence[float]]) -> list[float]:
    """Mean over steps of each expert's load, as a multiple of the mean over experts."""
    sums = [sum(row[expert] / sum(row) for row in rows) for expert in range(len(rows[0]))]
    return [one * len(sums) / len(rows) for one in sums]


def _level(multiple: float) -> int:
    doublings = math.log2(multiple) if multiple > 0 else -_MOST
    return _LEVELS + round(max(-1.0, min(1.0, doublings / _MOST)) * _LEVELS)


def _png(rows: Sequence[bytes]) -> bytes:
    """A PNG of 8-bit levels whose colours are cold, clear and warm (W3C PNG specification, colour type 3)."""
    palette, alphas = bytearray(), bytearray()
    for level in range(2 * _LEVELS + 1):
        away = (level - _LEVELS) / _LEVELS
        palette += bytes(_WARM if away > 0 else _COLD)
        alphas.append(round(255 * abs(away)))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"PLTE", bytes(palette))
        + chunk(b"tRNS", bytes(alphas))
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )
