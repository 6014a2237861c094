"""Thoughts and answers: told apart as they stream, ended by a budget, and kept out of the grammar.

A reply of a model that reasons is ``<think>``, thoughts, ``</think>`` and an answer. The first tag may stand in the
prompt, where the chat template wrote it. Tags can be tokens of their own or letters, cut anywhere by tokens; both are
looked for in the text. Only a tag at the very start opens a thought, and the first closing tag ends it, so an answer
may speak about tags.

``ThoughtSplitter`` does this for text. ``ThoughtGate`` does it for tokens while they are chosen: it closes a thought
that has used up its budget, and lets a grammar begin behind the thought; a grammar that began before it would forbid
the model to think at all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

from torch import Tensor

from deepwell.lm.engine.spelling import spelled
from deepwell.lm.engine.stopping import begins_at

if TYPE_CHECKING:
    from deepwell.lm.engine.sampler import Constraint
    from deepwell.lm.weights.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"
_GAP = "\n\n"
"""What models write between a thought and its answer; it belongs to neither."""


class _State(Enum):
    UNSURE = "nothing but what may be an opening tag has come"
    THINKING = "inside of the thought"
    ANSWERING = "behind the thought, or there was none"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a reply as it streams: of the answer, of the reasoning before it, or of both."""

    text: str = ""
    reasoning: str = ""


class ThoughtSplitter:
    """Takes a reply's text as it comes and tells reasoning from answer.

    The line break behind the opening tag, the one before the closing tag, and the empty line behind it belong to
    neither, so that a template that writes them around reasoning and answer makes the same prompt again.
    """

    def __init__(self, *, opened: bool) -> None:
        """``opened``: the prompt ends with the opening tag."""
        self._state = _State.THINKING if opened else _State.UNSURE
        self._held = ""
        self._breaks = 1 if opened else 0

    @property
    def thinking(self) -> bool:
        """Whether the reply is inside of its thought."""
        return self._state is _State.THINKING

    def push(self, text: str) -> Piece:
        """What is certain now that ``text`` has come."""
        self._held += text
        reasoning = ""
        if self._state is _State.UNSURE:
            begun = self._held.lstrip()
            if begun.startswith(OPEN):
                self._state, self._held, self._breaks = _State.THINKING, begun[len(OPEN) :], 1
            elif OPEN.startswith(begun):
                return Piece()
            else:
                self._state = _State.ANSWERING
        if self._state is _State.THINKING:
            self._drop_breaks()
            thought, closed, rest = self._held.partition(CLOSE)
            if not closed:
                end = begins_at(thought, (CLOSE, f"\n{CLOSE}"))
                self._held = thought[end:]
                return Piece(reasoning=thought[:end])
            reasoning = thought.removesuffix("\n")
            self._state, self._held, self._breaks = _State.ANSWERING, rest, len(_GAP)
        self._drop_breaks()
        answer, self._held = self._held, ""
        return Piece(answer, reasoning)

    def finish(self) -> Piece:
        """What was held back, when the reply has ended. A thought that was cut off is reasoning to its end."""
        held, self._held = self._held, ""
        return Piece(reasoning=held) if self.thinking else Piece(held)

    def _drop_breaks(self) -> None:
        while self._breaks and self._held:
            if not self._held.startswith("\n"):
                self._breaks = 0
                break
            self._held = self._held[1:]
            self._breaks -= 1


class ThoughtGate:
    """A ``Constraint``: ends a thought at its budget, and begins a grammar behind it.

    A thought that is ended at its budget is followed by an empty line. With a grammar every thought is, no token may
    hold both the end of a thought and the beginning of an answer, and the model cannot end its reply while it thinks.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        opened: bool,
        opens: bool = False,
        budget: int | None = None,
        grammar: Constraint | None = None,
    ) -> None:
        """Start a reply.

        Args:
            tokenizer: The model's.
            opened: The prompt ends with the opening tag.
            opens: The reply is to begin with it.
            budget: Tokens that the thought may have, without its tags.
            grammar: Of the answer.

        Raises:
            ModelFormatError: The vocabulary cannot spell the tags.
        """
        self._tokenizer = tokenizer
        self._grammar = grammar
        self._left = math.inf if budget is None else budget
        self._tail = b""
        self._forced: deque[int] = deque()
        self._closing = spelled(tokenizer, f"\n{CLOSE}") if budget is not None else []
        gaps = grammar is not None or budget is not None
        self._gaps = [spelled(tokenizer, _GAP[had:]) if gaps else [] for had in range(len(_GAP) + 1)]
        self._state = _State.THINKING if opened else _State.UNSURE
        if opens and not opened:
            self._forced.extend(spelled(tokenizer, f"{OPEN}\n"))
        elif opened:
            self._close_at_budget()

    @property
    def done(self) -> bool:
        """Whether the answer is whole, and nothing may follow."""
        return self._state is _State.ANSWERING and self._grammar is not None and self._grammar.done

    @property
    def forced(self) -> Sequence[int]:
        """Tokens of a tag or a gap that has begun, or those that the grammar leaves no choice about."""
        if self._forced or self._state is not _State.ANSWERING or self._grammar is None:
            return tuple(self._forced)
        return self._grammar.forced

    def restrict(self, logits: Tensor) -> Tensor:
        """Logits [V] with -inf where no token may come now."""
        if self._forced:
            only = logits.new_full(logits.shape, -math.inf)
            only[self._forced[0]] = 0.0
            return only
        if self._grammar is None:
            return logits
        if self._state is _State.ANSWERING:
            return self._grammar.restrict(logits)
        had = len(self._tail) - begins_at(self._tail.decode("latin-1"), (CLOSE,))
        banned = _too_much(self._tokenizer)[had]
        logits = logits.clone()
        logits[[*self._tokenizer.eos_token_ids, *banned]] = -math.inf
        return logits

    def accept(self, token: int) -> None:
        """Go on behind a token that was chosen."""
        forced = bool(self._forced)
        if forced:
            self._forced.popleft()
        elif self._state is _State.ANSWERING:
            if self._grammar is not None:
                self._grammar.accept(token)
            return
        self._tail += self._tokenizer.token_bytes(token)
        if self._state is _State.UNSURE:
            self._look_for_opening()
        elif self._state is _State.THINKING:
            self._left -= not forced
            self._look_for_closing(forced=forced)

    def _look_for_opening(self) -> None:
        begun = self._tail.lstrip()
        if begun.startswith(OPEN.encode()):
            self._state, self._tail = _State.THINKING, begun[len(OPEN) :]
            self._look_for_closing(forced=False)
        elif not OPEN.encode().startswith(begun):
            self._state = _State.ANSWERING

    def _look_for_closing(self, *, forced: bool) -> None:
        _, closed, rest = self._tail.partition(CLOSE.encode())
        if closed:
            self._state, self._tail = _State.ANSWERING, b""
            self._forced.extend(self._gaps[len(rest)] if forced or self._grammar is not None else ())
            return
        self._tail = self._tail[1 - len(CLOSE) :]
        self._close_at_budget()

    def _close_at_budget(self) -> None:
        if self._left <= 0 and not self._forced:
            self._forced.extend(self._closing)


def opens_thought(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends with an opening tag, as chat templates write it for a model that is to think."""
    end = b"".join(tokenizer.token_bytes(token) for token in prompt[-24:] if 0 <= token < tokenizer.vocab_size)
    return end.rstrip().endswith(OPEN.encode())


@lru_cache(maxsize=8)
def _too_much(tokenizer: Tokenizer) -> dict[int, list[int]]:
    """Tokens that end a thought and begin the answer, by how many letters of the closing tag stand before them."""
    tag = CLOSE.encode()
    found: dict[int, list[int]] = {had: [] for had in range(len(tag))}
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.token_bytes(token)
        if tag[-1:] not in piece:
            continue
        for had, listed in found.items():
            _, closed, rest = (tag[:had] + piece).partition(tag)
            if closed and not _GAP.encode().startswith(rest):
                listed.append(token)
    return found
