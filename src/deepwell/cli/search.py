"""``deepwell search``: words, a picture, a recording, or several of them, within filters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deepwell.cli.options import filter_options, filters_from, library_options, open_library, print_json

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("words", nargs=-1)
@click.option("--image", type=_FILE, help="Find pictures like this one.")
@click.option("--audio", type=_FILE, help="Find what is about what is said in this recording.")
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=10, show_default=True, help="At most so many.")
@filter_options
@library_options
def search(
    words: tuple[str, ...],
    image: Path | None,
    audio: Path | None,
    limit: int,
    library: Path | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """Find passages by words, a picture or a recording.

    \b
      deepwell search spare key for the dome
      deepwell search --image moon.jpg
      deepwell search "rain" --kind table --since "last year"
    """
    with open_library(library) as lib:
        found = lib.search(
            " ".join(words) or None,
            image=image,
            audio=audio,
            limit=limit,
            **filters_from(filters),
        )
        if as_json:
            print_json(found)
            return
        from deepwell.cli import render

        render.results(render.console(), found)
