"""Reading a ``config.json`` field by field: each value has the type it should have, or an error names it.

    >>> fields = Fields({"vocab_size": "many"}, where="config.json")
    >>> fields.whole("vocab_size")
    Traceback (most recent call last):
    deepwell.errors.ModelConfigError: config.json: vocab_size is 'many'; it is a whole number

A field that is null counts as absent: transformers writes null where a model has no such part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar, overload

from deepwell.errors import ModelConfigError

T = TypeVar("T")


class _Required:
    """Stands for: there is no default, the field must be given."""


REQUIRED = _Required()


class Fields:
    """The fields of one JSON object, and where they stand for messages.

    Raises:
        ModelConfigError: ``mapping`` is no JSON object.
    """

    def __init__(self, mapping: Mapping[str, Any], *, where: str, prefix: str = "") -> None:
        self.where = where
        self.prefix = prefix
        if not isinstance(mapping, Mapping):
            raise ModelConfigError(
                f"{where}: {prefix.rstrip('.') or 'the content'} is {mapping!r}; it is a JSON object"
            )
        self.mapping = mapping

    def __contains__(self, name: str) -> bool:
        return self.mapping.get(name) is not None

    def wrong(self, name: str, rule: str) -> NoReturn:
        """Raise the error of a field whose value breaks a rule."""
        raise ModelConfigError(f"{self.where}: {self.prefix}{name} is {self.mapping.get(name)!r}; {rule}")

    def clash(self, one: str, other: str, why: str) -> NoReturn:
        """Raise the error of two fields that contradict each other."""
        values = f"{one} ({self.mapping.get(one)!r}) and {other} ({self.mapping.get(other)!r})"
        raise ModelConfigError(f"{self.where}: {self.prefix}{values} disagree: {why}")

    @overload
    def whole(self, name: str) -> int: ...
    @overload
    def whole(self, name: str, default: int | _Required) -> int: ...
    @overload
    def whole(self, name: str, default: int | None) -> int | None: ...

    def whole(self, name: str, default: int | _Required | None = REQUIRED) -> int | None:
        """A whole number; ``default`` where the field is absent."""
        value = self._value(name, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            self.wrong(name, "it is a whole number")
        return value

    @overload
    def number(self, name: str) -> float: ...
    @overload
    def number(self, name: str, default: float | _Required) -> float: ...
    @overload
    def number(self, name: str, default: float | None) -> float | None: ...

    def number(self, name: str, default: float | _Required | None = REQUIRED) -> float | None:
        """A finite number; ``default`` where the field is absent."""
        value = self._value(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.wrong(name, "it is a number")
        return float(value)

    def flag(self, name: str, default: bool | _Required = REQUIRED) -> bool:
        """True or false; ``default`` where the field is absent."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            self.wrong(name, "it is true or false")
        return value

    def text(self, name: str, default: str | _Required = REQUIRED) -> str:
        """A string; ``default`` where the field is absent."""
        value = self._value(name, default)
        if not isinstance(value, str):
            self.wrong(name, "it is a string")
        return value

    def tokens(self, name: str) -> tuple[int, ...]:
        """Token ids: one, a list of them, or none at all."""
        value = self.mapping.get(name)
        several = value if isinstance(value, list | tuple) else [] if value is None else [value]
        if any(isinstance(token, bool) or not isinstance(token, int) for token in several):
            self.wrong(name, "it is a token id or a list of them")
        return tuple(several)

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """A list of finite numbers, or None."""
        value = self.mapping.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or any(
            isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one) for one in value
        ):
            self.wrong(name, "it is a list of numbers")
        return tuple(float(one) for one in value)

    def inner(self, name: str) -> Fields | None:
        """The fields of an object within this one, or None."""
        value = self.mapping.get(name)
        return None if value is None else Fields(value, where=self.where, prefix=f"{self.prefix}{name}.")

    def only(self, name: str, *allowed: Any, why: str) -> None:
        """The field, where it is given, has one of the values that this network can follow."""
        if name in self and self.mapping[name] not in allowed:
            self.wrong(name, why)

    def _value(self, name: str, default: Any) -> Any:
        value = self.mapping.get(name)
        if value is not None:
            return value
        if isinstance(default, _Required):
            raise ModelConfigError(f"{self.where}: {self.prefix}{name} is missing")
        return default
