"""Models by name: what there is, where it is on this machine, and how to get it.

    from deepwell import models

    models.folder("all-minilm-l6-v2")     # Path, or MissingModelError that says: deepwell models pull all-minilm-l6-v2
    models.pull("starter")                # the only function here that ever touches the network

``catalogue`` knows the names, ``shelf`` the folder of models, ``pulling`` fills it from ``sources``. Asking where a
model is must cost next to nothing, so what only a pull needs (HTTP, locks) is imported by the pull.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deepwell.models.catalogue import ModelInfo
from deepwell.models.shelf import (
    Entry,
    FileRecord,
    Manifest,
    Verification,
    find,
    folder,
    is_present,
    listing,
    manifest,
    verify,
)

if TYPE_CHECKING:
    from deepwell.models.progress import Progress
    from deepwell.models.pulling import Pulled

__all__ = [
    "Entry",
    "FileRecord",
    "Manifest",
    "ModelInfo",
    "Verification",
    "find",
    "folder",
    "is_present",
    "listing",
    "manifest",
    "pull",
    "remove",
    "verify",
]


def pull(
    name: str, *, progress: Progress | None = None, force: bool = False, source: str | Path | None = None
) -> tuple[Pulled, ...]:
    """Fetch a model, or every model of a set, unless it is here and whole. See ``pulling.pull``."""
    from deepwell.models import pulling

    return pulling.pull(name, progress=progress, force=force, source=source)


def remove(name: str) -> int:
    """Delete a pulled model; returns the bytes freed. See ``pulling.remove``."""
    from deepwell.models import pulling

    return pulling.remove(name)
