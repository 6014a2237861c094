"""From a name or a folder to an encoder, through the entry points of the group ``deepwell.encoders``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepwell.errors import UsageError
from deepwell.library.protocols import ImageEncoder, TextEncoder

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from deepwell.models import ModelInfo

GROUP = "deepwell.encoders"

REMOTE = "openai:"


def open_text(name_or_path: str | Path, *, dim: int | None = None) -> TextEncoder:
    """The text encoder of that name, folder or ``openai:MODEL@BASE_URL``.

    Args:
        name_or_path: As in ``deepwell models list``, or a checkpoint's folder.
        dim: Keep only this many leading numbers of each vector; for models trained for it (EmbeddingGemma).

    Raises:
        MissingModelError: It is not on this machine; the hint names the command that fetches it.
        MissingExtraError: Its family needs a package that is not installed.
        UsageError: There is no such name, or it encodes no words.
    """
    if isinstance(name_or_path, str) and name_or_path.startswith(REMOTE):
        from deepwell.library.encoders.remote import RemoteEncoder

        return RemoteEncoder.named(name_or_path, dim=dim)
    encoder = _open(name_or_path, dim)
    if not isinstance(encoder, TextEncoder):
        raise UsageError(f"{name_or_path} encodes no words", hint="Use a text encoder: deepwell models list")
    return encoder


def open_image(name_or_path: str | Path) -> ImageEncoder:
    """The image encoder of that name or folder. Raises as ``open_text`` does."""
    encoder = _open(name_or_path, None)
    if not isinstance(encoder, ImageEncoder):
        raise UsageError(f"{name_or_path} encodes no pictures", hint="Use an image encoder: deepwell models list")
    return encoder


def _open(name_or_path: str | Path, dim: int | None) -> Any:
    folder, info = _locate(name_or_path)
    family = info.family if info is not None else _family(folder)
    doors = _entry_points()
    if family not in doors:
        known = ", ".join(sorted(doors))
        raise UsageError(
            f"no encoder is known for {name_or_path} (family {family!r})", hint=f"Known families: {known}."
        )
    load: Callable[..., Any] = doors[family].load()
    return load(folder, info) if dim is None else load(folder, info, dim=dim)


def _locate(name_or_path: str | Path) -> tuple[Path, ModelInfo | None]:
    """The folder, and what the catalogue says of it if its name stands there."""
    from deepwell import models
    from deepwell.models import catalogue

    # A Path is a path even when it has one part; models.folder would take such a string for a name.
    named = str(name_or_path.absolute()) if isinstance(name_or_path, Path) else name_or_path
    folder = models.folder(named)
    return folder, catalogue.load().models.get(folder.name)


def _family(folder: Path) -> str:
    """The family of a checkpoint that the catalogue does not know: from its ``config.json``."""
    from deepwell.library.encoders.recipe import read_json

    stated = str(read_json(folder / "config.json").get("model_type", "")).replace("_", "-")
    if not stated:
        raise UsageError(f"{folder} is not a checkpoint: its config.json names no model_type")
    # Whatever transformers can load and sentence-transformers' files describe needs no code of ours.
    return stated if stated in _entry_points() else "transformers"


@functools.cache
def _entry_points() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {door.name: door for door in entry_points(group=GROUP)}
