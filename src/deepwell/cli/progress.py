"""The bar while files are read and vectors computed; nothing at all where nobody is watching."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from deepwell.library.indexing.progress import Progress

_DOING = {
    "wait": "waiting for another writer",
    "look": "looking",
    "read": "reading files",
    "vectors": "computing vectors",
    "tidy": "tidying up",
}


@contextlib.contextmanager
def showing(quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A function that draws on standard error what indexing tells: a bar for each phase, a line for each failed file.

    Args:
        quiet: Draw nothing. Nothing is drawn either when standard error is not a terminal; the value is then None.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from deepwell.cli import render

    out = render.console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", style="dim"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[current]}", style="dim", markup=False),
    )
    with Bars(*columns, console=out, transient=True) as bars:
        shown: dict[str, TaskID] = {}

        def show(step: Progress) -> None:
            if step.failure is not None:
                render.failures(out, [step.failure])
            if step.phase not in shown:
                for task in shown.values():
                    bars.update(task, visible=False)
                shown[step.phase] = bars.add_task(_DOING[step.phase], total=None, rate="", current="")
            bars.update(
                shown[step.phase],
                visible=True,
                completed=step.done,
                total=step.total or None,
                rate=f"{step.rate:,.0f}/s" if step.rate >= 1 else "",
                current=render.plain(render.short_path(step.current), 40) if step.current else "",
            )

        yield show
