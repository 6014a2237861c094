"""One request from outside: what it has written so far, and how its owner waits for more.

There are two ways to wait. ``pieces`` computes steps itself until something comes, which suits a program that asks from
a few threads. A program with many clients drives the steps from one thread (``Model.step``) and asks each request with
``poll`` what the step has brought.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from deepwell.errors import DeepwellError
from deepwell.lm.engine.reply import Reply
from deepwell.lm.engine.sampler import Sampled, SamplerState
from deepwell.lm.engine.sequence import Finish, Sequence
from deepwell.lm.engine.thinking import Piece

if TYPE_CHECKING:
    from deepwell.lm.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """What came in one step: text of the answer, of the reasoning, both, or neither yet.

    Attributes:
        text: Of the answer.
        reasoning: Of the thought before it.
        sampled: The tokens, with log-probabilities if they were asked for.
        thought_length: How many of the whole reply's first tokens are its thought, tags included, as far as is known.
    """

    text: str = ""
    reasoning: str = ""
    sampled: tuple[Sampled, ...] = ()
    thought_length: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens were written."""
        return len(self.sampled)


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer.

    Attributes:
        text: The answer.
        reasoning: What the model thought before it.
        finish: "stop" (the model or a stop string ended it), "length" or "cancelled".
        sampled: Every token, the one that ended it included, with log-probabilities if they were asked for.
        prompt_tokens: Tokens of the prompt.
        reused_tokens: Those of them that were in the cache already.
        reasoning_tokens: Those of the answer that were thoughts.
    """

    text: str
    reasoning: str
    finish: Finish
    sampled: tuple[Sampled, ...]
    prompt_tokens: int
    reused_tokens: int
    reasoning_tokens: int

    @property
    def tokens(self) -> list[int]:
        """The ids of the answer's tokens."""
        return [one.token for one in self.sampled]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to be started, once: all that can be done for it while the engine computes others.

    Attributes:
        tokens: The prompt.
        state: How tokens are chosen.
        reply: What makes text of them.
        most: Tokens that the answer may have.
        ends: Tokens that end it.
    """

    tokens: list[int]
    state: SamplerState
    reply: Reply
    most: int
    ends: frozenset[int]


class Request:
    """A request that runs. Leaving its ``with`` block cancels it, if it has not ended.

    Whoever waits for a token computes the next step, for all requests; so threads that wait take turns.
    """

    def __init__(self, engine: Engine, lock: threading.Lock, sequence: Sequence, reply: Reply) -> None:
        """``lock`` is held by whoever uses the engine, and while this is made; ``Model.begin`` makes requests."""
        self.sequence = sequence
        self._engine = engine
        self._lock = lock
        self._reply = reply
        self._text = ""
        self._reasoning = ""
        self._ended = False
        sequence.watch = self._hear

    def __enter__(self) -> Request:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End the request at once; its memory is free when this returns. Nothing happens if it has ended."""
        with self._lock:
            self._engine.cancel(self.sequence)

    @property
    def finish(self) -> Finish | None:
        """Why it ended; None while it goes on."""
        return self.sequence.finish

    @property
    def error(self) -> DeepwellError | None:
        """Why no token could be chosen, where ``finish`` is "error"."""
        return self.sequence.error

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.sequence.prompt_length

    @property
    def reused_tokens(self) -> int:
        """Tokens of the prompt that were in the cache when it began; 0 until then."""
        return self.sequence.reused or 0

    @property
    def reasoning_tokens(self) -> int:
        """Tokens written so far that were thoughts."""
        return self._reply.reasoning_tokens

    def poll(self) -> StreamPiece:
        """What was written since the last time, without waiting for more. It is all, once ``finish`` is not None."""
        with self._lock:
            return self._collected()

    def pieces(self) -> Iterator[StreamPiece]:
        """What is written, step by step, to the end.

        Raises:
            DeepwellError: No token could be chosen.
        """
        sequence = self.sequence
        while True:
            with self._lock:
                if not sequence.outbox and sequence.finish is None:
                    self._engine.step()
                over = sequence.finish is not None
                piece = self._collected()
            if piece.tokens or piece.text or piece.reasoning:
                yield piece
            if over:
                break
        if sequence.error is not None:
            raise sequence.error

    def result(self) -> Completion:
        """Wait for the end; for a request whose pieces nobody has taken.

        Raises:
            DeepwellError: No token could be chosen.
        """
        pieces = list(self.pieces())
        sequence = self.sequence
        if sequence.finish is None:
            raise DeepwellError("a request came to no end")
        return Completion(
            text="".join(piece.text for piece in pieces),
            reasoning="".join(piece.reasoning for piece in pieces),
            finish=sequence.finish,
            sampled=tuple(one for piece in pieces for one in piece.sampled),
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.reused_tokens,
            reasoning_tokens=self.reasoning_tokens,
        )

    def _collected(self) -> StreamPiece:
        """What has come since the last time; the lock is held."""
        sequence = self.sequence
        if sequence.finish is not None and not self._ended:
            self._ended = True
            if sequence.error is None:
                self._take(self._reply.finish())
        piece = StreamPiece(self._text, self._reasoning, tuple(sequence.outbox), self._reply.thought_length)
        self._text = self._reasoning = ""
        sequence.outbox.clear()
        return piece

    def _hear(self, one: Sampled) -> bool:
        """Take the text of a token as it is chosen; whether a stop string is complete with it."""
        if one.token not in self.sequence.ends:
            self._take(self._reply.push(one.token))
        return self._reply.stopped

    def _take(self, piece: Piece) -> None:
        self._text += piece.text
        self._reasoning += piece.reasoning
