"""``deepwell ask``: an answer as it is written, then its sources."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepwell.cli.options import filter_options, filters_from, library_options, open_library, print_json
from deepwell.errors import UsageError

if TYPE_CHECKING:
    from deepwell.bridge import LocalChat
    from deepwell.library.library import Library


@click.command()
@click.argument("question", nargs=-1, required=True)
@click.option("--model", metavar="MODEL", help="Who answers: extractive, a model here, openai:MODEL@URL, or a URL.")
@filter_options
@library_options
def ask(question: tuple[str, ...], model: str | None, library: Path | None, as_json: bool, **filters: Any) -> None:
    """Answer a question from the library, with sources.

    Without a language model the best sentences are quoted as they stand. With one (a name of `deepwell models list`, a
    file, or a server: see the guide), every quote that it gives is compared word for word with its source, and dropped
    when it is not there.
    """
    writer = _writer(model)
    with open_library(library) as lib:
        words, asked = " ".join(question), {"model": writer, **filters_from(filters)}
        if as_json:
            print_json(lib.ask(words, **asked))
            return
        _show(lib, words, asked)


def _writer(spec: str | None) -> str | LocalChat | None:
    """What answers: a model of this machine is handed over, everything else the library knows by name."""
    named = (spec if spec is not None else os.environ.get("DEEPWELL_CHAT", "")).strip()
    if named in ("", "extractive") or named.startswith(("openai:", "http://", "https://")):
        return spec
    from deepwell.bridge import LocalChat
    from deepwell.lm.weights.opening import locate

    try:
        locate(named)  # before a library is opened and searched
    except UsageError as error:
        hint = "Use extractive, a name of: deepwell models list, a model's file or folder, openai:MODEL@URL, or a URL."
        raise UsageError(f"unknown language model {named!r}", hint=hint) from error
    return LocalChat(named)


def _show(lib: Library, question: str, asked: dict[str, Any]) -> None:
    from deepwell.cli import render
    from deepwell.library.records import Answer

    out = render.console()
    if not out.is_terminal:
        render.answer(out, lib.ask(question, **asked))
        return
    given: Answer | None = None
    wrote, thinking = False, False
    for piece in lib.ask_stream(question, **asked):
        if isinstance(piece, Answer):
            given = piece
            continue
        if piece.reasoning:
            out.print(piece.reasoning, style="dim italic", end="", markup=False)
            thinking = True
        if piece.text:
            out.print(("\n\n" if thinking else "") + piece.text, end="", markup=False)
            wrote, thinking = True, False
    if wrote or thinking:
        out.print()
    if given is not None:
        render.answer(out, given, text=not wrote)
