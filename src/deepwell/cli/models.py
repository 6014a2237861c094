"""``deepwell models``: what there is, get it, where it is, is it whole, be rid of it."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from deepwell.errors import DeepwellError, UsageError

if TYPE_CHECKING:
    from deepwell.models.progress import Progress


class ModelName(click.ParamType[str]):
    """A model's name, completed by the shell.

    Args:
        sets: Offer names of sets too.
        here: Offer only models that are on this machine.
    """

    name = "name"

    def __init__(self, *, sets: bool = False, here: bool = False) -> None:
        self.sets = sets
        self.here = here

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Names that start with what was typed so far, each with its description."""
        from deepwell.models import catalogue, shelf

        try:
            known = catalogue.load()
        except DeepwellError:
            return []
        here = set(shelf.names_here()) if self.here else None
        offers = {name: info.about for name, info in known.models.items() if here is None or name in here}
        if here is not None:
            offers |= dict.fromkeys(here - offers.keys(), "placed here by hand")
        if self.sets:
            offers |= {name: ", ".join(members) for name, members in known.sets.items()}
        return [CompletionItem(name, help=about) for name, about in offers.items() if name.startswith(incomplete)]


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


_ELSEWHERE = {
    "inspect": "deepwell.cli.model_files:inspect",
    "convert": "deepwell.cli.conversions:convert",
    "compress": "deepwell.cli.conversions:compress",
    "split": "deepwell.cli.conversions:split",
    "upcycle": "deepwell.cli.conversions:upcycle",
    "export": "deepwell.cli.conversions:export",
}
"""Commands on language models; each file is imported when its command is used."""


class _Models(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_ELSEWHERE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, name = _ELSEWHERE[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Models)
def models() -> None:
    """Models by name: list, pull, path, verify, remove; and what is inside one.

    Nothing is ever downloaded but by 'deepwell models pull'.
    """


@models.command("list")
@as_json
def list_models(as_json: bool) -> None:
    """List the models that can be asked for by name, and which of them are here."""
    from deepwell.models import catalogue, listing
    from deepwell.paths import models_folder

    entries, sets = listing(), catalogue.load().sets
    if as_json:
        rows = [
            {
                **{field: getattr(entry.info, field) for field in _LISTED},
                "settings": dict(entry.info.settings),
                "size": entry.size,
                "present": entry.present,
                "folder": str(entry.folder) if entry.folder else None,
                "sets": list(entry.sets),
                "sources": [{"source": str(one), "verified": one.verified} for one in entry.info.sources],
            }
            for entry in entries
        ]
        print_object({"folder": str(models_folder()), "models": rows, "sets": {**sets}})
        return
    if not sys.stdout.isatty():
        # One line a model, for grep and cut.
        for entry in entries:
            info = entry.info
            here = "here" if entry.present else "-"
            click.echo("\t".join((info.name, here, readable(entry.size), info.task, info.licence, info.about)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    for entry in entries:
        info = entry.info
        what = Text.assemble((info.name, "bold"), f"  {info.task}\n", (info.about, "dim"))
        table.add_row(what, readable(entry.size), Text("yes", "green") if entry.present else "", info.licence)
    console = Console()
    console.print(table)
    for name, members in sets.items():
        console.print(Text.assemble(("\n" + name, "bold"), f" = {', '.join(members)}"))
    console.print(Text(f"in {models_folder()}", "dim"), soft_wrap=True)


_LISTED = ("name", "task", "family", "licence", "about", "languages", "dim", "max_tokens")


@models.command()
@click.argument("names", nargs=-1, required=True, type=ModelName(sets=True), metavar="NAME...")
@click.option("--from", "source", type=click.Path(), metavar="FOLDER", help="Take it from this folder.")
@click.option("--force", is_flag=True, help="Fetch it again even if it is here.")
@as_json
@click.pass_context
def pull(ctx: click.Context, names: tuple[str, ...], source: str | None, force: bool, as_json: bool) -> None:
    """Fetch models, or a set such as 'starter'. Interrupted, it goes on where it stopped."""
    from deepwell.models import catalogue
    from deepwell.models.pulling import Pulled, pull_one

    done: list[Pulled] = []
    failed: list[tuple[str, DeepwellError]] = []
    wanted = catalogue.load().expand(names)
    count = {name: f" ({n} of {len(wanted)})" for n, name in enumerate(wanted, start=1) if len(wanted) > 1}
    with _progress_bar(count) as progress:
        for name in wanted:
            try:
                done.append(pull_one(name, progress=progress, force=force, source=source))
            except UsageError:
                raise
            except DeepwellError as error:
                if len(wanted) == 1:
                    raise
                failed.append((name, error))
                if not as_json:
                    click.echo(f"{name}: {error}", err=True)
                continue
            if not as_json:
                click.echo(_told(done[-1]))
    if as_json:
        failures = [{"name": name, "code": e.code, "message": e.message, "hint": e.hint} for name, e in failed]
        print_object({"pulled": [{**asdict(one), "folder": str(one.folder)} for one in done], "failed": failures})
    if failed:
        ctx.exit(3 if done else 1)


def _told(one: Any) -> str:
    if one.already:
        return f"{one.name}: already here, {readable(one.size)}"
    return f"{one.name}: {readable(one.size)} in {one.seconds:.1f} s from {one.source}"


@models.command()
@click.argument("name", type=ModelName(here=True))
@as_json
def path(name: str, as_json: bool) -> None:
    """Print the folder of a model."""
    from deepwell.models import folder

    place = folder(name)
    if as_json:
        print_object({"name": name, "folder": str(place)})
    else:
        click.echo(str(place))


@models.command()
@click.argument("names", nargs=-1, type=ModelName(here=True), metavar="[NAME]...")
@as_json
@click.pass_context
def verify(ctx: click.Context, names: tuple[str, ...], as_json: bool) -> None:
    """Compare every byte of models with what was pulled; of all that are here when none is named."""
    from deepwell.models import catalogue, shelf

    known = catalogue.load()
    wanted = [member for name in names for member in known.sets.get(name, (name,))] or list(shelf.names_here())
    results = []
    for name in wanted:
        result = shelf.verify(name)
        results.append(result)
        if not as_json:
            note = f" ({result.note})" if result.note else ""
            if result.ok:
                click.echo(f"{name}: good, {result.files} files, {readable(result.size)}{note}")
            else:
                click.echo(f"{name}: DAMAGED{note}")
                for problem in result.problems:
                    click.echo(f"  {problem}")
                click.echo(f"  run: deepwell models pull {name} --force")
    if as_json:
        print_object({"models": [{**asdict(one), "folder": str(one.folder), "ok": one.ok} for one in results]})
    elif not results:
        click.echo("no models are here; run: deepwell models pull starter")
    if not all(one.ok for one in results):
        ctx.exit(1)


@models.command()
@click.argument("names", nargs=-1, required=True, type=ModelName(here=True), metavar="NAME...")
@as_json
def remove(names: tuple[str, ...], as_json: bool) -> None:
    """Delete models from this machine."""
    from deepwell import models as api

    removed = []
    for name in names:
        removed.append({"name": name, "freed": api.remove(name)})
        if not as_json:
            click.echo(f"{name}: removed, {readable(removed[-1]['freed'])} freed")
    if as_json:
        print_object({"removed": removed})


def readable(size: Any) -> str:
    """Bytes as people write them: ``91.6 MB``."""
    number = float(size)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def print_object(data: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def _progress_bar(count: dict[str, str]) -> Iterator[Progress | None]:
    """A bar on the terminal, with what ``count`` says of each model; nothing where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    from deepwell.models.progress import Step

    columns = (
        TextColumn("{task.fields[model]}", style="bold"),
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    # Rich sends what is printed meanwhile to the bar's own stream; right only while both are the terminal.
    both = sys.stdout.isatty()
    console = Console(stderr=True)
    with Bars(*columns, console=console, transient=True, expand=True, redirect_stdout=both) as bars:
        shown: dict[tuple[str, str], Any] = {}

        def show(step: Step) -> None:
            key = (step.model, step.doing)
            if key not in shown:
                # One line at a time; what is finished says so on standard output.
                for task in shown.values():
                    bars.remove_task(task)
                shown.clear()
                model = step.model + count.get(step.model, "")
                shown[key] = bars.add_task(step.doing, total=step.total or None, completed=step.done, model=model)
            bars.update(shown[key], completed=step.done, total=step.total or None)

        yield show
