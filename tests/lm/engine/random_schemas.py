"""Random JSON schemas of every kind that an answer can be held to, all of them with an end.

Strings and arrays are bounded, because a random network would write an open one up to any limit.
"""

import random
from typing import Any

_KEYS = ["name", "größe", "x y", 'quo"te', "名前", "😀", "_id", "a/b", "back\\slash", "é"]
_CONSTANTS: list[Any] = ["red", "", 3, None, True, 2.5, ["a", 1], {"k": "v", "z": []}, "grün", "a\nb", -7, "漢字"]
_PATTERNS = [
    "^[a-z]{2,5}[0-9]$", "^(yes|no|perhaps)$", "^[0-9]{4}-[0-9]{2}$", "^[äöü]{1,3}x?$", '^"[^"]{0,3}"$',
    r"^\d{1,3}(\.\d{2})?$", r"^[^\s\\]{1,4}$", r"^[A-Z][a-z]{0,3} [A-Z]\.$",
]  # fmt: skip
_FORMATS = ["date", "time", "date-time", "uuid", "ipv4"]


def schema(seed: int) -> dict[str, Any]:
    """A schema; the same for the same seed."""
    rng = random.Random(seed)
    made = _any(rng, 0)
    if rng.random() < 0.15:
        return {"$defs": {"part": _any(rng, 2)}, **_list(rng, {"$ref": "#/$defs/part"})}
    if rng.random() < 0.1:
        # A tree: it refers to itself, below a place that may be left out.
        twigs = {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}
        return _object(rng, {"label": _string(rng), "twigs": twigs}, ["label"])
    return made


def _any(rng: random.Random, depth: int) -> dict[str, Any]:
    branches = [_nested, _nested, _array, _tuple, _any_of, _map, _all_of] if depth < 3 else []
    return rng.choice([*branches, *_LEAVES])(rng, depth)


def _nested(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_KEYS, rng.randint(0, 4))
    return _object(rng, {name: _any(rng, depth + 1) for name in names}, rng.sample(names, rng.randint(0, len(names))))


def _object(rng: random.Random, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _map(rng: random.Random, depth: int) -> dict[str, Any]:
    """Fixed names, and others of any spelling by a pattern."""
    others = {"^[a-c]{1,2}$": _any(rng, 3)}
    return {"type": "object", "patternProperties": others, "additionalProperties": False, "maxProperties": 2}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    return _list(rng, _any(rng, depth + 1))


def _list(rng: random.Random, items: dict[str, Any]) -> dict[str, Any]:
    least = rng.randint(0, 2)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + rng.randint(0, 2)}


def _tuple(rng: random.Random, depth: int) -> dict[str, Any]:
    first = [_any(rng, depth + 1) for _ in range(rng.randint(1, 2))]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_any(rng, depth + 1) for _ in range(rng.randint(1, 3))]}


def _all_of(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-30, 30)
    return {"allOf": [{"type": "integer", "minimum": low}, {"maximum": low + rng.randint(0, 40)}]}


def _string(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = rng.random()
    if kind < 0.4:
        return {"type": "string", "pattern": rng.choice(_PATTERNS)}
    if kind < 0.6:
        return {"type": "string", "format": rng.choice(_FORMATS)}
    least = rng.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 4)}


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-500, 500)
    bounds = {rng.choice(["minimum", "exclusiveMinimum"]): low, "maximum": low + rng.randint(1, 3000)}
    return {"type": "integer", **bounds}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.2:
        return {"type": rng.choice(["number", "integer"])}
    if rng.random() < 0.3:
        return {"type": "integer", "multipleOf": rng.choice([2, 5, 10]), "minimum": 0, "maximum": 400}
    low = rng.choice([-2.5, 0, 0.125, -1000])
    return {"type": "number", "minimum": low, rng.choice(["maximum", "exclusiveMaximum"]): low + rng.choice([1, 7.25])}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": rng.sample(_CONSTANTS, rng.randint(1, 5))}


def _const(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"const": rng.choice(_CONSTANTS)}


def _simple(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = rng.sample(["boolean", "null"], rng.randint(1, 2))
    return {"type": kinds if len(kinds) > 1 else kinds[0]}


_LEAVES = [_string, _string, _integer, _number, _enum, _const, _simple]
