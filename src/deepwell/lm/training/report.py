"""The report of a run: one HTML file, drawn from the journal alone, that opens anywhere and loads nothing.

It answers, from top to bottom: what was trained and how well it went, how the losses fell, whether the experts shared
the work, what the network writes, and what was done exactly. It can be written while a run goes on, and of one that
broke off; parts without data are left out.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from deepwell.errors import DeepwellError, UsageError
from deepwell.lm.training import journal, report_page
from deepwell.lm.training.charts import Series, heat_map, line_chart
from deepwell.lm.training.figures import count, decimals, duration, imbalance, layer_names, rate, share, smooth
from deepwell.lm.training.records import Ended, Noted, Record, Sampled, Started, Stepped, Validated

__all__ = ["write_report"]

_COLOURS = 6
_WIDE = 1180
_NOTES = 40


@dataclass(frozen=True, slots=True)
class _Run:
    """A run's records by kind, without what a rollback made void."""

    started: Started
    sittings: list[Started]
    steps: list[Stepped]
    looks: list[Validated]
    samples: list[Sampled]
    notes: list[Noted]
    ended: Ended | None

    @property
    def x(self) -> list[int]:
        return [step.step for step in self.steps]

    @property
    def seconds(self) -> float:
        return self.ended.seconds if self.ended else sum(step.seconds for step in self.steps)

    @property
    def tokens(self) -> int:
        return self.steps[-1].tokens if self.steps else 0


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, from its ``journal.jsonl``.

    Returns:
        The file.

    Raises:
        UsageError: There is no journal, or no run has begun in it.
        TrainingError: The journal is damaged.
    """
    path = folder / "journal.jsonl"
    if not path.is_file():
        raise UsageError(f"{folder} holds no run: there is no {path.name}", hint="see runs with 'deepwell runs'")
    run = _sorted(journal.read(path))
    if run is None:
        raise UsageError(f"the run in {folder} has not begun yet", hint="wait until its data is prepared")
    target = folder / "report.html"
    scratch = folder / "report.html.new"
    scratch.write_text(_write(run), encoding="utf-8", errors="backslashreplace")
    scratch.replace(target)
    return target


def _sorted(records: Sequence[Record]) -> _Run | None:
    kept = journal.timeline(records)
    sittings = [one for one in kept if isinstance(one, Started)]
    if not sittings:
        return None
    ends = [one for one in kept if isinstance(one, Ended)]
    return _Run(
        started=sittings[-1],
        sittings=sittings,
        steps=[one for one in kept if isinstance(one, Stepped)],
        looks=[one for one in kept if isinstance(one, Validated)],
        samples=[one for one in kept if isinstance(one, Sampled)],
        notes=[one for one in kept if isinstance(one, Noted)],
        ended=ends[-1] if ends else None,
    )


def _write(run: _Run) -> str:
    parts = [
        _heading(run),
        report_page.tiles(_tiles(run)),
        report_page.section("Learning", _cards([_losses(run), *_further(run)]), _looks(run)),
        report_page.section("Experts", *_experts(run)),
        report_page.section("What it writes", *_samples(run)),
        report_page.section("What happened", *_notes(run)),
        report_page.section("Recipe", report_page.pre(_recipe(run.started))),
        "<footer>Written by Deepwell from journal.jsonl, which holds every figure of this page.</footer>",
    ]
    return report_page.page(f"{run.started.name} · training report", "\n".join(part for part in parts if part))


# ---- the top ----


def _heading(run: _Run) -> str:
    start = run.started
    done = run.steps[-1].step if run.steps else start.step
    if run.ended is not None and run.ended.finished:
        state, kind = "finished", "good"
    else:
        state, kind = f"{'stopped' if run.ended else 'under way'} at step {done:,} of {start.steps:,}", "open"
    about = str(start.recipe.get("about") or "")
    facts = [f"{count(start.parameters)} parameters"]
    if start.active_parameters != start.parameters:
        facts.append(f"{count(start.active_parameters)} active for a token")
    if start.trained_parameters != start.parameters:
        facts.append(f"{count(start.trained_parameters)} trained")
    facts.append(f"{start.steps:,} steps")
    facts.append(f"{count(start.train_tokens)} tokens a pass")
    facts.append(f"{start.precision} on {f'{start.processes} x ' if start.processes > 1 else ''}{start.device}")
    if start.peak_flops:
        facts.append(f"peak {rate(start.peak_flops, 'FLOP/s')}")
    lines = [f"<p>{escape(line)}</p>" for line in (about, " · ".join(facts)) if line]
    return f'<header><h1>{escape(start.name)}<span class="state {kind}">{escape(state)}</span></h1>{"".join(lines)}</header>'


def _tiles(run: _Run) -> list[tuple[str, str, str]]:
    shown = []
    losses = smooth((step.loss for step in run.steps), 0.9)
    if losses:
        shown.append(("training loss", decimals(losses[-1]), "mean of the last steps"))
    if run.looks:
        last = run.looks[-1]
        best = min((look.bits_per_byte for look in run.looks if math.isfinite(look.bits_per_byte)), default=math.nan)
        shown.append(("held-back loss", decimals(last.loss), f"perplexity {_perplexity(last.loss)}"))
        more = "the best of the run" if best == last.bits_per_byte else f"best {decimals(best)}"
        shown.append(("bits per byte", decimals(last.bits_per_byte), more))
    passes = f"{run.tokens / run.started.train_tokens:.2g} passes over the data" if run.started.train_tokens else ""
    shown.append(("tokens", count(run.tokens), passes))
    flops = run.ended.flops if run.ended else run.tokens * run.started.flops_per_token
    shown.append(("operations", rate(flops, "FLOP"), f"{rate(run.started.flops_per_token, 'FLOP')} a token"))
    shown.append(("training time", duration(run.seconds), _sittings(run)))
    paces = [step.tokens_per_second for step in run.steps if math.isfinite(step.tokens_per_second)]
    if paces:
        shown.append(("tokens a second", f"{statistics.median(paces):,.0f}", "median over steps"))
    shares = [step.share_of_peak for step in run.steps if step.share_of_peak > 0]
    if shares:
        more = f"of {rate(run.started.peak_flops, 'FLOP/s')}"
        shown.append(("of the machine's peak", share(statistics.median(shares)), more))
    memory = max((step.memory_mb for step in run.steps), default=0.0)
    if memory > 0:
        shown.append(("memory", rate(memory * 1e6, "B"), "highest of a process"))
    return [*shown, *_cost(run)]


def _perplexity(loss: float) -> str:
    return decimals(math.exp(loss), 1) if loss < 700 else "–"


def _sittings(run: _Run) -> str:
    return f"in {len(run.sittings)} sittings" if len(run.sittings) > 1 else ""


def _cost(run: _Run) -> list[tuple[str, str, str]]:
    """What the time cost at the machine's price, and a million tokens at that."""
    log = run.started.recipe.get("log")
    price = log.get("price_per_hour", 0) if isinstance(log, dict) else 0
    if not isinstance(price, (int, float)) or price <= 0 or not run.tokens:
        return []
    cost = price * run.seconds / 3600
    each = cost / run.tokens * 1e6
    return [("cost", _money(cost), f"at {price:g} an hour; {_money(each)} a million tokens")]


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 0.995 or amount == 0 else f"{amount:.2g}"


# ---- curves ----


def _cards(cards: Iterable[str], kind: str = "cards") -> str:
    inside = "\n".join(one for one in cards if one)
    return f'<div class="{kind}">{inside}</div>' if inside else ""


def _weight(run: _Run) -> float:
    """Smoothing over a fiftieth of the run, ten steps at the least."""
    return 1 - 1 / max(10.0, len(run.steps) / 50)


def _skipped(run: _Run) -> list[int]:
    return [step.step for step in run.steps if step.skipped]


def _losses(run: _Run) -> str:
    raw = [step.loss for step in run.steps]
    lines = [
        Series("each step", run.x, raw, 0, "faint"),
        Series("training", run.x, smooth(raw, _weight(run)), 0),
        Series("held back", [look.step for look in run.looks], [look.loss for look in run.looks], 1, "dots"),
    ]
    names = [("training, smoothed (faint: each step)", 0)] + ([("held back", 1)] if run.looks else [])
    about = "Nats a token, of the main prediction"
    if _skipped(run):
        about += "; red ticks are steps that were skipped because a loss or gradient was not finite"
    return report_page.card(
        "Loss", line_chart(lines, label="loss over steps", show=decimals, width=_WIDE, marks=_skipped(run)),
        about=about, above=report_page.legend(names), wide=True,
    )  # fmt: skip


def _further(run: _Run) -> list[str]:
    bits = [
        Series(
            "bits per byte", [look.step for look in run.looks], [look.bits_per_byte for look in run.looks], 1, "dots"
        )
    ]
    return [
        report_page.card(
            "Bits per byte", line_chart(bits, label="bits per byte over steps", show=decimals),
            about="On what was held back; comparable between tokenizers",
        ),
        *_mtp(run),
        _curve(run, "Learning rate", "", [step.lr for step in run.steps], 4, _rate_text, from_zero=True),
        _curve(run, "Norm of the gradient", "Before clipping", [step.grad_norm for step in run.steps], 2, _short, log=True, smoothed=True),
        _curve(run, "Tokens a second", "", [step.tokens_per_second for step in run.steps], 3, count, from_zero=True, smoothed=True),
        _curve(
            run, "Balance loss", "Sequence-wise, weighted", _if_any(step.balance for step in run.steps), 5, _rate_text,
            smoothed=True,
        ),
    ]  # fmt: skip


def _if_any(values: Iterable[float]) -> list[float]:
    listed = list(values)
    return listed if any(listed) else []


def _curve(
    run: _Run, title: str, about: str, values: Sequence[float], colour: int, show: Callable[[float], str], *,
    log: bool = False, from_zero: bool = False, smoothed: bool = False,
) -> str:  # fmt: skip
    if not values:
        return ""
    lines = [Series(title, run.x, smooth(values, _weight(run)) if smoothed else values, colour)]
    if smoothed:
        lines.insert(0, Series(title, run.x, values, colour, "faint"))
    drawn = line_chart(lines, label=f"{title} over steps", show=show, log=log, from_zero=from_zero)
    return report_page.card(title, drawn, about=about)


def _short(value: float) -> str:
    return f"{value:.3g}"


def _rate_text(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.1e}".replace("e-0", "e-")


def _mtp(run: _Run) -> list[str]:
    depth = max((len(step.mtp) for step in run.steps), default=0)
    if not depth:
        return []
    raw = [[step.mtp[k] if k < len(step.mtp) else math.nan for step in run.steps] for k in range(depth)]
    names = [f"token {k + 2}" for k in range(depth)]
    x = [look.step for look in run.looks]
    right = [
        Series(name, x, [look.mtp_right[k] if k < len(look.mtp_right) else math.nan for look in run.looks], k % _COLOURS, "dots")
        for k, name in enumerate(names)
    ]  # fmt: skip
    lines = [
        Series(name, run.x, values, k % _COLOURS, "faint")
        for k, (name, values) in enumerate(zip(names, raw, strict=True))
    ]
    lines += [Series(one.name, run.x, smooth(one.y, _weight(run)), one.colour) for one in list(lines)]
    key = report_page.legend([(name, k % _COLOURS) for k, name in enumerate(names)]) if depth > 1 else ""
    return [
        report_page.card(
            "Multi-token prediction: loss", line_chart(lines, label="MTP loss over steps", show=decimals),
            about="Of the second token from here (and those after it)", above=key,
        ),
        report_page.card(
            "Multi-token prediction: right", line_chart(right, label="share of further tokens right", show=share, from_zero=True),
            about="Share of further tokens that the best guess got right: what speculative decoding can accept", above=key,
        ),
    ]  # fmt: skip


def _looks(run: _Run) -> str:
    depth = max((len(look.mtp_right) for look in run.looks), default=0)
    header = ["step", "loss", "bits per byte", *(f"token {k + 2} right" for k in range(depth)), "predictions"]
    rows = [
        [
            f"{look.step:,}", decimals(look.loss), decimals(look.bits_per_byte), *map(share, look.mtp_right),
            *[""] * (depth - len(look.mtp_right)), f"{look.predictions:,}",
        ]
        for look in run.looks
    ]  # fmt: skip
    return report_page.folded(
        "Looks at what was held back, as a table", report_page.table(header, rows) if rows else ""
    )


# ---- experts ----


def _experts(run: _Run) -> list[str]:
    steps = [step for step in run.steps if step.loads]
    if not steps:
        return []
    layers = max(len(step.loads) for step in steps)
    names = layer_names(layers, len(steps[-1].mtp))
    x = [step.step for step in steps]
    loads = [[step.loads[layer] if layer < len(step.loads) else () for step in steps] for layer in range(layers)]
    found = [smooth(map(imbalance, rows), _weight(run)) for rows in loads]
    maps = []
    for name, rows, values in zip(names, loads, found, strict=True):
        experts = max(map(len, rows))
        told = f"{experts} experts; at the end the busiest has {decimals(values[-1], 2)} times the mean"
        ends = f'<div class="axisnote"><span>step {x[0]:,}</span><span>step {x[-1]:,}</span></div>'
        maps.append(report_page.card(name, heat_map(rows, label=f"expert load of {name}"), about=told, below=ends))
    key = (
        '<p class="about" style="color:var(--soft);font-size:13px">Load of each expert (one row) over the run: a quarter '
        'of the mean<span class="ramp"></span>four times the mean; no colour is an even share.</p>'
    )
    return [_cards([_imbalance(names, x, found)]), key, _cards(maps, "cards small")]


def _imbalance(names: Sequence[str], x: Sequence[int], found: Sequence[Sequence[float]]) -> str:
    """All layers in colours if they are few; else all faint, with the worst one at the end and the mean."""
    if len(found) <= _COLOURS:
        lines = [Series(name, x, y, at) for at, (name, y) in enumerate(zip(names, found, strict=True))]
    else:
        worst = max(range(len(found)), key=lambda at: found[at][-1] if math.isfinite(found[at][-1]) else 0.0)
        mean = [statistics.fmean(values) for values in zip(*found, strict=True)]
        lines = [Series(name, x, y, 0, "faint") for name, y in zip(names, found, strict=True)]
        lines += [Series("mean of layers", x, mean, 0), Series(f"worst: {names[worst]}", x, found[worst], 1)]
    named = [(line.name, line.colour) for line in lines if line.look != "faint"]
    drawn = line_chart(lines, label="largest over mean load", show=lambda value: f"{value:.2f}", width=_WIDE)
    about = "Load of the busiest expert over the mean load, smoothed; 1 is even"
    return report_page.card("Balance", drawn, about=about, above=report_page.legend(named), wide=True)


# ---- words ----


def _samples(run: _Run) -> list[str]:
    if not run.samples:
        return []
    last = run.samples[-1].step
    now = [_sample(one) for one in run.samples if one.step == last]
    earlier = [f"<p>Step {one.step:,}</p>{_sample(one)}" for one in run.samples if one.step != last]
    return [f"<p>Step {last:,}</p>", *now, report_page.folded(f"Earlier ({len(earlier)})", "".join(earlier))]


def _sample(one: Sampled) -> str:
    text = escape(one.text) if one.text.strip() else '<span class="empty">nothing</span>'
    return f"<blockquote><b>{escape(one.prompt)}</b>{text}</blockquote>"


def _notes(run: _Run) -> list[str]:
    told = [(one.step, f"step {one.step:,}", one.message) for one in run.notes]
    for number, sitting in enumerate(run.sittings):
        doing = "began" if number == 0 else "went on"
        told.append((sitting.step, f"step {sitting.step:,}", f"{doing} on {sitting.processes} x {sitting.device}"))
    told.sort(key=lambda one: one[0])
    if run.ended is not None:
        how = "finished" if run.ended.finished else "stopped"
        told.append((run.ended.step, f"step {run.ended.step:,}", f"{how} {run.ended.model}".rstrip()))
    pairs = [(term, said) for _, term, said in told]
    if len(pairs) <= _NOTES:
        return [report_page.definitions(pairs)]
    return [
        report_page.definitions(pairs[-_NOTES:]),
        report_page.folded(f"{len(pairs) - _NOTES} earlier", report_page.definitions(pairs[:-_NOTES])),
    ]


def _recipe(start: Started) -> str:
    """As TOML, only what differs from the defaults; as JSON if it is of another version."""
    from deepwell.lm.training import reading

    try:
        return reading.to_toml(reading.from_dict(start.recipe, "recipe"))
    except DeepwellError:
        return json.dumps(start.recipe, indent=2, ensure_ascii=False)
