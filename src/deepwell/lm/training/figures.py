"""Numbers of a run as people read them, and the small sums behind what panel, TensorBoard and report show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = [
    "ago",
    "centred",
    "clock",
    "count",
    "decimals",
    "duration",
    "imbalance",
    "layer_names",
    "rate",
    "share",
    "smooth",
]

_COUNTS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_RATES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(number: float) -> str:
    """Three digits and a letter: ``1.23M``, ``14.8T``; whole below a thousand; ``B`` is a billion."""
    return _scaled(number, _COUNTS)


def rate(number: float, unit: str) -> str:
    """Three digits, a prefix and the unit: ``rate(4.4e11, "FLOP/s")`` is ``440 GFLOP/s``."""
    scaled = _scaled(number, _RATES)
    return f"{scaled[:-1]} {scaled[-1]}{unit}" if scaled[-1:].isalpha() and scaled != "nan" else f"{scaled} {unit}"


def _scaled(number: float, letters: tuple[tuple[float, str], ...]) -> str:
    if not math.isfinite(number):
        return "nan"
    for size, letter in letters:
        if abs(number) >= size * 0.9995:
            scaled = number / size
            return f"{scaled:.{2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0}f}{letter}"
    return f"{number:.0f}" if number == int(number) else f"{number:.3g}"


def decimals(number: float, places: int = 3) -> str:
    """A loss or a norm: so many places, in powers of ten where that would show nothing."""
    if not math.isfinite(number):
        return str(number)
    if number and not 10**-places <= abs(number) < 1e5:
        return f"{number:.2e}"
    return f"{number:.{places}f}"


def share(part: float) -> str:
    """A share as a percentage: ``34%``, below ten ``3.4%``."""
    if not math.isfinite(part):
        return "–"
    return f"{100 * part:.0f}%" if part >= 0.0995 or part == 0 else f"{100 * part:.1f}%"


def duration(seconds: float) -> str:
    """``42 s``, ``5 min 10 s``, ``3 h 7 min``, ``2 d 4 h``; below ten seconds with a decimal."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def clock(seconds: float) -> str:
    """``0:42``, ``1:02:03``; for what changes while one looks at it."""
    if not math.isfinite(seconds):
        return "–:––"
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def ago(seconds: float) -> str:
    """How long since something happened, roughly: ``now``, ``5 min ago``, ``3 h ago``, ``2 d ago``."""
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {name} ago"
    return "now"


def smooth(values: Iterable[float], weight: float = 0.9) -> list[float]:
    """A running mean in which each value counts ``weight`` times as much as the next one, right from the first value.

    What is not finite is left out of the mean; before the first finite value the result is NaN.
    """
    mean, mass, smoothed = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean, mass = weight * mean + (1 - weight) * value, weight * mass + (1 - weight)
        smoothed.append(mean / mass if mass else math.nan)
    return smoothed


def centred(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and up to ``reach`` on either side, without the lag of a running mean.

    At the beginning, where curves are steep, the window has as many values before as after; at the end it has what is
    there. What is not finite is left out; NaN where nothing is left.
    """
    sums, counts = [0.0], [0]
    for value in values:
        known = math.isfinite(value)
        sums.append(sums[-1] + (value if known else 0.0))
        counts.append(counts[-1] + known)
    means = []
    for at in range(len(values)):
        first, last = at - min(reach, at), min(at + min(reach, at), len(values) - 1) + 1
        number = counts[last] - counts[first]
        means.append((sums[last] - sums[first]) / number if number else math.nan)
    return means


def imbalance(loads: Sequence[float]) -> float:
    """The largest load over the mean load of one layer's experts: 1 is even, the number of experts is the worst.

    NaN where nothing was routed.
    """
    total = sum(loads)
    return max(loads) * len(loads) / total if loads and total > 0 else math.nan


def layer_names(layers: int, mtp: int) -> list[str]:
    """Names of the layers with experts, counted without the dense ones; the last ``mtp`` belong to MTP modules."""
    main = max(0, layers - mtp)
    return [f"MoE {number + 1}" if number < main else f"MTP {number - main + 1}" for number in range(layers)]
