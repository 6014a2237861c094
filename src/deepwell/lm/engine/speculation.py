"""Guessing the next tokens, so that one pass over the weights can check several.

Whatever is guessed, the answer is the same: the network computes all guessed tokens in one pass, and a guess is kept
only where it is what would have been chosen anyway (``sampler.verify``). A wrong guess costs time alone, so a drafter
watches how its guesses fare: it guesses more after good ones, fewer after bad ones, none where the time that they cost
is more than what they bring (``pace``), and rests after several that were all wrong, longer each time.

The best guesses are none: where a grammar leaves no choice, as about the keys of an object, its tokens are computed
together. Others come from the text itself: where its last tokens stood before, what followed them then (prompt look-up;
answers that quote their sources gain most). If the text has no such place, the network's module of multi-token
prediction is asked, when it has one, and asked again about its own guesses (as EAGLE does, arXiv 2401.15077).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LONGEST = 3
_SHORTEST = 2
"""Tokens that must agree for a place to count."""

_LONGEST_REST = 64

_BELIEF = 2.0
"""Guessed tokens that what is believed of a source before its first guess counts for."""

_KEPT = 0.8
"""What the guesses before count when one more has been checked."""

Worth = Callable[[float, int], int]
"""How many tokens are worth guessing, by how often they are right and how many can be guessed at most."""


@dataclass(slots=True)
class DraftCounts:
    """How many tokens were guessed and how many of them were right."""

    proposed: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Trust:
    """How far one source of guesses is trusted in one request.

    Attributes:
        believed: How often a guessed token is right, before any was checked.
        length: Tokens of the next guess.
        longest: Tokens of the longest guess.
    """

    believed: float
    length: int
    longest: int
    _right: float = 0.0
    _checked: float = 0.0
    _misses: int = 0
    _rest_until: int = 0

    @property
    def rate(self) -> float:
        """How often a guessed token is right when those before it are, the latest guesses counting most."""
        return (_BELIEF * self.believed + self._right) / (_BELIEF + self._checked)

    def resting(self, count: int) -> bool:
        """Whether guesses have been too bad to go on just now, behind ``count`` tokens."""
        return count < self._rest_until

    def allowed(self, count: int, most: int, worth: Worth | None) -> int:
        """Tokens that may be guessed behind ``count`` tokens."""
        if most < 1 or self.resting(count):
            return 0
        length = min(self.length, most)
        if worth is not None:
            length = worth(self.rate, length)
            if not length:
                # It does not pay. What was seen is forgotten by and by, so that it is tried again.
                self._right, self._checked = self._right / 2, self._checked / 2
                self._rest(count)
        return length

    def learn(self, count: int, proposed: int, accepted: int) -> None:
        """Take note of how a guess fared, now that there are ``count`` tokens."""
        self._right = _KEPT * self._right + accepted
        self._checked = _KEPT * self._checked + accepted + (accepted < proposed)
        if accepted == proposed:
            self.length = min(self.longest, 2 * self.length)
        elif accepted:
            self.length = min(self.longest, accepted + 1)
        else:
            self.length = max(1, self.length // 2)
            self._rest(count)
            return
        self._misses = 0

    def _rest(self, count: int) -> None:
        self._misses += 1
        self._rest_until = count + min(2**self._misses, _LONGEST_REST) - 1


class Drafter:
    """Guesses for one sequence, and how they fare."""

    def __init__(self) -> None:
        self.counts = DraftCounts()
        self._places: list[dict[tuple[int, ...], int]] = [{} for _ in range(_SHORTEST, _LONGEST + 1)]
        self._indexed = 0
        self._text = Trust(believed=0.7, length=4, longest=16)
        self._module = Trust(believed=0.7, length=1, longest=4)
        self._given = Trust(believed=1.0, length=1, longest=1)
        self._asked = self._text

    def resting(self, tokens: Sequence[int]) -> bool:
        """Whether guesses from the text have been too bad to go on just now."""
        return self._text.resting(len(tokens))

    def propose(self, tokens: Sequence[int], most: int, worth: Worth | None = None) -> list[int]:
        """What may follow ``tokens``, from the text: at most ``most``, often none."""
        if most < 1 or self.resting(tokens):
            return []
        place = self._find(tokens)
        if place is None:
            return []
        self._asked = self._text
        length = self._text.allowed(len(tokens), most, worth)
        # What repeats with a period shorter than the guess goes on repeating.
        period = len(tokens) - place
        return [tokens[place + index % period] for index in range(length)]

    def certain(self) -> None:
        """The next guess is not one: no other tokens may come. Nothing is learnt from it."""
        self._asked = self._given

    def depth(self, tokens: Sequence[int], most: int, worth: Worth | None = None) -> int:
        """How many tokens the module of multi-token prediction is to guess behind ``tokens``."""
        self._asked = self._module
        return self._module.allowed(len(tokens), most, worth)

    def learn(self, tokens: Sequence[int], proposed: int, accepted: int) -> None:
        """Take note of how the last guess fared, now that the sequence is ``tokens``."""
        self.counts.proposed += proposed
        self.counts.accepted += accepted
        self._asked.learn(len(tokens), proposed, accepted)

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
