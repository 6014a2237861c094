"""JSON schemas as llguidance is given them.

One thing is put right. In a pattern, a class of characters that leaves out the quotation mark or the backslash but
holds every control character, as ``[^"]`` does, still lets the two through once they are escaped, as JSON must escape
them (llguidance 1.9: its JSON quoting takes such a class for "everything"). Such a class is made to leave out U+0001 as
well, and is then read as it stands: the answers satisfy the pattern, and U+0001 is no loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose values are schemas by name."""

_DATA = ("const", "enum", "default", "examples", "x-guidance")
"""Keywords whose values are no schemas."""


def sound(schema: Any) -> Any:
    """The schema with its patterns put right; what is no schema stays as it is."""
    if isinstance(schema, list | tuple):
        return [sound(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _SCHEMAS and isinstance(value, Mapping):
            patterns = key == "patternProperties"
            made[key] = {closed(name) if patterns else name: sound(one) for name, one in value.items()}
        elif key == "pattern" and isinstance(value, str):
            made[key] = closed(value)
        else:
            made[key] = value if key in _DATA else sound(value)
    return made


def closed(pattern: str) -> str:
    r"""A pattern whose negated classes leave out U+0001 as well: ``[^"]`` becomes ``[^\x01"]``."""
    made, place = [], 0
    while place < len(pattern):
        letter = pattern[place]
        if letter == "\\":
            made.append(pattern[place : place + 2])
            place += 2
        elif pattern.startswith("[^", place):
            # A closing bracket that stands first is a letter of the class.
            first = "[^]" if pattern.startswith("[^]", place) else "[^"
            made.append(first + "\\x01")
            place += len(first)
        else:
            made.append(letter)
            place += 1
    return "".join(made)
