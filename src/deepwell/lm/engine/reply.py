"""One reply from its tokens on: text, reasoning kept apart, stop strings; and ``begin``, the door to all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from deepwell.errors import MissingExtraError, UsageError
from deepwell.lm.engine.sampler import Constraint, SamplerState
from deepwell.lm.engine.stopping import StopStrings
from deepwell.lm.engine.thinking import CLOSE, OPEN, Piece, ThoughtGate, ThoughtSplitter, opens_thought
from deepwell.lm.engine.tool_formats import format_of, functions_of, keepable
from deepwell.lm.engine.tool_gate import CallGate

if TYPE_CHECKING:
    from deepwell.lm.engine.grammar import Grammars
    from deepwell.lm.engine.params import SamplingParams
    from deepwell.lm.weights.tokenizer import Tokenizer


class Reply:
    """Tokens to text as they come. The pieces, put together, do not depend on how tokens cut the text.

    Attributes:
        reasoning_tokens: How many tokens were thoughts, the closing tag included.
        thought_length: How many of the first tokens are the thought with both of its tags; the answer's come behind.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        splitter: ThoughtSplitter | None = None,
        marks: Sequence[str] = (),
    ) -> None:
        """``splitter`` tells reasoning from answer; None: all of it is answer. ``marks`` are shown as they are."""
        self.reasoning_tokens = 0
        self.thought_length = 0
        self._length = 0
        self._stream = tokenizer.stream()
        self._stops = StopStrings(stop)
        self._splitter = splitter
        # A tag that is a special token is not shown in texts, and must be seen here.
        shown = (*((OPEN, CLOSE) if splitter else ()), *marks)
        tags = {token: tag for tag in shown if (token := tokenizer.token_id(tag)) is not None}
        self._tags = {token: tag for token, tag in tags.items() if not tokenizer.decode([token])}

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stops.found is not None

    def push(self, token: int) -> Piece:
        """What can be shown now that ``token`` has come; not to be called with the token that ends an answer."""
        self._length += 1
        thought = self._splitter is not None and self._splitter.thinking
        self.reasoning_tokens += thought
        piece = self._pass(self._stream.push(token) + self._tags.get(token, ""))
        if thought or (self._splitter is not None and self._splitter.thinking):
            self.thought_length = self._length
        return piece

    def finish(self) -> Piece:
        """What was held back, when no token comes any more."""
        last = self._pass(self._stream.finish())
        rest = Piece() if self._splitter is None else self._splitter.finish()
        text = last.text + self._stops.push(rest.text)
        return Piece(text if self.stopped else text + self._stops.finish(), last.reasoning + rest.reasoning)

    def _pass(self, text: str) -> Piece:
        piece = Piece(text) if self._splitter is None else self._splitter.push(text)
        return Piece(self._stops.push(piece.text), piece.reasoning)


def begin(
    tokenizer: Tokenizer,
    params: SamplingParams,
    prompt: Sequence[int],
    grammars: Grammars,
    *,
    chat: bool,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[SamplerState, Reply]:
    """What an engine keeps for one request beside its tokens: how the next one is chosen, and what text they make.

    Args:
        tokenizer: The model's.
        params: How the reply is written.
        prompt: Its tokens.
        grammars: The model's.
        chat: The reply may be a thought and an answer, and is split. A text that is only continued never is.
        tools: Functions that the reply may call. Marks of calls are shown in its text, for who reads calls out of it.

    Raises:
        UsageError: The form that ``params`` asks for cannot be kept, or the model has no way to write calls.
        ModelFormatError: The vocabulary cannot end a thought.
        MissingExtraError: llguidance is not installed.
    """
    grammar = grammars.begin(params)
    opened = opens_thought(tokenizer, prompt)
    opens = chat and grammar is not None and params.thinking is True
    constraint: Constraint | None = grammar
    if opened or opens or (chat and grammar is None):
        budget = params.thinking_budget
        if budget is not None or grammar is not None:
            constraint = ThoughtGate(tokenizer, opened=opened, opens=opens, budget=budget, grammar=grammar)
    form = format_of(tokenizer) if tools else None
    if form is not None and grammar is None and form.opening:
        called = form.grammar(tokenizer, keepable(functions_of(tools or ())), opened=True)
        # A call of its own accord need not be held to anything; where it cannot be, the model is as free as ever.
        with suppress(UsageError, MissingExtraError):
            grammars.of_text(called)  # compiled here, and not between two steps
            constraint = CallGate(
                tokenizer, form.opening, lambda: grammars.of_text(called), opened=opened, outside=constraint
            )
    state = SamplerState(params, prompt, tokenizer.vocab_size, constraint=constraint)
    splitter = ThoughtSplitter(opened=opened) if chat else None
    return state, Reply(tokenizer, params.stop, splitter=splitter, marks=() if form is None else form.marks)
