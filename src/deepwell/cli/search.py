"""``deepwell search``: words, a picture, a recording, or several of them, within filters."""

from __future__ import annotations

from pathlib import Path

import click

from deepwell.cli.options import library_options, open_library, parse_where, print_json
from deepwell.cli.times import parse_span

KIND_NAMES = ("text", "code", "web", "pdf", "document", "slides", "table", "book", "email", "image", "audio")
"""The kinds of ``records.KINDS``; written out here so that parsing a command line imports no library."""

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("words", nargs=-1)
@click.option("--image", type=_FILE, help="Find pictures like this one.")
@click.option("--audio", type=_FILE, help="Find what is about what is said in this recording.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KIND_NAMES), help="Only this kind; may be repeated.")
@click.option("--path", "glob", metavar="GLOB", help="Only these paths: a folder, or a pattern like '*/reports/*.pdf'.")
@click.option("--since", metavar="WHEN", help="Only from then on: 2024-03-09, 'last month', '2 weeks ago'.")
@click.option("--until", metavar="WHEN", help="Only until then, that day, month or year included.")
@click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only with this metadata; may be repeated.")
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=10, show_default=True, help="At most so many.")
@library_options
def search(
    words: tuple[str, ...],
    image: Path | None,
    audio: Path | None,
    kinds: tuple[str, ...],
    glob: str | None,
    since: str | None,
    until: str | None,
    where: tuple[str, ...],
    limit: int,
    library: Path | None,
    as_json: bool,
) -> None:
    r"""Find passages by words, a picture or a recording.

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
            kinds=kinds or None,  # type: ignore[arg-type, unused-ignore]
            path=glob,
            since=parse_span(since)[0] if since else None,
            until=parse_span(until)[1] if until else None,
            where=parse_where(where) or None,
            limit=limit,
        )
        if as_json:
            print_json(found)
            return
        from deepwell.cli import render

        render.results(render.console(), found)
