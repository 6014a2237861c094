"""What a token more costs in a step, measured, so that guesses are made only where they pay.

The time of a step that decodes is taken for a line, fixed + each * tokens: the weights are read once whatever happens,
and every token brings its own arithmetic. Which of the two dominates depends on the machine, the precision and how many
requests run; so it is fitted to the last steps, by least squares that forget (each step counts a little less than the
one after it).

A guess of k tokens of which each is right with probability p, as long as those before it are, brings p + ... + p^k
tokens more and costs k times ``each``. ``best`` is the k that makes the most tokens a second, and often it is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

_KEPT = 0.97
"""What a measurement counts when one more has come: about the last thirty steps decide."""

_BELIEVED = 0.1
"""Cost of a token more, as a share of a step of one token, before any two steps of different size were measured."""


@dataclass(slots=True)
class Pace:
    """Sums of the least squares: weights, tokens, seconds, and their products."""

    _weight: float = 0.0
    _tokens: float = 0.0
    _seconds: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0

    def note(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens has taken so long."""
        mean = self._seconds / self._weight if self._weight else seconds
        seconds = min(seconds, 8 * mean)  # the machine did something else meanwhile
        self._weight = _KEPT * self._weight + 1
        self._tokens = _KEPT * self._tokens + tokens
        self._seconds = _KEPT * self._seconds + seconds
        self._squares = _KEPT * self._squares + tokens * tokens
        self._products = _KEPT * self._products + tokens * seconds

    @property
    def line(self) -> tuple[float, float]:
        """Seconds of a step before its first token, and of each token; (1, a guess at it) before anything is known."""
        if not self._weight:
            return 1.0, _BELIEVED
        tokens, seconds = self._tokens / self._weight, self._seconds / self._weight
        spread = self._squares / self._weight - tokens * tokens
        if spread < 0.05:
            each = _BELIEVED * seconds / (1 + _BELIEVED * tokens)
        else:
            each = (self._products / self._weight - tokens * seconds) / spread
        each = min(max(each, 0.0), seconds / tokens)
        return seconds - each * tokens, each

    def best(self, rate: float, most: int, sequences: int) -> int:
        """How many tokens to guess for one request.

        Args:
            rate: How probable it is that a guessed token is right when those before it were.
            most: No more than that.
            sequences: Requests that decode in the next step; they all wait for this one's guesses.
        """
        fixed, each = self.line
        spent = fixed + each * sequences
        best, highest = 0, sequences / max(spent, 1e-9)
        gained, right = 0.0, 1.0
        for length in range(1, most + 1):
            right *= rate
            gained += right
            speed = (sequences + gained) / max(spent + each * length, 1e-9)
            if speed > highest:
                best, highest = length, speed
        return best
