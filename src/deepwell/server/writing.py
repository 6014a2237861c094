"""One answer on its way to the client: from the engine's pieces to deltas, calls of functions and log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from deepwell.lm.engine.tool_calls import ToolDelta, ToolParser
from deepwell.server.chat_schemas import (
    ChatMessage,
    ChoiceLogprobs,
    FinishReason,
    FunctionCall,
    TokenLogprob,
    ToolCall,
    TopLogprob,
)
from deepwell.server.driver import StoppedError

if TYPE_CHECKING:
    from deepwell.lm.engine.model import Model
    from deepwell.lm.engine.request import StreamPiece
    from deepwell.lm.engine.sampler import Sampled
    from deepwell.server.generation import Answer

Delta = tuple[ChatMessage, ChoiceLogprobs | None]


class ChatWriter:
    """Makes one choice of a chat from the pieces of its answer.

    Attributes:
        calls: The calls of functions so far.
    """

    def __init__(self, model: Model, *, parser: ToolParser | None, logprobs: bool) -> None:
        """``parser`` tells calls from text; None: there are none. ``logprobs``: they are asked for."""
        self._parser = parser
        self._logprobs = TokenLog(model) if logprobs else None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._told: list[TokenLogprob] = []

    def push(self, answer: Answer, piece: StreamPiece) -> Iterator[Delta]:
        """What to send now that a piece has come."""
        if piece.reasoning:
            self._reasoning.append(piece.reasoning)
            yield ChatMessage(reasoning_content=piece.reasoning, reasoning=piece.reasoning), None
        over = answer.finish is not None
        logprobs = None
        if self._logprobs is not None:
            tokens = self._logprobs.push(piece, shown=bool(piece.text) or over)
            self._told += tokens
            logprobs = ChoiceLogprobs(content=tokens) if tokens else None
        for part in self._parts(piece.text, over=over):
            yield self._delta(part), logprobs
            logprobs = None
        if logprobs is not None:
            yield ChatMessage(content=""), logprobs

    def message(self) -> Delta:
        """The whole message, when the answer has ended."""
        text, reasoning = "".join(self._text), "".join(self._reasoning)
        calls = [] if self._parser is None else self._parser.calls
        message = ChatMessage(role="assistant", content=None if calls and not text else text)
        if reasoning:
            message.reasoning_content = message.reasoning = reasoning
        if calls:
            message.tool_calls = [
                ToolCall(id=one.id, type="function", function=FunctionCall(name=one.name, arguments=one.arguments))
                for one in calls
            ]
        return message, None if self._logprobs is None else ChoiceLogprobs(content=self._told)

    def finish_reason(self, answer: Answer) -> FinishReason:
        """Why the answer ended, as the API names it."""
        reason = finish_reason(answer)
        return "tool_calls" if reason == "stop" and self._parser is not None and self._parser.calls else reason

    def _parts(self, text: str, *, over: bool) -> Sequence[ToolDelta | str]:
        if self._parser is None:
            return [text] if text else []
        return [*self._parser.push(text), *(self._parser.finish() if over else ())]

    def _delta(self, part: ToolDelta | str) -> ChatMessage:
        if isinstance(part, str):
            self._text.append(part)
            return ChatMessage(content=part)
        if part.id is None:
            call = ToolCall(index=part.index, function=FunctionCall(arguments=part.arguments))
        else:
            function = FunctionCall(name=part.name, arguments=part.arguments)
            call = ToolCall(index=part.index, id=part.id, type="function", function=function)
        return ChatMessage(tool_calls=[call])


class TokenLog:
    """The log-probabilities of an answer's tokens: of those behind the thought, and without the token that ends it."""

    def __init__(self, model: Model) -> None:
        self._tokenizer = model.tokenizer
        self._ends = model.ends
        self._seen = 0
        self._held: list[tuple[int, Sampled]] = []

    def push(self, piece: StreamPiece, *, shown: bool) -> list[TokenLogprob]:
        """Tokens that are certain to be the answer's; held until text of theirs is ``shown``."""
        self._held += enumerate(piece.sampled, self._seen)
        self._seen += piece.tokens
        if not shown:
            return []
        held, self._held = self._held, []
        return [self._told(one) for place, one in held if place >= piece.thought_length and one.token not in self._ends]

    def _told(self, one: Sampled) -> TokenLogprob:
        best = [self._one(token, logprob) for token, logprob in one.top]
        own = self._one(one.token, one.logprob or 0.0)
        return TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=best)

    def _one(self, token: int, logprob: float) -> TopLogprob:
        # A network may have rows behind its vocabulary, which are never chosen, but may be among the most probable.
        known = token < self._tokenizer.vocab_size
        spelled = self._tokenizer.token_bytes(token) if known else b""
        return TopLogprob(token=spelled.decode(errors="replace"), logprob=max(logprob, -9999.0), bytes=list(spelled))


def finish_reason(answer: Answer) -> FinishReason:
    """Why an answer ended.

    Raises:
        Exception: What went wrong, if that ended it.
    """
    if answer.error is not None:
        raise answer.error
    if answer.finish == "length":
        return "length"
    if answer.finish == "stop":
        return "stop"
    raise StoppedError("the request was ended by the server")
