"""One answer of a language model on its way to the reader: streamed, its thoughts dim or folded, stopped by Ctrl-C.

A signal is only taken note of while an answer is computed, and acted on between two tokens, so the engine is never cut
off in the middle of a step.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from deepwell.lm.engine.model import Model
    from deepwell.lm.engine.params import SamplingParams
    from deepwell.lm.engine.request import Request

Thoughts = Literal["dim", "folded", "hidden"]
THOUGHTS: tuple[Thoughts, ...] = ("dim", "folded", "hidden")
"""How thoughts are shown on a terminal; elsewhere the answer stands alone."""


@dataclass
class Said:
    """One answer: its words, and when they came."""

    text: str = ""
    reasoning: str = ""
    tokens: int = 0
    first_tokens: int = 0
    times: list[float] = field(default_factory=list)
    stopped: bool = False
    counts: dict[str, Any] = field(default_factory=dict)

    def note(self, tokens: int) -> None:
        """Take note that tokens have come."""
        self.tokens += tokens
        self.first_tokens = self.first_tokens or tokens
        self.times.append(time.perf_counter())

    def close(self, request: Request) -> None:
        """Take note of how the request ended."""
        self.counts = {
            "finish": "cancelled" if self.stopped else request.finish,
            "prompt_tokens": request.prompt_tokens,
            "reused_tokens": request.reused_tokens,
            "tokens": self.tokens,
            "reasoning_tokens": request.reasoning_tokens,
            "seconds_to_first_token": round(self.wait, 3),
            "seconds": round(self.times[-1] - self.times[0], 3),
        }

    @property
    def wait(self) -> float:
        """Seconds to the first token."""
        return self.times[min(1, len(self.times) - 1)] - self.times[0]

    @property
    def speed(self) -> str:
        """How many tokens came, after what wait, and how fast the others followed."""
        told = f"{self.tokens} tokens, the first after {self.wait:.1f} s"
        rest, spent = self.tokens - self.first_tokens, self.times[-1] - self.times[0] - self.wait
        told += f", then {rest / spent:.1f} tokens/s" if rest and spent > 0 else ""
        return f"{told}, stopped" if self.stopped else told

    @property
    def message(self) -> dict[str, str]:
        """The answer as a message of the chat API."""
        thought = {"reasoning_content": self.reasoning} if self.reasoning else {}
        return {"role": "assistant", "content": self.text, **thought}

    @property
    def record(self) -> dict[str, Any]:
        """The answer as ``--json`` prints it."""
        return {"text": self.text, "reasoning": self.reasoning, **self.counts}


def hear(
    model: Model,
    messages: Sequence[Mapping[str, str]],
    params: SamplingParams,
    show: Callable[[Said, str, str], None] | None = None,
) -> Said:
    """An answer, shown piece by piece as it comes; cut short by Ctrl-C.

    Args:
        model: Who answers.
        messages: The chat.
        params: How the answer is written.
        show: Called with what was said before, and the new text and reasoning.
    """
    said = Said(times=[time.perf_counter()])
    with _stoppable() as asked_to_stop, model.begin(messages, params) as request:
        for piece in request.pieces():
            said.note(piece.tokens)
            if show is not None:
                show(said, piece.text, piece.reasoning)
            said.text += piece.text
            said.reasoning += piece.reasoning
            if asked_to_stop():
                said.stopped = True
                break
        said.close(request)
    return said


class Display:
    """Prints an answer as it comes; on a pipe, the answer alone."""

    def __init__(self, out: Console, thoughts: Thoughts = "dim") -> None:
        self._out = out
        self._thoughts: Thoughts = thoughts if out.is_terminal else "hidden"
        self._status: Status | None = None
        self._thinking_since = 0.0

    def show(self, said: Said, text: str, reasoning: str) -> None:
        """Print a piece: thoughts as they are wanted, and an empty line between them and the answer."""
        if reasoning:
            self._think(said, reasoning)
        if text:
            begun = bool(said.reasoning or reasoning) and not said.text
            if begun and self._thoughts == "folded":
                self._fold()
            gap = "\n\n" if begun and self._thoughts == "dim" else ""
            self._out.print(gap + visible(text), end="", markup=False, highlight=False, soft_wrap=True)
        self._out.file.flush()

    def end(self, said: Said) -> None:
        """Print the end of the line, and the speed on a terminal."""
        if self._status is not None:
            self._fold()
        self._out.print()
        if self._out.is_terminal:
            self._out.print(said.speed, style="dim", highlight=False)

    def close(self) -> None:
        """Take down what moves, when an answer has failed."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _think(self, said: Said, reasoning: str) -> None:
        if self._thoughts == "dim":
            self._out.print(
                visible(reasoning), style="dim italic", end="", markup=False, highlight=False, soft_wrap=True
            )
        elif self._thoughts == "folded" and self._status is None and not said.text:
            self._thinking_since = time.perf_counter()
            self._status = self._out.status("[dim]Thinking ...[/dim]")
            self._status.start()

    def _fold(self) -> None:
        self.close()
        spent = time.perf_counter() - self._thinking_since
        self._out.print(f"Thought for {spent:.1f} s; /thoughts shows what.\n", style="dim italic", highlight=False)


def visible(text: str) -> str:
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
