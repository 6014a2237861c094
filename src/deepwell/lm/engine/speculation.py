"""Guessing the next tokens, so that one pass over the weights can check several.

Whatever is guessed, the answer is the same: the network computes all guessed tokens in one pass, and a guess is kept
only where it is what would have been chosen anyway (``sampler.verify``). A wrong guess costs time alone, so a drafter
watches how its guesses fare: it guesses more after good ones, fewer after bad ones, and rests after several that were
all wrong, longer each time.

Guesses come from the text itself: where its last tokens stood before, what followed them then (prompt look-up; answers
that quote their sources gain most). If the text has no such place, the network's module of multi-token prediction is
asked, when it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LONGEST = 3
_SHORTEST = 2
"""Tokens that must agree for a place to count."""

_FIRST = 4
_MOST = 16
"""Tokens of a first guess, and of the longest."""

_LONGEST_REST = 64


@dataclass(slots=True)
class DraftCounts:
    """How many tokens were guessed and how many of them were right."""

    proposed: int = 0
    accepted: int = 0


class Drafter:
    """Guesses for one sequence, and how they fare."""

    def __init__(self) -> None:
        self.counts = DraftCounts()
        self._places: list[dict[tuple[int, ...], int]] = [{} for _ in range(_SHORTEST, _LONGEST + 1)]
        self._indexed = 0
        self._length = _FIRST
        self._misses = 0
        self._rest_until = 0

    def resting(self, tokens: Sequence[int]) -> bool:
        """Whether guesses have been too bad to go on just now."""
        return len(tokens) < self._rest_until

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """What may follow ``tokens``: at most ``most``, often none."""
        if most < 1 or self.resting(tokens):
            return []
        place = self._find(tokens)
        if place is None:
            return []
        # What repeats with a period shorter than the guess goes on repeating.
        period, length = len(tokens) - place, min(self._length, most)
        return [tokens[place + index % period] for index in range(length)]

    def learn(self, tokens: Sequence[int], proposed: int, accepted: int) -> None:
        """Take note of how a guess fared, now that the sequence is ``tokens``."""
        self.counts.proposed += proposed
        self.counts.accepted += accepted
        if accepted == proposed:
            self._length = min(_MOST, 2 * self._length)
            self._misses = 0
        elif accepted:
            self._length = accepted + 1
            self._misses = 0
        else:
            self._length = max(1, self._length // 2)
            self._misses += 1
            self._rest_until = len(tokens) + min(2**self._misses, _LONGEST_REST) - 1

    def _find(self, tokens: Sequence[int]) -> int | None:
        """The place behind the latest earlier occurrence of the last tokens, the longest agreement first."""
        for end in range(self._indexed, len(tokens)):
            # The last tokens themselves are entered when something stands behind them.
            for places, size in zip(self._places, range(_SHORTEST, _LONGEST + 1), strict=True):
                if end >= size:
                    places[tuple(tokens[end - size : end])] = end
        self._indexed = len(tokens)
        for places, size in zip(reversed(self._places), range(_LONGEST, _SHORTEST - 1, -1), strict=True):
            place = places.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if place is not None:
                return place
        return None
