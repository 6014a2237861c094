"""``deepwell train``: pretrain or fine-tune by a recipe, watch it, stop it, go on."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from deepwell.cli.models import print_object
from deepwell.errors import DeepwellError, UsageError

if TYPE_CHECKING:
    from deepwell.lm.training.reading import Read
    from deepwell.lm.training.records import Watcher
    from deepwell.lm.training.run import Outcome

_STOPPED = 130
_MADE = (
    "recipe.json", "journal.jsonl", "experts.json", "report.html", "checkpoints", "model", "adapter", "tensorboard",
)  # fmt: skip
"""What a run writes into its folder, but for its prepared data: that is taken again if it still fits."""


class RecipeName(click.ParamType[str]):
    """A recipe that comes with Deepwell, or a file; completed by the shell."""

    name = "recipe"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Names that start with what was typed so far, each with its line about it; else files."""
        from deepwell.lm.training import reading

        try:
            found = [(name, about) for name, about in reading.shipped() if name.startswith(incomplete)]
        except DeepwellError:
            found = []
        return [CompletionItem(name, help=about) for name, about in found] or [CompletionItem(incomplete, type="file")]


@click.command()
@click.argument("recipe", type=RecipeName(), required=False)
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change the recipe: batch.steps=100; repeatable."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The run's folder [default: runs/NAME].")
@click.option("--resume", is_flag=True, help="Go on from the folder's last checkpoint.")
@click.option("--force", is_flag=True, help="Delete the run that the folder holds, and begin anew.")
@click.option("--dry-run", is_flag=True, help="Say what the run would do and need, and do nothing.")
@click.option("--list", "listing", is_flag=True, help="List the recipes that come with Deepwell.")
@click.option("--quiet", is_flag=True, help="Draw no panel.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def train(
    recipe: str | None,
    sets: tuple[str, ...],
    out: Path | None,
    resume: bool,
    force: bool,
    dry_run: bool,
    listing: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Train a language model by a RECIPE: the name of one that comes with Deepwell, or a TOML file.

    Everything goes into one folder: the model, checkpoints, a journal of every step and a report to open in a browser.
    Ctrl-C ends the run after the step under way, with a checkpoint to go on from.

    \b
      deepwell train --list
      deepwell train pretrain-debug                       a small one, to see that all works
      deepwell train pretrain-tiny --set batch.steps=500
      deepwell train my-recipe.toml --dry-run             how large, how long
      deepwell train --resume --out runs/my-recipe        go on after a stop
    """
    if listing:
        return _list(as_json)
    main = os.environ.get("RANK", "0") == "0"  # under torchrun every process runs this; one of them speaks
    if resume and force:
        raise UsageError("--resume goes on with a run and --force deletes it: give one of them")
    if resume and recipe is not None and out is None and (Path(recipe) / "recipe.json").is_file():
        out, recipe = Path(recipe), None
    read = _saved(out, sets) if recipe is None and resume and out is not None else _read(recipe, sets)
    folder = out if out is not None else Path("runs") / read.name
    if dry_run:
        return _describe(read, as_json)
    if main:
        _prepare_folder(folder, resume=resume, force=force)
    outcome = _train(read, folder, resume=resume, quiet=quiet or not main)
    if main:
        _tell(outcome, folder, as_json)
    return 0 if outcome.finished else _STOPPED


def _read(recipe: str | None, sets: tuple[str, ...]) -> Read:
    from deepwell.lm.training import reading

    if recipe is None:
        raise UsageError(
            "no recipe is named",
            hint="see them with --list; to go on with a run: deepwell train --resume --out FOLDER",
        )
    return reading.read(recipe, sets=sets)


def _saved(folder: Path, sets: tuple[str, ...]) -> Read:
    """The recipe that a run was begun with, as its folder holds it."""
    from deepwell.lm.training import reading

    path = folder / "recipe.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        content, base, name = saved["recipe"], Path(saved["base"]), str(saved["name"])
    except OSError as error:
        raise UsageError(
            f"{folder} holds no run to go on with: {path.name} cannot be read ({error.strerror})",
            hint="see where runs are with 'deepwell runs'",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is damaged: {error}", hint="name the recipe: deepwell train RECIPE --resume"
        ) from error
    made = reading.from_dict(content, str(path))
    if sets:
        with tempfile.TemporaryDirectory() as scratch:
            text = Path(scratch) / "recipe.toml"
            text.write_text(reading.to_toml(made), encoding="utf-8")
            made = reading.read(text, sets=sets).recipe
    return reading.Read(made, base, name)


def _prepare_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """See that the folder is the new run's own, or holds what is to be gone on with."""
    if not folder.is_dir() or resume:
        return
    here = [name for name in _MADE if (folder / name).exists()]
    if force and here:
        from filelock import FileLock, Timeout

        try:
            with FileLock(folder / ".lock", timeout=0):
                for name in here:
                    path = folder / name
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except Timeout as error:
            raise UsageError(
                f"the run in {folder} is going on", hint="stop it first, or choose another --out"
            ) from error
    elif "journal.jsonl" in here:
        raise UsageError(
            f"{folder} holds a run already",
            hint=f"go on with it: deepwell train --resume --out {folder}; or begin another one elsewhere with --out; "
            "or delete it with --force",
        )
    elif not here and any(path.name not in ("data", ".lock") for path in folder.iterdir()):
        raise UsageError(f"{folder} holds files that are not a run's", hint="choose another folder with --out")


def _train(read: Read, folder: Path, *, resume: bool, quiet: bool) -> Outcome:
    from deepwell.cli.render import console
    from deepwell.lm.training import run
    from deepwell.lm.training.panel import Panel

    with _preparing(quiet) as (preparing, ready), Panel(console(stderr=True), quiet=quiet) as panel:
        watchers: list[Watcher] = [lambda _: ready(), panel]
        return run.train(
            read.recipe, folder, base=read.base, name=read.name, resume=resume, watchers=watchers, on_prepare=preparing
        )


@contextlib.contextmanager
def _preparing(quiet: bool) -> Iterator[tuple[Callable[[str, int, int], None] | None, Callable[[], None]]]:
    """A bar for each thing that is done before the first step, and the function that takes it off the screen."""
    if quiet or not sys.stderr.isatty():
        yield None, lambda: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

    from deepwell.cli.render import console

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    bars = Progress(*columns, TimeRemainingColumn(compact=True), console=console(stderr=True), transient=True)
    shown: dict[str, TaskID] = {}

    def show(doing: str, done: int, total: int) -> None:
        if doing not in shown:
            for task in shown.values():
                bars.update(task, visible=False)
            shown[doing] = bars.add_task(doing)
        bars.update(shown[doing], completed=done, total=total or None)

    bars.start()
    try:
        yield show, bars.stop
    finally:
        bars.stop()


def _tell(outcome: Outcome, folder: Path, as_json: bool) -> None:
    from deepwell.cli.render import short_path

    bits = outcome.bits_per_byte
    if as_json:
        print_object(
            {
                "folder": str(folder),
                "step": outcome.step,
                "finished": outcome.finished,
                "loss": _number(outcome.loss),
                "bits_per_byte": _number(bits),
                "model": str(outcome.model) if outcome.model else None,
                "report": str(outcome.report) if outcome.report else None,
            }
        )
        return
    measured = f"loss {outcome.loss:.3f}" + (f", {bits:.3f} bits per byte" if bits is not None else "")
    click.echo(f"{'done' if outcome.finished else 'stopped'}: step {outcome.step:,}, {measured}")
    for label, path in (("model", outcome.model), ("report", outcome.report)):
        if path:
            click.echo(f"{label}: {short_path(str(path))}")
    if outcome.model:
        click.echo(f"talk to it: deepwell chat {short_path(str(outcome.model))}")
    if not outcome.finished:
        click.echo(f"go on: deepwell train --resume --out {short_path(str(folder))}")


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _list(as_json: bool) -> int:
    from deepwell.lm.training import reading

    found = reading.shipped()
    if as_json:
        print_object({"recipes": [{"name": name, "about": about} for name, about in found]})
        return 0
    width = max((len(name) for name, _ in found), default=0)
    for name, about in found:
        click.echo(f"{name:<{width}}  {about}".rstrip() if sys.stdout.isatty() else f"{name}\t{about}")
    return 0


def _describe(read: Read, as_json: bool) -> int:
    from deepwell.lm.training.describing import describe

    facts = describe(read.recipe)
    if as_json:
        print_object({"name": read.name, **facts})
        return 0
    for label, value in _rows(facts):
        click.echo(f"{label:<22}{value}" if sys.stdout.isatty() else f"{label}\t{value}")
    return 0


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    from deepwell.lm.training.figures import count, rate

    steps, per_step, flops = facts["steps"], facts["tokens_per_step"], facts["flops_per_token"]
    rows = [
        ("parameters", f"{facts['parameters']:,}"),
        ("active for a token", f"{facts['active_parameters']:,}"),
        ("trained", f"{facts['trained_parameters']:,}"),
        ("precision", str(facts["precision"])),
        ("memory of the state", f"{rate(facts['state_bytes'], 'B')}: weights, gradients and moments, no activations"),
        ("operations a token", rate(flops, "FLOP")),
        ("tokens a step", f"{per_step:,}"),
    ]
    if not steps:
        return [*rows, ("steps", "as many as the data gives")]
    tokens = steps * per_step
    return [
        *rows,
        ("steps", f"{steps:,}"),
        ("tokens", count(tokens)),
        ("operations", rate(tokens * flops, "FLOP")),
        ("time at 1 TFLOP/s", _time(tokens * flops / 1e12)),
    ]


def _time(seconds: float) -> str:
    from deepwell.lm.training.figures import duration

    return duration(seconds)
