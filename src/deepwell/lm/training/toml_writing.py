"""Recipes written down: all of one as plain values for JSON, or as TOML what differs from the defaults.

What is written here ``reading`` reads back to an equal recipe.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from deepwell.lm.training.recipe import Recipe


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """All of a recipe as plain values that JSON holds; ``from_dict`` gives back an equal one."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(recipe))
    return plain


def to_toml(recipe: Recipe) -> str:
    """The file that says what differs from the defaults; reading it gives an equal recipe."""
    lines: list[str] = []
    _write_table(lines, (), _differences(recipe))
    return "\n".join(lines).strip() + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value


def _differences(record: Any) -> dict[str, Any]:
    """The fields of a record that are not at their default; sections as far as they differ themselves."""
    found: dict[str, Any] = {}
    for known in dataclasses.fields(record):
        value = getattr(record, known.name)
        default = known.default_factory() if known.default_factory is not dataclasses.MISSING else known.default
        if value == default:
            continue
        if dataclasses.is_dataclass(value):
            found[known.name] = _differences(value)
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            found[known.name] = [_differences(element) for element in value]
        else:
            found[known.name] = _plain(_undone(value))
    return found


def _undone(value: Any) -> Any:
    """Records inside of ``model.config`` (rope_scaling) as tables."""
    if isinstance(value, Mapping):
        return {key: _differences(inner) if dataclasses.is_dataclass(inner) else inner for key, inner in value.items()}
    return value


def _write_table(lines: list[str], place: tuple[str, ...], table: Mapping[str, Any]) -> None:
    def is_many(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and isinstance(value[0], dict)

    for key, value in table.items():
        if not isinstance(value, dict) and not is_many(value):
            lines.append(f"{_written_key(key)} = {_written(value)}")
    for key, value in table.items():
        inner = (*place, key)
        header = ".".join(map(_written_key, inner))
        if isinstance(value, dict):
            lines += ["", f"[{header}]"]
            _write_table(lines, inner, value)
        elif is_many(value):
            for element in value:
                lines += ["", f"[[{header}]]"]
                _write_table(lines, inner, element)


def _written_key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else _written(key)


def _written(value: Any) -> str:
    if value is None:
        return "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    # JSON's strings, numbers and truth values are TOML's, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
