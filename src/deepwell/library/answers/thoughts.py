"""Tell a model's thoughts from its answer while the reply streams in.

Reasoning models mark their thoughts in one of three ways, and servers pass on any of them:

- a field of its own (``reasoning_content`` or ``reasoning``), which needs no parsing;
- ``<think>`` ... ``</think>`` in the text;
- only ``</think>``, because the chat template wrote the opening tag into the prompt (DeepSeek-R1's does). Then nothing
  at the start says that this is a thought, so text is held back until a tag or the end of the reply decides.

Tags may be cut anywhere by the chunks of a stream. A thought that is cut off by the token limit has no closing tag and
is reasoning to its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from deepwell.library.protocols import Delta

_NAMES = "(?:think|thinking|thought|thoughts|reasoning)"
_OPEN = re.compile(rf"\s*(?:<{_NAMES}>|\[THINK\])", re.IGNORECASE)
_OPEN_INSIDE = re.compile(rf"<{_NAMES}>|\[THINK\]", re.IGNORECASE)
_CLOSE = re.compile(rf"</{_NAMES}>|\[/THINK\]", re.IGNORECASE)
_LONGEST_TAG = len("</reasoning>")
_PARTIAL = re.compile(r"(?:<[/a-z]{0,11}|\[/?[a-z]{0,5})$", re.IGNORECASE)


class ThoughtSplitter:
    """Feed it the pieces of a reply's text; it gives them back as answer or as reasoning.

    Args:
        hold: Hold text back until it is sure that it is not a thought whose opening tag the template wrote. With False
            text is passed on at once and only an explicit opening tag starts a thought.
    """

    def __init__(self, *, hold: bool = True) -> None:
        self._state: Literal["unsure", "thinking", "answering"] = "unsure"
        self._hold = hold
        self._held = ""
        self._after_thought = False

    def answering(self) -> Iterator[Delta]:
        """The server sends thoughts in a field of their own, so the text is the answer: let go of what was held."""
        if self._state == "unsure" and not _OPEN.match(self._held) and not _CLOSE.search(self._held):
            self._hold = False
        yield from self.feed("")

    def feed(self, text: str) -> Iterator[Delta]:
        """Take a piece of text and give what is decided so far."""
        self._held += text
        while self._held:
            before = (self._state, self._held)
            yield from self._step()
            if (self._state, self._held) == before:
                return

    def finish(self) -> Iterator[Delta]:
        """Give what is left when the reply has ended."""
        held, self._held = self._held, ""
        if held.strip() or (held and self._state != "unsure"):
            yield Delta(reasoning=held) if self._state == "thinking" else Delta(text=held)

    def _step(self) -> Iterator[Delta]:
        if self._state == "unsure":
            if opened := _OPEN.match(self._held):
                self._state, self._held = "thinking", self._held[opened.end() :]
            elif closed := _CLOSE.search(self._held):
                thought, self._held = self._held[: closed.start()], self._held[closed.end() :]
                self._state, self._after_thought = "answering", True
                yield Delta(reasoning=thought)
            elif not self._hold and not _PARTIAL.fullmatch(self._held.lstrip()) and self._held.strip():
                self._state = "answering"
        elif self._state == "thinking":
            closed = _CLOSE.search(self._held)
            end = closed.start() if closed else self._safe_end()
            if end:
                yield Delta(reasoning=self._held[:end])
            self._held = self._held[closed.end() :] if closed else self._held[end:]
            if closed:
                self._state, self._after_thought = "answering", True
        else:
            if self._after_thought:  # blank lines between a thought and its answer belong to neither
                self._held = self._held.lstrip()
                self._after_thought = not self._held
            opened = _OPEN_INSIDE.search(self._held)
            end = opened.start() if opened else self._safe_end()
            if end:
                yield Delta(text=self._held[:end])
            self._held = self._held[opened.end() :] if opened else self._held[end:]
            if opened:
                self._state = "thinking"

    def _safe_end(self) -> int:
        """Up to where the held text cannot be the beginning of a tag."""
        partial = _PARTIAL.search(self._held, max(0, len(self._held) - _LONGEST_TAG))
        return partial.start() if partial else len(self._held)


def strip_thoughts(text: str) -> str:
    """A whole reply without its thoughts."""
    splitter = ThoughtSplitter()
    pieces = [*splitter.feed(text), *splitter.finish()]
    return "".join(piece.text for piece in pieces)
