"""How a pull tells what it is doing: it calls a function with one ``Step`` after another.

The function belongs to whoever shows them (``cli/models.py`` draws a bar); without one, a pull is silent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """Where a pull is.

    Attributes:
        model: The model's name.
        doing: What is being done now, in words: "fetching wheel timm 1.0.31".
        done: Bytes of it that are done, counting those of an earlier, interrupted pull.
        total: Bytes there are; 0 when nobody said.
    """

    model: str
    doing: str
    done: int = 0
    total: int = 0


Progress = Callable[[Step], None]


def silent(step: Step) -> None:
    """Show nothing."""
