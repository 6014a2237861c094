"""``deepwell chat``: talk to a language model of this machine.

Ctrl-C stops an answer, not the program: what was written stays part of the conversation. With ``--json`` a program
does the talking: a message a line goes in, an object a line comes out.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from deepwell.cli.answering import THOUGHTS, Display, Said, Thoughts, hear, visible
from deepwell.cli.conversation import Conversation, read_message
from deepwell.cli.models import ModelName
from deepwell.errors import DeepwellError, UsageError

if TYPE_CHECKING:
    from deepwell.lm.engine.model import Model
    from deepwell.lm.engine.params import SamplingParams

_HELP = "Ctrl-C stops an answer, Ctrl-D ends the chat, /help lists commands."


@click.command()
@click.argument("model", type=ModelName(here=True))
@click.argument("question", nargs=-1)
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--thinking/--no-thinking", default=None, help="Ask for reasoning first, or for none.")
@click.option("--thinking-budget", type=int, metavar="N", help="End a thought after that many tokens.")
@click.option("--thoughts", type=click.Choice(THOUGHTS), default="dim", show_default=True, help="How they are shown.")
@click.option("--max-tokens", default=1024, show_default=True, metavar="N", help="Tokens of an answer, at most.")
@click.option(
    "--temperature", default=0.7, show_default=True, metavar="T", help="0 takes the likeliest word each time."
)
@click.option(
    "--top-p", default=0.95, show_default=True, metavar="P", help="Draw from the words that reach this share."
)
@click.option("--seed", type=int, metavar="N", help="The same number draws the same answer again.")
@click.option("--precision", default="auto", show_default=True, metavar="WORD", help="Of the weights in memory.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, or cuda with a GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print each answer as JSON on a line; see below.")
def chat(
    model: str,
    question: tuple[str, ...],
    system: str | None,
    thoughts: Thoughts,
    precision: str,
    device: str,
    as_json: bool,
    **asked: Any,
) -> None:
    """Talk to a language model of this machine.

    MODEL is a name of `deepwell models list`, a model's folder or a GGUF file. With a QUESTION, or with one piped in,
    there is one answer and the program ends.

    With --json an answer is an object on one line: its text, reasoning, how it finished, counts of tokens and seconds.
    What is piped in then is a conversation, a message a line; a line that is a JSON string may hold line breaks.
    """
    from deepwell.lm.engine.params import SamplingParams

    params = SamplingParams(**asked)
    words = " ".join(question)
    talk = Conversation(system or "")
    if as_json and not words:
        _exchange(_load(model, precision, device), talk, params)
        return
    if not words and not sys.stdin.isatty():
        words = sys.stdin.read().strip()
        if not words:
            raise UsageError("there is no question", hint=f'Ask one: deepwell chat {model} "What is a heat pump?"')
    loaded = _load(model, precision, device)
    if not words:
        _talk(loaded, talk, params, thoughts)
        return
    talk.turns.append({"role": "user", "content": words})
    if as_json:
        said = hear(loaded, talk.messages, params)
        _print_line(said.record)
    else:
        said = _answer(loaded, talk, params, thoughts)
    if said.stopped:
        raise KeyboardInterrupt


def _load(name: str, precision: str, device: str) -> Model:
    from deepwell import Model
    from deepwell.cli import render

    with render.console(stderr=True).status(f"Loading {render.plain(name)} ..."):
        return Model.load(name, precision=precision, device=device)


def _talk(model: Model, talk: Conversation, params: SamplingParams, thoughts: Thoughts) -> None:
    """Questions and answers until the input ends."""
    from deepwell.cli import render

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() then edits lines and remembers them)
    out = render.console()
    out.print(_HELP, style="dim")
    while True:
        try:
            words, is_command = read_message(input)
        except EOFError:
            out.print()
            return
        except KeyboardInterrupt:
            out.print(f"\n{_HELP}", style="dim")
            continue
        try:
            if is_command:
                out.print(visible(talk.command(words)), style="dim", markup=False, highlight=False)
            elif words:
                talk.turns.append({"role": "user", "content": words})
                talk.turns.append(_answer(model, talk, params, thoughts).message)
        except DeepwellError as error:
            if talk.turns and talk.turns[-1]["role"] == "user":
                talk.turns.pop()
            click.echo(click.style("error: ", fg="red", bold=True) + str(error), err=True)


def _answer(model: Model, talk: Conversation, params: SamplingParams, thoughts: Thoughts) -> Said:
    """Stream one answer to the terminal; on a pipe, the answer alone."""
    from deepwell.cli import render

    display = Display(render.console(), thoughts)
    try:
        said = hear(model, talk.messages, params, display.show)
        display.end(said)
    finally:
        display.close()
    return said


def _exchange(model: Model, talk: Conversation, params: SamplingParams) -> None:
    """A conversation of a program: a message a line in, an object a line out. One that fails is left out of it."""
    failed = False
    for line in sys.stdin:
        words = _message_of(line)
        if not words:
            continue
        talk.turns.append({"role": "user", "content": words})
        try:
            said = hear(model, talk.messages, params)
        except DeepwellError as error:
            talk.turns.pop()
            failed = True
            _print_line({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
            continue
        talk.turns.append(said.message)
        _print_line(said.record)
        if said.stopped:
            raise KeyboardInterrupt
    if failed:
        click.get_current_context().exit(3)


def _message_of(line: str) -> str:
    line = line.strip()
    with contextlib.suppress(ValueError):
        value = json.loads(line)
        if isinstance(value, str):
            return value
    return line


def _print_line(record: dict[str, Any]) -> None:
    click.echo(json.dumps(record, ensure_ascii=False))
    sys.stdout.flush()
