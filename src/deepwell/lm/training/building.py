"""Frozen records from plain values: every key known, every value of its field's type.

What TOML and JSON give is checked against the type hints of the record's fields: sections in sections, lists of
sections, pairs, literals. An integer is taken where a float is asked for, and nothing else is converted: neither a
truth value to a number nor a number to a string. ``Wrong`` says in which place what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from deepwell.errors import RecipeError

T = TypeVar("T")
Place = tuple[str | int, ...]


class Wrong(Exception):  # noqa: N818 - never leaves this room: reading adds file and line
    """A key or value that does not fit, and its place from the top down."""

    def __init__(self, place: Place, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.place, self.problem, self.hint = place, problem, hint


def build(record: type[T], values: Mapping[str, Any], place: Place) -> T:
    """A record of the class ``record`` from a table at ``place``.

    Raises:
        Wrong: A key that there is not, one that is missing, a value of another type, or one that the record refuses.
    """
    found = build_values(record, values, place)
    for field in dataclasses.fields(record):  # type: ignore[arg-type]  # every caller gives a dataclass
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in found:
            what = f"[{field.name}]" if dataclasses.is_dataclass(_hints(record)[field.name]) else field.name
            raise Wrong(place, f"{_dotted(place) or 'the recipe'} has no {what}")
    try:
        return record(**found)
    except RecipeError as error:
        raise Wrong(_place_of(error, place), error.message, error.hint) from error


def _place_of(error: RecipeError, place: Place) -> Place:
    """Where the record at ``place`` finds fault: its message begins with a dotted key, which has no indices."""
    key = re.split(r"[\s(]", error.message, maxsplit=1)[0].split(".")
    section = [part for part in place if isinstance(part, str)]
    return (*place, *key[len(section) :]) if key[: len(section)] == section else place


def build_values(record: type[Any], values: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The values of some fields of ``record``, converted to the fields' types.

    Raises:
        Wrong: As of ``build``, but for missing keys.
    """
    hints = _hints(record)
    for key in values:
        if key not in hints:
            section = _dotted(place)
            near = difflib.get_close_matches(key, hints, 1, cutoff=0.6)
            hint = f"did you mean {near[0]}? " if near else ""
            raise Wrong(
                (*place, key),
                f"there is no key {_dotted((*place, key))}",
                f"{hint}{f'[{section}]' if section else 'a recipe'} knows {', '.join(hints)}",
            )
    return {key: _value(hints[key], value, (*place, key)) for key, value in values.items()}


def _hints(record: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(record)


def _value(kind: Any, value: Any, place: Place) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _wrong(kind, value, place)
        return build(typing.cast("type[Any]", kind), value, place)
    if origin in (typing.Union, types.UnionType):
        if value is None or value is False:
            return None
        return _value(next(option for option in inner if option is not types.NoneType), value, place)
    if origin is Literal:
        if value not in inner or not isinstance(value, str):
            near = difflib.get_close_matches(str(value), inner, 1)
            raise _wrong(kind, value, place, f"did you mean {near[0]}?" if near else "")
        return value
    if origin is tuple:
        return _elements(kind, inner, value, place)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(kind, value, place)
        return dict(value)
    return _scalar(kind, value, place)


def _elements(kind: Any, inner: tuple[Any, ...], value: Any, place: Place) -> tuple[Any, ...]:
    many = len(inner) == 2 and inner[1] is Ellipsis
    fits = isinstance(value, Sequence) and not isinstance(value, str)
    if not fits or not (many or len(value) == len(inner)):
        raise _wrong(kind, value, place)
    kinds = [inner[0]] * len(value) if many else list(inner)
    return tuple(_value(one, each, (*place, index)) for index, (one, each) in enumerate(zip(kinds, value, strict=True)))


def _scalar(kind: Any, value: Any, place: Place) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        whole = kind is int and isinstance(value, float) and value.is_integer()
        raise _wrong(kind, value, place, f"write {int(value):_}" if whole else "")
    return value


def _wrong(kind: Any, value: Any, place: Place, hint: str = "") -> Wrong:
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return Wrong(place, f"{_dotted(place)} is {shown}; expected {expected(kind)}", hint)


def expected(kind: Any) -> str:
    """A type of a field in the words of someone who writes TOML."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) or origin is dict:
        return "a table"
    if origin in (typing.Union, types.UnionType):
        return f"{expected(inner[0])}, or false for none"
    if origin is Literal:
        return "one of " + ", ".join(f'"{option}"' for option in inner)
    if origin is tuple:
        if inner[-1] is not Ellipsis:
            return f"a list of {len(inner)} values, each {expected(inner[0])}"
        if dataclasses.is_dataclass(inner[0]):
            return "a list of tables"
        return f"a list, each of it {expected(inner[0])}"
    words: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a string in quotes"}
    return words.get(kind, str(kind))


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))
