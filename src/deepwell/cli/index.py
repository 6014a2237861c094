"""``deepwell add``, ``sync``, ``remove`` and ``status``: what is in the library, and keeping it true."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepwell.cli.options import encoder_options, library_options, open_library, print_json

if TYPE_CHECKING:
    from deepwell.library.records import AddReport

PARTLY_DONE = 3

_retry = click.option("--retry", is_flag=True, help="Read files again that failed before, even if unchanged.")


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="PATH...")
@_retry
@encoder_options
@library_options
def add(
    paths: tuple[Path, ...],
    retry: bool,
    text_encoder: str | None,
    image_encoder: str | None,
    library: Path | None,
    as_json: bool,
) -> int:
    """Read files and folders into the library.

    Words can be searched within seconds; vectors (search by meaning) fill in behind. Stop it at any moment: what is
    done is kept, and 'deepwell sync' goes on from there.
    """
    from deepwell.cli.progress import showing

    opened = open_library(library, create=True, text_encoder=text_encoder, image_encoder=image_encoder)
    with opened as lib, showing(as_json) as progress:
        report = lib.add(*paths, retry=retry, progress=progress)
    return _told(report, as_json, failures_told=progress is not None)


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@_retry
@encoder_options
@library_options
def sync(
    dry_run: bool,
    retry: bool,
    text_encoder: str | None,
    image_encoder: str | None,
    library: Path | None,
    as_json: bool,
) -> int:
    """Bring the library up to date with the folders that were added.

    New and changed files are read, moved ones keep what was computed for them, and a file is forgotten only when its
    folder was read and the file was not there: an unplugged disk loses nothing. With another encoder everything is
    encoded anew, while searches go on with the old vectors until the new ones are complete.
    """
    from deepwell.cli.progress import showing

    opened = open_library(library, text_encoder=text_encoder, image_encoder=image_encoder)
    with opened as lib, showing(as_json) as progress:
        report = lib.sync(dry_run=dry_run, retry=retry, progress=progress)
    return _told(report, as_json, failures_told=progress is not None)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH_OR_ID...")
@library_options
def remove(paths: tuple[str, ...], library: Path | None, as_json: bool) -> int:
    """Forget files or folders (or texts, by id). The files themselves are not touched."""
    with open_library(library) as lib:
        report = lib.remove(*paths)
    return _told(report, as_json)


@click.command()
@library_options
def status(library: Path | None, as_json: bool) -> None:
    """Say what the library holds, what could not be read, and what is still to do."""
    with open_library(library) as lib:
        now = lib.status()
    if as_json:
        print_json(now)
        return
    from deepwell.cli import render

    render.status(render.console(), now)


def _told(report: AddReport, as_json: bool, *, failures_told: bool = False) -> int:
    if as_json:
        print_json(report)
    else:
        from deepwell.cli import render

        out, err = render.console(), render.console(stderr=True)
        if not failures_told:
            render.failures(err, report.failed)
        render.failures(err, report.unseen, "unseen")
        render.report(out, report)
        render.notices(out, report.notices)
    return PARTLY_DONE if report.failed or report.unseen else 0
