"""``deepwell chat``: talk to a language model of this machine.

Ctrl-C stops an answer, not the program: what was written stays part of the conversation. A signal is only taken note of
while an answer is computed, and acted on between two tokens, so the engine is never cut off in the middle of a step.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from deepwell.cli.models import ModelName
from deepwell.errors import DeepwellError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from deepwell.lm.engine.model import Model
    from deepwell.lm.engine.params import SamplingParams

_HELP = "Ctrl-C stops an answer, Ctrl-D ends the chat, /new begins another one."


@dataclass
class _Said:
    """One answer: its words, and when they came."""

    text: str = ""
    reasoning: str = ""
    tokens: int = 0
    first_tokens: int = 0
    times: list[float] = field(default_factory=list)
    stopped: bool = False

    def note(self, tokens: int) -> None:
        """Take note that tokens have come."""
        self.tokens += tokens
        self.first_tokens = self.first_tokens or tokens
        self.times.append(time.perf_counter())

    @property
    def speed(self) -> str:
        """How many tokens came, after what wait, and how fast the others followed."""
        began, first, last = self.times[0], self.times[min(1, len(self.times) - 1)], self.times[-1]
        told = f"{self.tokens} tokens, the first after {first - began:.1f} s"
        rest = self.tokens - self.first_tokens
        return f"{told}, then {rest / (last - first):.1f} tokens/s" if rest and last > first else told


@click.command()
@click.argument("model", type=ModelName(here=True))
@click.argument("question", nargs=-1)
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--thinking/--no-thinking", default=None, help="Ask for reasoning first, or for none.")
@click.option("--thinking-budget", type=int, metavar="N", help="End a thought after that many tokens.")
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
def chat(model: str, question: tuple[str, ...], system: str | None, precision: str, device: str, **asked: Any) -> None:
    """Talk to a language model of this machine.

    MODEL is a name of `deepwell models list`, a model's folder or a GGUF file. With a QUESTION, or with one piped in,
    there is one answer and the program ends.
    """
    from deepwell.lm.engine.params import SamplingParams

    params = SamplingParams(**asked)
    words = " ".join(question)
    piped = not words and not sys.stdin.isatty()
    if piped:
        words = sys.stdin.read().strip()
        if not words:
            raise UsageError("there is no question", hint=f'Ask one: deepwell chat {model} "What is a heat pump?"')
    before = [{"role": "system", "content": system}] if system else []
    loaded = _load(model, precision, device)
    if words:
        if _answer(loaded, [*before, {"role": "user", "content": words}], params).stopped:
            raise KeyboardInterrupt
        return
    _talk(loaded, before, params)


def _load(name: str, precision: str, device: str) -> Model:
    from deepwell import Model
    from deepwell.cli import render

    with render.console(stderr=True).status(f"Loading {render.plain(name)} ..."):
        return Model.load(name, precision=precision, device=device)


def _talk(model: Model, before: Sequence[dict[str, str]], params: SamplingParams) -> None:
    """Questions and answers until the input ends."""
    from deepwell.cli import render

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() then edits lines and remembers them)
    out = render.console()
    out.print(_HELP, style="dim")
    turns: list[dict[str, str]] = []
    while True:
        try:
            words = input("\n> ").strip()
        except EOFError:
            out.print()
            return
        except KeyboardInterrupt:
            out.print(f"\n{_HELP}", style="dim")
            continue
        if words == "/new":
            turns.clear()
            out.print("A new conversation.", style="dim")
        elif words:
            turns.append({"role": "user", "content": words})
            try:
                said = _answer(model, [*before, *turns], params)
            except DeepwellError as error:
                turns.pop()
                click.echo(click.style("error: ", fg="red", bold=True) + str(error), err=True)
                continue
            turns.append({"role": "assistant", "content": said.text})


def _answer(model: Model, messages: Sequence[dict[str, str]], params: SamplingParams) -> _Said:
    """Stream one answer to the terminal; on a pipe, the answer alone."""
    from deepwell.cli import render

    out = render.console()
    said = _Said(times=[time.perf_counter()])
    with _stoppable() as asked_to_stop:
        pieces = model.stream(messages, params)
        for piece in pieces:
            said.note(piece.tokens)
            _show(out, said, piece.text, piece.reasoning)
            if asked_to_stop():
                said.stopped = True
                break
        pieces.close()
    out.print()
    if out.is_terminal:
        out.print(f"{said.speed}, stopped" if said.stopped else said.speed, style="dim")
    return said


def _show(out: Console, said: _Said, text: str, reasoning: str) -> None:
    """Print a piece as it comes: thoughts dim, and on a terminal only; an empty line between them and the answer."""
    if reasoning and out.is_terminal:
        out.print(_visible(reasoning), style="dim italic", end="", markup=False, soft_wrap=True)
    said.reasoning += reasoning
    if text:
        gap = "\n\n" if said.reasoning and not said.text and out.is_terminal else ""
        out.print(gap + _visible(text), end="", markup=False, soft_wrap=True)
    said.text += text
    out.file.flush()


def _visible(text: str) -> str:
    """Text without control characters: a model must not move the reader's cursor."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Take note of Ctrl-C and go on; a second one ends the program as always."""
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        del frame
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)
