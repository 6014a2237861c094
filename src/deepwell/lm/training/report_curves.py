"""The curves of a report: how the losses fell, how fast it went, and whether the experts shared the work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepwell.lm.training.charts import Series, heat_map, line_chart
from deepwell.lm.training.figures import centred, count, decimals, imbalance, layer_names, share
from deepwell.lm.training.records import Ended, Noted, Sampled, Started, Stepped, Validated
from deepwell.lm.training.report_page import card, cards, folded, legend, table

_COLOURS = 6
_WIDE = 1180


@dataclass(frozen=True, slots=True)
class Diary:
    """A run's records by kind, without what a rollback made void."""

    started: Started
    """Of the last sitting."""
    sittings: list[Started]
    steps: list[Stepped]
    looks: list[Validated]
    samples: list[Sampled]
    notes: list[Noted]
    ended: Ended | None

    @property
    def x(self) -> list[int]:
        """The steps' numbers."""
        return [step.step for step in self.steps]

    @property
    def seconds(self) -> float:
        """Of training."""
        return self.ended.seconds if self.ended else sum(step.seconds for step in self.steps)

    @property
    def tokens(self) -> int:
        """Seen so far."""
        return self.steps[-1].tokens if self.steps else 0

    def smooth(self, values: Sequence[float]) -> list[float]:
        """A curve without its noise: the mean over a fortieth of the run around each step."""
        return centred(values, max(3, len(values) // 80))


def learning(run: Diary) -> list[str]:
    """Cards with the losses and what goes with them, and the looks as a table."""
    speed = [step.tokens_per_second for step in run.steps]
    further = [
        _bits(run),
        _curve(run, "Learning rate", [step.lr for step in run.steps], 4, _small, from_zero=True),
        *_mtp(run),
        _curve(run, "Norm of the gradient", [step.grad_norm for step in run.steps], 2, _short, log=True, smoothed=True),
        _curve(run, "Tokens a second", speed, 3, count, tick=_whole, from_zero=True, smoothed=True),
    ]
    return [cards([_losses(run), *further]), _looks(run)]


def _losses(run: Diary) -> str:
    raw = [step.loss for step in run.steps]
    skipped = [step.step for step in run.steps if step.skipped]
    lines = [
        Series("each step", run.x, raw, 0, "faint"),
        Series("training", run.x, run.smooth(raw), 0),
        Series("held back", [look.step for look in run.looks], [look.loss for look in run.looks], 1, "dots"),
    ]
    names = [("training, smoothed (faint: each step)", 0)] + ([("held back", 1)] if run.looks else [])
    about = "Nats a token, of the main prediction"
    if skipped:
        about += "; red ticks below are steps that were skipped because a loss or gradient was not finite"
    drawn = line_chart(lines, label="loss over steps", show=decimals, show_tick=_short, width=_WIDE, marks=skipped)
    return card("Loss", drawn, about=about, above=legend(names), wide=True)


def _bits(run: Diary) -> str:
    x, y = [look.step for look in run.looks], [look.bits_per_byte for look in run.looks]
    lines = [Series("bits per byte", x, y, 1, "dots")]
    drawn = line_chart(lines, label="bits per byte over steps", show=decimals, show_tick=_short)
    return card("Bits per byte", drawn, about="On what was held back; comparable between tokenizers")


def _curve(
    run: Diary, title: str, values: Sequence[float], colour: int, show: Callable[[float], str], *,
    about: str = "", tick: Callable[[float], str] | None = None, log: bool = False, from_zero: bool = False,
    smoothed: bool = False,
) -> str:  # fmt: skip
    lines = [Series(title, run.x, run.smooth(values) if smoothed else values, colour)]
    if smoothed:
        lines.insert(0, Series(title, run.x, values, colour, "faint"))
    label = f"{title} over steps"
    drawn = line_chart(lines, label=label, show=show, show_tick=tick, log=log, from_zero=from_zero)
    return card(title, drawn, about=about)


def _short(value: float) -> str:
    return f"{value:.3g}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.1e}".replace("e-0", "e-")


def _mtp(run: Diary) -> list[str]:
    """The loss of each further token, and how often the best guess was right."""
    depth = max((len(step.mtp) for step in run.steps), default=0)
    names = [f"token {k + 2}" for k in range(depth)]
    raw = [_column([step.mtp for step in run.steps], k) for k in range(depth)]
    faint = [Series(name, run.x, raw[k], k % _COLOURS, "faint") for k, name in enumerate(names)]
    lines = [*faint, *(Series(one.name, run.x, run.smooth(one.y), one.colour) for one in faint)]
    x = [look.step for look in run.looks]
    right = [
        Series(name, x, _column([look.mtp_right for look in run.looks], k), k % _COLOURS, "dots")
        for k, name in enumerate(names)
    ]
    key = legend([(name, k % _COLOURS) for k, name in enumerate(names)]) if depth > 1 else ""
    which = "the second token from here" if depth == 1 else "tokens further on"
    loss = line_chart(lines, label="MTP loss over steps", show=decimals, show_tick=_short)
    found = line_chart(right, label="share of further tokens right", show=share, from_zero=True)
    return [
        card("Multi-token prediction: loss", loss, about=f"Nats a token, of {which}", above=key),
        card("Multi-token prediction: right", found, about=f"Share of {which} that is guessed right", above=key),
    ]


def _column(rows: Sequence[Sequence[float]], at: int) -> list[float]:
    return [row[at] if at < len(row) else math.nan for row in rows]


def _looks(run: Diary) -> str:
    depth = max((len(look.mtp_right) for look in run.looks), default=0)
    header = ["step", "loss", "bits per byte", *(f"token {k + 2} right" for k in range(depth)), "predictions"]
    rows = []
    for look in run.looks:
        right = [*map(share, look.mtp_right), *[""] * (depth - len(look.mtp_right))]
        rows.append(
            [f"{look.step:,}", decimals(look.loss), decimals(look.bits_per_byte), *right, f"{look.predictions:,}"]
        )
    return folded("Looks at what was held back, as a table", table(header, rows) if rows else "")


def experts(run: Diary) -> list[str]:
    """How even the load of experts was, over all layers and in each; empty for a dense network."""
    steps = [step for step in run.steps if step.loads]
    if not steps:
        return []
    layers = max(len(step.loads) for step in steps)
    names = layer_names(layers, len(steps[-1].mtp))
    x = [step.step for step in steps]
    loads = [[step.loads[layer] if layer < len(step.loads) else () for step in steps] for layer in range(layers)]
    found = [run.smooth([imbalance(row) for row in rows]) for rows in loads]
    maps = []
    for name, rows, values in zip(names, loads, found, strict=True):
        told = f"{max(map(len, rows))} experts; at the end the busiest has {decimals(values[-1], 2)} times the mean"
        ends = f'<div class="axisnote"><span>step {x[0]:,}</span><span>step {x[-1]:,}</span></div>'
        maps.append(card(name, heat_map(rows, label=f"expert load of {name}"), about=told, below=ends))
    key = (
        '<p class="about">Load of each expert (one row) over the run: a quarter of the mean'
        '<span class="ramp"></span>four times the mean; no colour is an even share.</p>'
    )
    loss = [step.balance for step in run.steps]
    balance = ""
    if any(loss):
        about = "Of each sequence, with its weight: small beside the main loss"
        balance = _curve(run, "Balance loss", loss, 5, _small, about=about, smoothed=True)
    drawn = [cards([_imbalance(names, x, found, wide=not balance), balance]), cards(maps, small=True)]
    return [drawn[0], key, drawn[1]] if drawn[1] else []


def _imbalance(names: Sequence[str], x: Sequence[int], found: Sequence[Sequence[float]], *, wide: bool) -> str:
    """All layers in colours if they are few; else all faint, with the one that is worst at the end and the mean."""
    if len(found) <= _COLOURS:
        lines = [Series(name, x, y, at) for at, (name, y) in enumerate(zip(names, found, strict=True))]
    else:
        worst = max(range(len(found)), key=lambda at: found[at][-1] if math.isfinite(found[at][-1]) else 0.0)
        mean = [statistics.fmean(values) for values in zip(*found, strict=True)]
        lines = [Series(name, x, y, 0, "faint") for name, y in zip(names, found, strict=True)]
        lines += [Series("mean of layers", x, mean, 0), Series(f"worst at the end: {names[worst]}", x, found[worst], 1)]
    key = legend((line.name, line.colour) for line in lines if line.look != "faint")
    width = _WIDE if wide else 640
    drawn = line_chart(lines, label="largest over mean load", show=_hundredths, show_tick=_short, width=width)
    return card(
        "Balance", drawn, about="Load of the busiest expert over the mean load; 1 is even", above=key, wide=wide
    )


def _hundredths(value: float) -> str:
    return f"{value:.2f}"
