"""What commands share: which library is meant, how it is opened, which documents may answer, and ``--json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deepwell.cli.times import parse_span

if TYPE_CHECKING:
    from deepwell.library.library import Library

KINDS = ("text", "code", "web", "pdf", "document", "slides", "table", "book", "email", "image", "audio")
"""``records.KINDS``, written out here so that reading a command line imports no library; a test compares them."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Settings:
    """What was said before the command's name."""

    library: Path | None = None


def library_options(command: F) -> F:
    """Add ``--library`` and ``--json``; both may stand after the command's name, where people write them."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON: the same fields as in Python.")(command)
    return click.option("--library", type=click.Path(path_type=Path), help="The library's folder.")(command)


def filter_options(command: F) -> F:
    """Add the options that say which documents may answer; ``filters_from`` turns them into arguments."""
    for option in reversed(
        [
            click.option(
                "--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only this kind; repeatable."
            ),
            click.option("--path", metavar="GLOB", help="Only there: a folder, or a pattern like '*/reports/*.pdf'."),
            click.option("--since", metavar="WHEN", help="Only from then on: 2024-03-09, 'last month', '2 weeks ago'."),
            click.option("--until", metavar="WHEN", help="Only until then, that day, month or year included."),
            click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only with this metadata; repeatable."),
        ]
    ):
        command = option(command)
    return command


def filters_from(given: dict[str, Any]) -> dict[str, Any]:
    """What ``filter_options`` parsed, as arguments of ``Library.search`` and ``Library.ask``."""
    since, until = given["since"], given["until"]
    return {
        "kinds": given["kinds"] or None,
        "path": given["path"],
        "since": parse_span(since)[0] if since else None,
        "until": parse_span(until)[1] if until else None,
        "where": _parse_where(given["where"]) or None,
    }


def encoder_options(command: F) -> F:
    """Add ``--text-encoder`` and ``--image-encoder`` to a command that makes vectors."""
    command = click.option("--image-encoder", metavar="NAME", help="From now on, encode pictures by this model.")(
        command
    )
    return click.option("--text-encoder", metavar="NAME", help="From now on, encode words by this model.")(command)


def open_library(
    library: Path | None,
    *,
    create: bool = False,
    text_encoder: str | None = None,
    image_encoder: str | None = None,
) -> Library:
    """Open the library named after the command, else before it, else the default one.

    Args:
        library: The folder named after the command.
        create: Make it if there is none.
        text_encoder, image_encoder: As for ``Library``.

    Raises:
        LibraryDamagedError: ``create`` is false and there is no library.
    """
    from deepwell import Library
    from deepwell.paths import default_library

    settings = click.get_current_context().find_object(Settings) or Settings()
    folder = library or settings.library or default_library()
    return Library(folder, create=create, text_encoder=text_encoder, image_encoder=image_encoder)


def print_json(value: object) -> None:
    """Print records as JSON, field by field as they are in Python."""
    from deepwell.library.records import to_json

    click.echo(json.dumps(to_json(value), ensure_ascii=False, indent=2))


def _parse_where(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("author=Ann",)`` to ``{"author": "Ann"}``; a value may hold further equals signs."""
    where = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--where")
        where[key.strip()] = value.strip()
    return where
