"""``deepwell runs``: what was trained here, how far it came and how well it went."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepwell.cli.models import as_json, print_object
from deepwell.errors import UsageError

if TYPE_CHECKING:
    from deepwell.lm.training.runs import Run

_STYLES = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red"}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--report", is_flag=True, help="Write each run's report.html anew, also while it goes on.")
@as_json
def runs(folder: Path | None, report: bool, as_json: bool) -> None:
    """List training runs, latest first: those of FOLDER (default: runs), or the one that FOLDER is.

    A run that stopped or failed goes on with: deepwell train --resume --out FOLDER
    """
    from deepwell.lm.training import runs as training_runs

    place = folder or Path("runs")
    found = training_runs.runs(place) if folder is not None or place.is_dir() else []
    if report:
        if not found:
            raise UsageError(f"{place} holds no run", hint="name a run's folder: deepwell runs FOLDER --report")
        _write_reports(found, as_json)
    elif as_json:
        print_object({"runs": [_plain(run) for run in found]})
    elif not found:
        click.echo(f"No runs in {place}. Begin one: deepwell train --list")
    else:
        _table(found)


def _write_reports(found: list[Run], as_json: bool) -> None:
    from deepwell.lm.training.report import write_report

    written = [write_report(run.folder) for run in found if run.steps]
    if as_json:
        print_object({"reports": [str(path) for path in written]})
        return
    for path in written:
        click.echo(f"written: {path}")


def _plain(run: Run) -> dict[str, object]:
    numbers = {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in (("loss", run.loss), ("bits_per_byte", run.bits_per_byte))
    }
    return {
        "name": run.name, "folder": str(run.folder), "state": run.state, "step": run.step, "steps": run.steps,
        "tokens": run.tokens, **numbers, "when": run.when,
    }  # fmt: skip


def _table(found: list[Run]) -> None:
    """On a terminal a table; piped, cells are apart by tabs."""
    from deepwell.lm.training.figures import ago, count, decimals

    header = ("run", "state", "steps", "tokens", "loss", "bits per byte", "last sign")
    now = time.time()
    rows = [
        (
            run.name,
            run.state,
            f"{run.step:,} of {run.steps:,}" if run.steps else "–",
            count(run.tokens),
            "–" if run.loss is None else decimals(run.loss),
            "–" if run.bits_per_byte is None else decimals(run.bits_per_byte),
            ago(now - run.when),
        )
        for run in found
    ]
    if not sys.stdout.isatty():
        for row in (header, *rows):
            click.echo("\t".join(row))
        return
    from rich.table import Table
    from rich.text import Text

    from deepwell.cli.render import console, plain

    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, name in enumerate(header):
        table.add_column(name, justify="right" if 2 <= at <= 5 else "left", no_wrap=at != 0)
    for name, state, *rest in rows:
        table.add_row(Text(plain(name)), Text(state, _STYLES[state]), *rest)
    console().print(table)
