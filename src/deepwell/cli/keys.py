"""``deepwell keys``: make, list and remove the keys that a server asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from deepwell.server.keys import KeyFile

_F = TypeVar("_F", bound=Callable[..., Any])


def key_file_option(command: _F) -> _F:
    """Add ``--key-file``."""
    return click.option(
        "--key-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Where hashes of keys are kept [env: DEEPWELL_KEYS].",
    )(command)


@click.group()
def keys() -> None:
    """Keys of a server: add, list, remove.

    A key is shown once, when it is made; what is kept is its hash. A server that was started with keys notices at its
    next request what is added or removed.
    """


@keys.command()
@click.argument("name")
@key_file_option
def add(name: str, key_file: Path | None) -> None:
    """Make a key for NAME, who or what will use it, and print it."""
    file = _file(key_file)
    secret = file.add(name)
    # The key alone goes to standard output, so that a script can take it from there.
    click.echo(secret)
    click.echo(f"This is the key of {name}, shown this once; its hash is in {file.path}.", err=True)


@keys.command("list")
@key_file_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_keys(key_file: Path | None, as_json: bool) -> None:
    """List the keys by name, with the day of their making."""
    file = _file(key_file)
    held = file.read()
    if as_json:
        rows = [{key: value for key, value in asdict(one).items() if key != "sha256"} for one in held]
        click.echo(json.dumps({"path": str(file.path), "keys": rows}, ensure_ascii=False, indent=2))
        return
    for one in held:
        click.echo(f"{one.created}\t{one.name}")
    if not held:
        click.echo(f"No keys in {file.path}. Make one with: deepwell keys add NAME", err=True)


@keys.command()
@click.argument("name")
@key_file_option
def remove(name: str, key_file: Path | None) -> None:
    """Forget the key of NAME; it opens nothing any more."""
    _file(key_file).remove(name)


def _file(named: Path | None) -> KeyFile:
    from deepwell.paths import key_file
    from deepwell.server.keys import KeyFile

    return KeyFile(named or key_file())
