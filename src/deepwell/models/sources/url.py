"""One file at a fixed address, with a known hash."""

from __future__ import annotations

from typing import Any

from deepwell.models.catalogue import UrlPart
from deepwell.models.sources.job import Job
from deepwell.models.transfer import Expected, download, open_client


def fetch(part: UrlPart, job: Job) -> dict[str, Any]:
    """Download the file, continuing an earlier attempt."""
    kept = job.parts / part.sha256
    job.need_room(part.size, kept=kept.with_name(kept.name + ".part"))
    with open_client() as client:
        report = job.report(f"fetching {part.file}")
        download(client, part.url, kept, expected=Expected(part.size, part.sha256), report=report)
    kept.replace(job.staged(part.file))
    return {"url": part.url, "sha256": part.sha256}
