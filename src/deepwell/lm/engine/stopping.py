"""Stop strings: texts that end an answer, found across the borders of tokens.

A stop string can begin in one token and end three later, so text that may be the beginning of one is held back until it
is known. Which string ends the answer, and where, does not depend on how the text was cut into pieces: it is the one
that is complete first, and of several that end together the one that begins first.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes an answer on until one of its stop strings is complete.

    Attributes:
        found: The stop string that ended the answer; None while none has.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found: str | None = None
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain to be part of the answer now that ``text`` has come; none after the end."""
        if self.found is not None:
            return ""
        self._held += text
        first = self._first()
        if first is not None:
            begin, self.found = first
            passed, self._held = self._held[:begin], ""
            return passed
        end = begins_at(self._held, self._stops)
        passed, self._held = self._held[:end], self._held[end:]
        return passed

    def finish(self) -> str:
        """What was held back, when the answer has ended by itself."""
        passed, self._held = self._held, ""
        return passed

    def _first(self) -> tuple[int, str] | None:
        """Where the first complete stop string begins, and which it is."""
        ends = [(begin + len(stop), begin, stop) for stop in self._stops if (begin := self._held.find(stop)) >= 0]
        return min(ends)[1:] if ends else None


def begins_at(text: str, marks: Sequence[str]) -> int:
    """Where the longest end of ``text`` that one of ``marks`` may begin with begins; its length if there is none."""
    longest = max((len(mark) for mark in marks), default=0)
    for begin in range(max(0, len(text) - longest + 1), len(text)):
        if any(mark.startswith(text[begin:]) for mark in marks):
            return begin
    return len(text)
