"""The report of a run: one HTML file, drawn from the journal alone, that opens anywhere and loads nothing.

It answers, from top to bottom: what was trained and how well it went, how the losses fell, whether the experts shared
the work, what the network writes, and what was done exactly. It can be written while a run goes on, and of one that
broke off; parts without data are left out.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from deepwell.errors import DeepwellError, TrainingError, UsageError
from deepwell.lm.training import journal, report_page
from deepwell.lm.training.figures import count, decimals, duration, rate, share
from deepwell.lm.training.records import Ended, Noted, Record, Sampled, Started, Stepped, Validated
from deepwell.lm.training.report_curves import Diary, experts, learning

__all__ = ["write_report"]

_NOTES = 40


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder, from its ``journal.jsonl``.

    Returns:
        The file.

    Raises:
        UsageError: There is no journal, or no run has begun in it.
        TrainingError: The journal is damaged, or the report cannot be written.
    """
    path = folder / "journal.jsonl"
    if not path.is_file():
        raise UsageError(f"{folder} holds no run: there is no {path.name}", hint="see runs with 'deepwell runs'")
    run = _sorted(journal.read(path))
    if run is None:
        raise UsageError(f"the run in {folder} has not begun yet", hint="wait until its data is prepared")
    target = folder / "report.html"
    scratch = folder / "report.html.new"
    text = _write(run)
    try:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
        scratch.replace(target)
    except OSError as error:
        raise TrainingError(
            f"the report {target} cannot be written: {error.strerror}",
            hint=f"see whether the disk is full, then write it anew: deepwell runs {folder} --report",
        ) from error
    return target


def _sorted(records: Sequence[Record]) -> Diary | None:
    kept = journal.timeline(records)
    sittings = [one for one in kept if isinstance(one, Started)]
    if not sittings:
        return None
    ends = [one for one in kept if isinstance(one, Ended)]
    return Diary(
        started=sittings[-1],
        sittings=sittings,
        steps=[one for one in kept if isinstance(one, Stepped)],
        looks=[one for one in kept if isinstance(one, Validated)],
        samples=[one for one in kept if isinstance(one, Sampled)],
        notes=[one for one in kept if isinstance(one, Noted)],
        ended=ends[-1] if ends else None,
    )


def _write(run: Diary) -> str:
    parts = [
        _heading(run),
        report_page.tiles(_tiles(run)),
        report_page.section("Learning", *learning(run)),
        report_page.section("Experts", *experts(run)),
        report_page.section("What it writes", *_samples(run)),
        report_page.section("What happened", *_notes(run)),
        report_page.section("Recipe", report_page.pre(_recipe(run.started))),
        "<footer>Written by Deepwell from journal.jsonl, which holds every figure of this page.</footer>",
    ]
    return report_page.page(f"{run.started.name} · training report", "\n".join(part for part in parts if part))


# ---- the top ----


def _heading(run: Diary) -> str:
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
    facts.append(f"{start.steps:,} step{'s' * (start.steps != 1)}")
    facts.append(f"{count(start.train_tokens)} tokens a pass")
    facts.append(f"{start.precision} on {_machine(start)}")
    if start.peak_flops:
        facts.append(f"peak {rate(start.peak_flops, 'FLOP/s')}")
    lines = "".join(f"<p>{escape(line)}</p>" for line in (about, " · ".join(facts)) if line)
    badge = f'<span class="state {kind}">{escape(state)}</span>'
    return f"<header><h1>{escape(start.name)}{badge}</h1>{lines}</header>"


def _machine(start: Started) -> str:
    return f"{start.processes} x {start.device}" if start.processes > 1 else start.device


def _tiles(run: Diary) -> list[tuple[str, str, str]]:
    shown = []
    losses = run.smooth([step.loss for step in run.steps])
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
        peaks = [sitting.peak_flops for sitting in run.sittings]
        more = f"of {rate(peaks[-1], 'FLOP/s')}" if max(peaks) < 1.1 * min(peaks) else "timed anew in each sitting"
        shown.append(("of the machine's peak", share(statistics.median(shares)), more))
    memory = max((step.memory_mb for step in run.steps), default=0.0)
    if memory > 0:
        shown.append(("memory", rate(memory * 1e6, "B"), "highest of a process"))
    return [*shown, *_cost(run)]


def _perplexity(loss: float) -> str:
    return decimals(math.exp(loss), 1) if loss < 700 else "–"


def _sittings(run: Diary) -> str:
    return f"in {len(run.sittings)} sittings" if len(run.sittings) > 1 else ""


def _cost(run: Diary) -> list[tuple[str, str, str]]:
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


# ---- words ----


def _samples(run: Diary) -> list[str]:
    if not run.samples:
        return []
    last = run.samples[-1].step
    now = [_sample(one) for one in run.samples if one.step == last]
    earlier = [f"<p>Step {one.step:,}</p>{_sample(one)}" for one in run.samples if one.step != last]
    return [f"<p>Step {last:,}</p>", *now, report_page.folded(f"Earlier ({len(earlier)})", "".join(earlier))]


def _sample(one: Sampled) -> str:
    text = escape(one.text) if one.text.strip() else '<span class="empty">nothing</span>'
    return f"<blockquote><b>{escape(one.prompt)}</b>{text}</blockquote>"


def _notes(run: Diary) -> list[str]:
    told = [(one.step, f"step {one.step:,}", one.message) for one in run.notes]
    for number, sitting in enumerate(run.sittings):
        doing = "began" if number == 0 else "went on,"
        told.append((sitting.step, f"step {sitting.step:,}", f"{doing} on {_machine(sitting)}"))
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
