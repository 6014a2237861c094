"""A folder that appears whole or not at all.

Everything is written into a hidden folder beside the one that is wanted. When it is complete, the old folder (if there
is one) steps aside, the new one takes its name, and the old one is deleted. What is there before is only ever replaced
if it is a checkpoint and nothing else: a folder with anything that a checkpoint does not have is refused by name.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepwell.errors import ModelFileError, UsageError

_PARTS_OF_A_CHECKPOINT = re.compile(
    r"(generation_)?config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|tokenizer(_config)?\.json|"
    r"special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|tokenizer\.model|chat_template\.(jinja|json)"
)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``folder`` when the block ends without an error.

    Raises:
        UsageError: ``folder`` is a file, or holds something that is not part of a checkpoint.
        ModelFileError: The disk is full, or something cannot be written or moved.
    """
    folder = folder.expanduser().resolve()
    _refuse_strangers(folder)
    place = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        place.mkdir(parents=True)
        yield place
        sync_folder(place)
        _swap(place, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise ModelFileError(
            f"{folder} could not be written ({error.strerror or error}); what was there before is unchanged",
            hint="check the free space and the permissions",
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _refuse_strangers(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file", hint="name a folder for the model")
    names = sorted(path.name for path in folder.iterdir())
    strangers = [name for name in names if not _PARTS_OF_A_CHECKPOINT.fullmatch(name)]
    if strangers or (names and "config.json" not in names):
        what = f"holds {strangers[0]}, which is no part of a model" if strangers else "is not empty and holds no model"
        raise UsageError(
            f"{folder} {what}, so it is not replaced", hint="name a new folder, or empty this one yourself"
        )


def _swap(place: Path, folder: Path) -> None:
    """Two renames: no portable call does it in one. If the second fails, the first is undone."""
    if not folder.exists():
        place.rename(folder)
        return
    old = place.with_suffix(".old")
    folder.rename(old)
    try:
        place.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
