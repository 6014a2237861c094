"""The answers to one request, as the event loop sees them: pieces as they come, counts, and why each ended.

They are written by the engine's thread (``driver``), which tells what each step has brought. What a slow client has not
fetched yet is put together, so it costs the others nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from deepwell.lm.engine.request import StreamPiece

if TYPE_CHECKING:
    from deepwell.lm.engine.sequence import Finish


@dataclass(slots=True)
class Answer:
    """How far one answer is, as far as ``Generation.news`` has told.

    Attributes:
        index: Which one of its request's.
        prompt_tokens: Tokens of its prompt.
        reused_tokens: Those of them that were in the cache.
        tokens: Tokens written.
        reasoning_tokens: Those of them that were thoughts.
        finish: Why it ended; None while it goes on.
        error: What went wrong, where ``finish`` is "error".
    """

    index: int
    prompt_tokens: int
    reused_tokens: int = 0
    tokens: int = 0
    reasoning_tokens: int = 0
    finish: Finish | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class News:
    """What a step has brought for one answer."""

    index: int
    piece: StreamPiece
    reused_tokens: int
    reasoning_tokens: int
    finish: Finish | None
    error: Exception | None


class Generation:
    """The answers to one request from outside. Leaving its ``with`` block cancels those that go on.

    Attributes:
        loop: The event loop that hears of them.
        answers: How far each is.
        begun: When it was asked for (``time.perf_counter``).
        first: When its first token came.
        ended: When its last answer ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, cancel: Callable[[Generation], None]) -> None:
        """``Driver.begin`` makes them, and has ``cancel`` end them."""
        self.loop = loop
        self.answers: list[Answer] = []
        self.begun = time.perf_counter()
        self.first: float | None = None
        self.ended: float | None = None
        self._cancel = cancel
        self._pieces: dict[int, list[StreamPiece]] = defaultdict(list)
        self._something = asyncio.Event()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    @property
    def over(self) -> bool:
        """Whether every answer has ended, and all of it was fetched."""
        return not self._pieces and all(answer.finish is not None for answer in self.answers)

    def cancel(self) -> None:
        """End what goes on; its memory is free before the engine's next step."""
        if any(answer.finish is None for answer in self.answers) or not self.answers:
            self._cancel(self)

    async def news(self, seconds: float | None = None) -> list[tuple[Answer, StreamPiece]]:
        """What has come for each answer since the last time; waits until there is something, or for ``seconds``.

        An answer's last piece comes when its ``finish`` is set. Empty when the time is up, or all is over.
        """
        if not self._pieces and not self.over:
            self._something.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._something.wait()
            except TimeoutError:
                return []
        pieces, self._pieces = self._pieces, defaultdict(list)
        return [(self.answers[index], _joined(parts)) for index, parts in sorted(pieces.items())]

    def hear(self, news: Sequence[News]) -> bool:
        """Take what a step has brought; whether all answers have ended now."""
        now = time.perf_counter()
        for one in news:
            answer = self.answers[one.index]
            answer.reused_tokens, answer.reasoning_tokens = one.reused_tokens, one.reasoning_tokens
            answer.finish, answer.error = one.finish, one.error
            answer.tokens += one.piece.tokens
            self._pieces[one.index].append(one.piece)
            if self.first is None and one.piece.tokens:
                self.first = now
        self._something.set()
        if self.ended is None and all(answer.finish is not None for answer in self.answers):
            self.ended = now
            return True
        return False


def _joined(pieces: Sequence[StreamPiece]) -> StreamPiece:
    if len(pieces) == 1:
        return pieces[0]
    return StreamPiece(
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        tuple(one for piece in pieces for one in piece.sampled),
        pieces[-1].thought_length,
    )
