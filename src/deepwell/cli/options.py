"""What commands share: which library is meant, how it is opened, and ``--json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from deepwell.library.library import Library

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Settings:
    """What was said before the command's name."""

    library: Path | None = None


def library_options(command: F) -> F:
    """Add ``--library`` and ``--json``; both may stand after the command's name, where people write them."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON: the same fields as in Python.")(command)
    return click.option("--library", type=click.Path(path_type=Path), help="The library's folder.")(command)


def open_library(library: Path | None, *, create: bool = False) -> Library:
    """Open the library named after the command, else before it, else the default one.

    Raises:
        LibraryDamagedError: ``create`` is false and there is no library.
    """
    from deepwell import Library
    from deepwell.paths import default_library

    settings = click.get_current_context().find_object(Settings) or Settings()
    return Library(library or settings.library or default_library(), create=create)


def print_json(value: object) -> None:
    """Print records as JSON, field by field as they are in Python."""
    from deepwell.library.records import to_json

    click.echo(json.dumps(to_json(value), ensure_ascii=False, indent=2))


def parse_where(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("author=Ann",)`` to ``{"author": "Ann"}``; a value may hold further equals signs."""
    where = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--where")
        where[key.strip()] = value.strip()
    return where
