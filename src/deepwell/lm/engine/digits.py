"""Numbers in JSON have an end, and a size that programs can read.

JSON Schema lets a number have any count of digits, and a small model that has begun with them goes on until a limit
cuts the answer off. So no digit may come behind twenty in a row, more than any float or 64-bit integer has, and none
behind two of an exponent, which a float64 can always hold; unless nothing but a digit may come there. Digits inside of
strings are the model's own affair.
"""

from __future__ import annotations

MOST_DIGITS = 20
MOST_OF_EXPONENT = 2

_DIGITS = frozenset(b"0123456789")
_QUOTE, _BACKSLASH = b'"\\'


class DigitCount:
    """How many digits stand in a row at the end of a JSON text, outside of strings."""

    def __init__(self) -> None:
        self.run = 0
        self._exponent = False
        self._quoted = False
        self._escaped = False

    @property
    def left(self) -> int:
        """How many digits may come."""
        return (MOST_OF_EXPONENT if self._exponent else MOST_DIGITS) - self.run

    def push(self, text: bytes) -> None:
        """Go on behind ``text``."""
        for letter in text:
            if self._escaped:
                self._escaped = False
            elif self._quoted and letter == _BACKSLASH:
                self._escaped = True
            elif letter == _QUOTE:
                self._quoted = not self._quoted
            if letter in _DIGITS and not self._quoted:
                self.run += 1
            else:
                # The "e" of true and false does no harm: no digit comes behind it.
                self._exponent = not self._quoted and (letter in b"eE" or (self._exponent and letter in b"+-"))
                self.run = 0


def leading_digits(piece: bytes) -> int:
    """With how many digits a token begins."""
    return len(piece) - len(piece.lstrip(b"0123456789"))
