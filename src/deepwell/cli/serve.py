"""``deepwell serve``: a language model of this machine behind an HTTP API, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deepwell.cli.keys import key_file_option
from deepwell.cli.models import ModelName
from deepwell.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from deepwell.lm.engine.model import Model
    from deepwell.server.settings import Settings

_F = TypeVar("_F", bound=Callable[..., Any])

_LIMITS = (
    ("--max-request-bytes", int, 4 * 2**20, "The longest body of a request."),
    ("--requests-per-minute", int, None, "Of one key, or of one address without keys; else as many as they like."),
    ("--most-concurrent", int, 64, "Requests that are worked on at once."),
    ("--queue-length", int, 256, "Requests that may wait for their turn."),
    ("--queue-seconds", float, 60.0, "How long one waits for its turn."),
    ("--upload-seconds", float, 30.0, "How long a body may take to come."),
    ("--request-seconds", float, 600.0, "How long a request may take once it has its turn."),
    ("--drain-seconds", float, 30.0, "How long requests may go on when the server is told to stop."),
)
"""Defaults are those of ``Settings``, written out so that reading a command line imports no server; a test compares."""


def _limit_options(command: _F) -> _F:
    for name, kind, default, text in reversed(_LIMITS):
        option = click.option(
            name, type=kind, default=default, show_default=default is not None, metavar="N", help=text
        )
        command = option(command)
    return command


@click.command()
@click.argument("model", type=ModelName(here=True))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; others than this machine's own need keys.",
)
@click.option("--port", default=8000, show_default=True, metavar="N", help="Port to listen on; 0 takes a free one.")
@click.option("--name", metavar="NAME", help="What requests call the model; else MODEL without folder and suffix.")
@key_file_option
@click.option("--text-encoder", metavar="NAME", help="Answer /v1/embeddings by this encoder.")
@click.option("--precision", default="auto", show_default=True, metavar="WORD", help="Of the weights in memory.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, or cuda with a GPU.")
@click.option("--cache-bytes", type=int, metavar="N", help="Memory for the cache; else a share of what is free.")
@click.option(
    "--cors", "cors_origins", multiple=True, metavar="ORIGIN", help="Let web pages of this origin ask; repeatable."
)
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="ADDRESS",
    help="Believe X-Forwarded-For from there; repeatable.",
)
@_limit_options
@click.option("--json", "as_json", is_flag=True, help="Say where the server is as a line of JSON.")
def serve(
    model: str,
    name: str | None,
    key_file: Path | None,
    text_encoder: str | None,
    precision: str,
    device: str,
    cache_bytes: int | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Serve a language model to OpenAI's clients over HTTP.

    MODEL is a name of `deepwell models list`, a model's folder or a GGUF file. Keys made by `deepwell keys add` are
    asked for. SIGTERM and Ctrl-C end what runs and take nothing new; a second one ends the server at once.
    """
    try:
        from deepwell.server.lifecycle import Door, Server, bind
    except ImportError as error:
        raise MissingExtraError(
            f"serving needs the package {error.name}", hint="Run: pip install 'deepwell[server,lm]'"
        ) from error

    from deepwell.library.encoders.opening import open_text

    settings = _settings(key_file, limits)
    door = Door.of(settings)
    with bind(settings) as taken:
        loaded = _load(model, precision=precision, device=device, cache_bytes=cache_bytes)
        encoder = None if text_encoder is None else open_text(text_encoder)
        called = name or Path(model).resolve().name.removesuffix(".gguf")
        server = Server.of(loaded, door, taken, name=called, encoder=encoder)

        def ready() -> None:
            if as_json:
                click.echo(json.dumps({"url": f"{server.url}/v1", "model": called, "keys": door.ring is not None}))
                return
            asked = f"keys of {settings.key_file} are asked for" if door.ring is not None else "no key is asked for"
            click.echo(f"{called} is served at {server.url}/v1 ({asked}). Ctrl-C ends it.")

        server.run(ready)


def _settings(named: Path | None, limits: dict[str, Any]) -> Settings:
    """Settings from options; the keys of the default file are asked for if it holds any."""
    from deepwell.paths import key_file
    from deepwell.server.keys import KeyFile
    from deepwell.server.settings import Settings

    path = named or key_file()
    keys = KeyFile(path).read()
    if named is not None and not keys:
        raise UsageError(f"{named} holds no key", hint=f"Make one with: deepwell keys add NAME --key-file {named}")
    return Settings(key_file=path if keys else None, **limits)


def _load(name: str, **how: Any) -> Model:
    from deepwell import Model
    from deepwell.cli import render

    with render.console(stderr=True).status(f"Loading {render.plain(name)} ..."):
        return Model.load(name, **how)
