"""What the sections of a recipe check their values with; every message begins with the dotted key."""

from __future__ import annotations

from deepwell.errors import RecipeError

Steps = tuple[tuple[float, float], ...]
"""``((from, value), ...)``: from this share of the run on, this value. The first pair begins at 0."""


def check(holds: bool, key: str, problem: str, hint: str = "") -> None:
    """Refuse a value: ``problem`` is what follows the dotted key in the message.

    Raises:
        RecipeError: ``holds`` is false.
    """
    if not holds:
        raise RecipeError(f"{key} {problem}", hint=hint)


def one_of(key: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse a word that is not among those known."""
    check(value in known, key, f"is {value!r}", f"known are {', '.join(known)}")


def check_steps(key: str, steps: Steps) -> None:
    """Refuse pairs that do not begin at 0 and rise."""
    check(bool(steps) and steps[0][0] == 0, key, "must begin with a pair [0, value]")
    begins = [begin for begin, _ in steps]
    check(
        begins == sorted(set(begins)) and begins[-1] < 1,
        key,
        "has shares of the run that do not rise from 0 to below 1",
    )


def value_at(steps: Steps, share: float) -> float:
    """The value of a schedule of pairs at a share of the run."""
    return [value for begin, value in steps if begin <= share][-1]
