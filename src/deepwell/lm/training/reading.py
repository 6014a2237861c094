"""Recipes as TOML: reading them with the line of what is wrong, and writing them back.

    >>> read("pretrain-debug", sets=["batch.steps=20"]).recipe.batch.steps
    20

Every section of ``Recipe`` is a table of the file and every field a key; what a file leaves out has the field's
default. A name without a suffix is a recipe that comes with Deepwell (``shipped``), anything else a file.

- **Changes on the command line**: ``data.sources.0.path=my.txt``. The value is TOML if it can be read as that, else a
  string; an index picks an element of an array. One of ``batch.steps``, ``tokens`` and ``epochs`` replaces what the
  file says of the other two, and ``model.start`` and ``model.named`` each other.
- **Paths** of data are relative to the file's folder; those of a recipe that comes with Deepwell to the folder in which
  one stands. ``$NAME`` in them is an environment variable; ``$DEEPWELL_DATA`` has a default (``deepwell.paths``).
- **No value**: TOML has no null, so ``false`` stands for it where a field of ``model.config`` may be empty
  (``rope_scaling = false``).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepwell.errors import ModelConfigError, RecipeError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.training.building import Wrong, build, build_values
from deepwell.lm.training.recipe import Recipe
from deepwell.lm.training.toml_lines import lines_of
from deepwell.lm.training.toml_writing import to_dict, to_toml
from deepwell.paths import default_data

__all__ = ["Read", "from_dict", "read", "shipped", "to_dict", "to_toml"]

Place = tuple[str | int, ...]
_ALTERNATIVES = (("batch", ("steps", "tokens", "epochs")), ("model", ("start", "named")))


@dataclass(frozen=True, slots=True)
class Read:
    """A recipe that was read."""

    recipe: Recipe
    base: Path
    """The folder that relative paths of data start from."""
    name: str
    """The file's name without its suffix."""


@dataclass(frozen=True)
class _Origins:
    """Where the values of a recipe stand, for messages."""

    file: str
    lines: Mapping[Place, int] = field(default_factory=dict)
    sets: Mapping[Place, str] = field(default_factory=dict)

    def of(self, place: Place) -> str:
        """``FILE, line 3``, or ``--set batch.steps=0``, of a value or of the nearest thing around it."""
        for known, text in self.sets.items():
            if place[: len(known)] == known:
                return f"--set {text}"
        for end in range(len(place), 0, -1):
            around = place[:end]
            for known, text in self.sets.items():
                if around in (known[:end], _without_indices(known)[:end]):
                    return f"--set {text}"
            for known, line in self.lines.items():
                # Messages of whole sections name data.sources.path without saying which source: the first is meant.
                if around in (known, _without_indices(known)):
                    return f"{self.file}, line {line}"
        return self.file


def _without_indices(place: Place) -> Place:
    return tuple(part for part in place if isinstance(part, str))


def read(name_or_path: str | Path, sets: Sequence[str] = ()) -> Read:
    """Read a recipe: one that comes with Deepwell by its name, or a file.

    Args:
        name_or_path: ``pretrain-tiny``, or a path of a TOML file.
        sets: Changes, as ``section.key=value``.

    Raises:
        RecipeError: No such recipe; not TOML; a key, type or value that is wrong. Names file, line, key and what is
            expected, or the change that is to blame.
    """
    text, file, base, name = _find(name_or_path)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{file} is not valid TOML: {error}", hint='strings need quotes: name = "adamw"') from error
    applied = {_apply(content, change): change for change in sets}
    origins = _Origins(file, lines_of(text), applied)
    _expand(content, origins)
    return Read(_make(content, origins), base, name)


def shipped() -> list[tuple[str, str]]:
    """Name and ``about`` of every recipe that comes with Deepwell, by name."""
    found = []
    for entry in importlib.resources.files("deepwell.recipes").iterdir():
        if entry.name.endswith(".toml"):
            about = tomllib.loads(entry.read_text(encoding="utf-8")).get("about", "")
            found.append((entry.name.removesuffix(".toml"), about))
    return sorted(found)


def from_dict(content: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values, such as ``to_dict`` gives; ``where`` begins every message.

    Raises:
        RecipeError: As of ``read``, without lines.
    """
    return _make(content, _Origins(where))


# ---- finding ----


def _find(name_or_path: str | Path) -> tuple[str, str, Path, str]:
    """Text, what messages call it, base and name."""
    path = Path(name_or_path).expanduser()
    names = [name for name, _ in shipped()]
    if isinstance(name_or_path, str) and name_or_path in names:
        place = importlib.resources.files("deepwell.recipes") / f"{name_or_path}.toml"
        return place.read_text(encoding="utf-8"), f"{name_or_path}.toml", Path.cwd(), name_or_path
    try:
        return path.read_text(encoding="utf-8"), str(name_or_path), path.absolute().parent, path.stem
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name_or_path} is not UTF-8 text, byte {error.start}") from error
    except IsADirectoryError as error:
        raise RecipeError(f"{name_or_path} is a folder", hint="name the TOML file in it") from error
    except OSError as error:
        near = difflib.get_close_matches(str(name_or_path), names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(
            f"there is no recipe {str(name_or_path)!r}: neither a file nor one that comes with Deepwell",
            hint=f"{hint}those are {', '.join(names)}",
        ) from error


# ---- changes ----


def _apply(content: dict[str, Any], change: str) -> Place:
    """Carry out one change and return its place."""
    key, equals, raw = change.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {change}: a change is written section.key=value", hint="for example batch.steps=100")
    place: list[str | int] = []
    spot: Any = content
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        step = _step(spot, part, change, ".".join(parts[:depth]))
        place.append(step)
        if last:
            spot[step] = _toml_value(raw.strip())
        elif isinstance(spot, dict):
            spot = spot.setdefault(step, {})
        else:
            spot = spot[step]
    for section, names in _ALTERNATIVES:
        if len(place) == 2 and place[0] == section and place[1] in names:
            for other in names:
                if other != place[1]:
                    content[section].pop(other, None)
    return tuple(place)


def _step(spot: Any, part: str, change: str, so_far: str) -> str | int:
    if isinstance(spot, dict):
        return part
    if isinstance(spot, list):
        if part.isdigit() and int(part) < len(spot):
            return int(part)
        known = f"it has 0 to {len(spot) - 1}" if spot else "it is empty"
        raise RecipeError(f"--set {change}: {so_far} is a list, and {part!r} is none of its places", hint=known)
    raise RecipeError(f"--set {change}: {so_far} is a value, not a table")


def _toml_value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _expand(content: dict[str, Any], origins: _Origins) -> None:
    """Put environment variables into paths."""

    def expand(table: Any, place: Place) -> None:
        key = place[-1]
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = re.sub(
                r"\$(\w+)|\$\{(\w+)\}", lambda match: _variable(match[1] or match[2], place, origins), table[key]
            )

    for section in ("model", "tokenizer"):
        expand(content.get(section), (section, "start"))
    data = content.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    for index, source in enumerate(sources if isinstance(sources, list) else ()):
        expand(source, ("data", "sources", index, "path"))


def _variable(name: str, place: Place, origins: _Origins) -> str:
    if name == "DEEPWELL_DATA" and (folder := default_data()) is not None:
        return str(folder)
    value = os.environ.get(name)
    if not value:
        raise RecipeError(
            f"{origins.of(place)}: {_dotted(place)} names ${name}, which is not set",
            hint=f"export {name}=FOLDER, or give the path itself: --set {_dotted(place)}=FILE",
        )
    return value


# ---- making ----


def _make(content: Mapping[str, Any], origins: _Origins) -> Recipe:
    content = dict(content)
    try:
        network = content.get("model", {})
        if isinstance(network, Mapping) and isinstance(network.get("config"), Mapping):
            values = build_values(ModelConfig, network["config"], ("model", "config"))
            content["model"] = {**network, "config": values}
        recipe = build(Recipe, content, ())
    except Wrong as wrong:
        raise RecipeError(f"{origins.of(wrong.place)}: {wrong.problem}", hint=wrong.hint) from wrong
    _check_network(recipe, origins)
    return recipe


def _check_network(recipe: Recipe, origins: _Origins) -> None:
    """Contradictions in the network's shape are found now, with their line, and not when it is made."""
    section = recipe.model
    if section.start:
        return
    # The tokenizer, not known yet, gives its control tokens and, unless the recipe does, the vocabulary.
    controls = {"bos_token_id": None, "eos_token_id": (), "pad_token_id": None}
    fields = {"vocab_size": recipe.tokenizer.vocab_size, **section.config, **controls}
    if missing := [] if section.named else _missing(fields):
        raise RecipeError(
            f"{origins.of(('model', 'config'))}: model.config lacks {', '.join(missing)}",
            hint="or set model.named, and in model.config only what differs",
        )
    try:
        config = ModelConfig.named(section.named).replace(**fields) if section.named else ModelConfig(**fields)
    except ModelConfigError as error:
        named = [name for name in re.findall(r"\w+", error.message) if name in section.config]
        place: Place = ("model", "config", named[0]) if named else ("model", "named")
        if section.named and "shape is called" in error.message:
            place = ("model", "named")
        raise RecipeError(f"{origins.of(place)}: {_dotted(place[:2])}: {error.message}", hint=error.hint) from error
    length, positions = recipe.data.sequence_length, config.max_position_embeddings
    if length > positions:
        raise RecipeError(
            f"{origins.of(('data', 'sequence_length'))}: data.sequence_length is {length}, and the network is made for "
            f"texts of {positions} tokens",
            hint=f"set model.config.max_position_embeddings = {length}",
        )


def _missing(fields: Mapping[str, Any]) -> list[str]:
    return [
        known.name for known in dataclasses.fields(ModelConfig)
        if known.default is dataclasses.MISSING and known.name not in fields
    ]  # fmt: skip


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))
