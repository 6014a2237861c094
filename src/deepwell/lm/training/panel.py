"""The panel that one watches while a network learns: how far, how well, how fast, and how experts share the work.

On a terminal it is drawn in place, and as much of it as fits: below 60 columns or 12 lines it is a few short lines.
Where nobody watches (a pipe, a log file) it is a plain line every few seconds, and one for each look at what was held
back, each note and the end.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deepwell.lm.training.figures import clock, count, decimals, duration, imbalance, layer_names, rate, share, smooth
from deepwell.lm.training.records import Ended, Noted, Record, Sampled, Started, Stepped, Validated

__all__ = ["Panel", "sparkline"]

_BARS, _ASCII_BARS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
_KEPT = 60
_NARROW, _LOW = 60, 12


def sparkline(values: Iterable[float], width: int, *, lowest: float | None = None, ascii_only: bool = False) -> str:
    """The last ``width`` values as little bars between their least (or ``lowest``) and their largest; a gap for NaN."""
    bars = _ASCII_BARS if ascii_only else _BARS
    shown = list(values)[-width:] if width > 0 else []
    known = [value for value in shown if math.isfinite(value)]
    if not known:
        return " " * len(shown)
    low, high = min(known) if lowest is None else lowest, max(known)
    step = (high - low) / len(bars) or 1.0
    return "".join(
        bars[max(0, min(int((value - low) / step), len(bars) - 1))] if math.isfinite(value) else " " for value in shown
    )


@dataclass(slots=True)
class _State:
    """What the panel knows: the last of each kind of record, and some losses."""

    started: Started | None = None
    step: Stepped | None = None
    look: Validated | None = None
    sample: Sampled | None = None
    ended: Ended | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=4 * _KEPT))
    paces: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=3))
    seconds: float = 0.0

    def take(self, record: Record) -> None:
        match record:
            case Started():
                self.started = record
            case Stepped():
                self.step = record
                self.losses.append(math.nan if record.skipped else record.loss)
                self.paces.append(record.seconds)
                self.seconds += record.seconds
            case Validated():
                self.look = record
            case Sampled():
                self.sample = record
            case Noted():
                self.notes.append(f"step {record.step:,}: {_line(record.message)}")
            case Ended():
                self.ended = record

    @property
    def done(self) -> int:
        """Steps done."""
        return self.step.step if self.step else self.started.step if self.started else 0

    @property
    def steps(self) -> int:
        """Steps of the run; what is done where that is not known."""
        return max(self.started.steps if self.started else 0, self.done, 1)

    @property
    def left(self) -> float:
        """Seconds to the end at the pace of the last steps; NaN before the first one."""
        return (self.steps - self.done) * sum(self.paces) / len(self.paces) if self.paces else math.nan


class Panel:
    """A context manager that is a watcher: it draws what the records tell.

    Args:
        console: Where to draw; whether it is a terminal decides how.
        quiet: Draw nothing.
        every: Seconds between two plain lines where it is no terminal.
        now: The clock, in seconds.
    """

    def __init__(
        self,
        console: Console,
        quiet: bool = False,
        *,
        every: float = 10.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._quiet = quiet
        self._every = every
        self._now = now
        self._last_line = -math.inf
        self._state = _State()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=4)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None and self._live.is_started:
            self._live.stop()  # draws once more, so that the last state stays on the screen

    def __call__(self, record: Record) -> None:
        """Take a record."""
        self._state.take(record)
        if self._quiet:
            return
        if self._live is not None:
            if not self._live.is_started:  # only now: preparing the data has a bar of its own
                self._live.start()
        else:
            self._tell(record)

    def render(self) -> RenderableType:
        """The panel as it is now, for the console's size."""
        width, height = self._console.size
        state = self._state
        if width < _NARROW or height < _LOW:
            return Text("\n".join(_brief(state, max(1, width))[: max(1, height - 1)]), no_wrap=True, overflow="crop")
        ascii_only = self._console.options.ascii_only
        parts: list[RenderableType] = [_progress(state), "", _values(state, width, ascii_only)]
        room = height - 9 - len(state.notes)  # without frame, progress, figures
        if state.sample is not None:
            room -= 1
        parts += _experts(state, width, room, ascii_only)
        if state.sample is not None and room >= 0:
            text = _line(f"{state.sample.prompt} {state.sample.text}")
            parts.append(Text(f"“{_cut(text, width - 8)}”", "italic dim", no_wrap=True, overflow="ellipsis"))
        parts += [Text(_cut(note, width - 4), "yellow", no_wrap=True, overflow="ellipsis") for note in state.notes]
        return Frame(Group(*parts), title=_title(state, width), title_align="left", border_style="dim")

    def _tell(self, record: Record) -> None:
        match record:
            case Started():
                self._print(f"{_title(self._state, 200).plain}; steps {record.step:,} to {record.steps:,}")
            case Stepped():
                due = self._now() - self._last_line >= self._every
                if due or record.skipped or record.step == self._state.steps:
                    self._last_line = self._now()
                    self._print(_plain_step(self._state, record))
            case Validated():
                more = f", second token {', '.join(map(share, record.mtp_right))} right" if record.mtp_right else ""
                self._print(
                    f"step {record.step:,}  validation loss {decimals(record.loss)}, "
                    f"{decimals(record.bits_per_byte)} bits per byte{more}"
                )
            case Sampled():
                prompt = f"{_line(record.prompt)} > " if record.prompt else ""
                self._print(f"step {record.step:,}  {prompt}{_cut(_line(record.text), 300)}")
            case Noted():
                self._print(f"step {record.step:,}  {_line(record.message)}")
            case Ended():
                how = "done" if record.finished else "stopped"
                self._print(f"{how} at step {record.step:,}: {count(record.tokens)} tokens, {duration(record.seconds)}")

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)
        self._console.file.flush()


def _line(text: str) -> str:
    """One line without control characters: what a network writes must not move the cursor."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in text).split())


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(0, limit - 1)] + "…"


def _title(state: _State, width: int) -> Text:
    run = state.started
    if run is None:
        return Text("training")
    facts = [f"{count(run.parameters)} parameters"]
    if run.active_parameters != run.parameters:
        facts.append(f"{count(run.active_parameters)} active")
    if run.trained_parameters != run.parameters:
        facts.append(f"{count(run.trained_parameters)} trained")
    facts += [run.precision, run.device if run.processes == 1 else f"{run.processes} x {run.device}"]
    name = _line(run.name)
    return Text.assemble((_cut(name, width - 8), "bold"), _cut(f"  {' · '.join(facts)}", max(0, width - 8 - len(name))))


def _progress(state: _State) -> Table:
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    line.add_row(
        Text.assemble("step ", (f"{state.done:,}", "bold"), f" of {state.steps:,}"),
        Padding(ProgressBar(total=state.steps, completed=state.done), (0, 1)),
        Text(f"{share(state.done / state.steps)}  {_times(state)}"),
    )
    return line


def _times(state: _State) -> str:
    if state.ended is not None:
        return ("done" if state.ended.finished else "stopped") + f" after {duration(state.ended.seconds)}"
    return f"{clock(state.seconds)} gone, {clock(state.left)} left"


def _values(state: _State, width: int, ascii_only: bool) -> Table:
    """Two columns of figures."""
    step, look, run = state.step, state.look, state.started
    left: list[tuple[str, Text]] = []
    right: list[tuple[str, Text]] = []
    if step is not None:
        loss = smooth(state.losses)
        bars = sparkline(loss[-_KEPT:], max(0, min(_KEPT, width // 2 - 26)), ascii_only=ascii_only)
        left.append(("loss", Text.assemble((decimals(loss[-1]), "bold"), "  ", (bars, "cyan"))))
    if look is not None:
        left.append(
            ("bits per byte", Text.assemble((decimals(look.bits_per_byte), "bold"), f"  at step {look.step:,}"))
        )
        left.append(("held back", Text(f"loss {decimals(look.loss)}")))
    if step is not None:
        if step.mtp:
            left.append(("MTP loss", Text(", ".join(map(decimals, step.mtp)))))
            if look is not None and look.mtp_right:
                left.append(("second token", Text(f"{', '.join(map(share, look.mtp_right))} right")))
        right.append(("tokens/s", Text.assemble((f"{step.tokens_per_second:,.0f}", "bold"), f"  {count(step.tokens)}")))
        if run is not None and step.share_of_peak:
            right.append(("of the peak", Text(f"{share(step.share_of_peak)} of {rate(run.peak_flops, 'FLOP/s')}")))
        right.append(("memory", Text(rate(step.memory_mb * 1e6, "B"))))
        right.append(("learning rate", Text(f"{step.lr:.2e}")))
        right.append(("gradient", Text(f"{decimals(step.grad_norm)}  ({step.sequences:,} rows)")))
    table = Table.grid(padding=(0, 2), expand=True)
    for number in range(4):
        table.add_column(
            style="dim" if number % 2 == 0 else "", no_wrap=True, ratio=None if number % 2 == 0 else 3 - number // 2
        )
    for at in range(max(len(left), len(right))):
        table.add_row(*(left[at] if at < len(left) else ("", "")), *(right[at] if at < len(right) else ("", "")))
    return table


def _experts(state: _State, width: int, room: int, ascii_only: bool) -> list[RenderableType]:
    """How even the load is: a line, then a row of bars for each of the least even layers; bars begin at no load."""
    step = state.step
    if step is None or not step.loads or room < 2:
        return []
    found = [imbalance(loads) for loads in step.loads]
    names = layer_names(len(step.loads), len(step.mtp))
    known = [number for number, value in enumerate(found) if math.isfinite(value)]
    if not known:
        return []
    worst = max(known, key=lambda number: found[number])
    busiest = f"{found[worst]:.2f} times the mean"
    lines: list[RenderableType] = [
        "",
        Text.assemble(("experts  ", "dim"), "the busiest gets ", (busiest, "bold"), f", in {names[worst]}"),
    ]
    shown = sorted(sorted(known, key=lambda number: -found[number])[: room - 2])
    for number in shown:
        bars = sparkline(_fit(step.loads[number], width - 24), width - 24, lowest=0.0, ascii_only=ascii_only)
        lines.append(
            Text.assemble((f"{names[number]:>7}  ", "dim"), (bars, "green"), (f"  {found[number]:.2f}x", "dim"))
        )
    return lines


def _fit(loads: tuple[float, ...], width: int) -> list[float]:
    """Loads of neighbours together, the largest of each, where there are more experts than columns."""
    each = -(-len(loads) // max(1, width))
    return [max(loads[at : at + each]) for at in range(0, len(loads), each)]


def _brief(state: _State, width: int) -> list[str]:
    """A few lines for a small terminal, the most important first."""
    lines = [f"{state.done:,}/{state.steps:,} {share(state.done / state.steps)} {clock(state.left)} left"]
    if state.ended is not None:
        lines[0] = f"{state.done:,}/{state.steps:,} {_times(state)}"
    if state.step is not None:
        loss = f"loss {decimals(smooth(state.losses)[-1])}"
        lines.append(f"{loss} {state.step.tokens_per_second:,.0f} tok/s")
    if state.look is not None:
        lines.append(f"{decimals(state.look.bits_per_byte)} bits per byte")
    lines += list(state.notes)[-1:]
    return [_cut(line, width) for line in lines]


def _plain_step(state: _State, step: Stepped) -> str:
    parts = [
        f"step {step.step:,}/{state.steps:,}",
        f"loss {decimals(step.loss)}",
        f"lr {step.lr:.2e}",
        f"gradient {decimals(step.grad_norm)}",
        f"{step.tokens_per_second:,.0f} tokens/s",
    ]
    if step.mtp:
        parts.insert(2, f"MTP {', '.join(map(decimals, step.mtp))}")
    if step.share_of_peak:
        parts.append(f"{share(step.share_of_peak)} of peak")
    found = [value for value in map(imbalance, step.loads) if math.isfinite(value)]
    if found:
        parts.append(f"busiest expert {max(found):.2f}x")
    parts.append("skipped: not finite" if step.skipped else f"{clock(state.left)} left")
    return "  ".join(parts)
