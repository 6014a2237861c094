"""Files of a Hugging Face repository at a revision, over plain HTTPS.

The environment says how, with the variables that every tool of that world reads: ``HF_ENDPOINT`` another server with
the same addresses (a mirror), ``HF_TOKEN`` (or the file that ``hf auth login`` leaves) for repositories with terms to
accept, ``HF_HUB_OFFLINE=1`` no network, ``HF_HOME`` and ``HF_HUB_CACHE`` where that world keeps what it already
downloaded. What is in that cache at the right revision is copied, not downloaded again.

One request lists the repository at the revision: every file's size and hash (SHA-256 for large ones, git's own hash for
small ones). All of them are checked, so even a source without pinned hashes cannot arrive damaged.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deepwell.errors import ModelSourceError
from deepwell.models.catalogue import HubPart
from deepwell.models.sources.folder import copy
from deepwell.models.sources.job import Job
from deepwell.models.sources.patterns import matches
from deepwell.models.transfer import Expected, download, open_client

if TYPE_CHECKING:
    import httpx

ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit: what each file must be."""

    commit: str
    files: dict[str, Expected]


def fetch(part: HubPart, job: Job) -> dict[str, Any]:
    """Copy the files from the hub's cache on this machine, or download them, continuing an earlier attempt."""
    cached = _from_cache(part, job)
    if cached:
        return cached
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ModelSourceError(
            "HF_HUB_OFFLINE is set: the hub is not asked", hint="unset it, or pull with --from FOLDER"
        )
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or ENDPOINT
    headers = {"authorization": f"Bearer {token}"} if (token := _token()) else {}
    with open_client() as client:
        listing = _list(client, endpoint, part, headers)
        wanted = {name: _pinned(part, name, listing.files[name]) for name in choose(part, listing.files)}
        parts = job.parts / listing.commit
        job.need_room(sum(expected.size for expected in wanted.values()), kept=parts)
        for name, expected in wanted.items():
            url = f"{endpoint}/{part.repo}/resolve/{listing.commit}/{quote(name)}"
            report = job.report(f"fetching {name} of {part.repo}")
            download(client, url, parts / name, expected=expected, headers=headers, report=report)
        # Only now, so that a pull that breaks off between two files keeps the first one.
        for name in wanted:
            (parts / name).replace(job.staged(name))
    return {"repo": part.repo, "revision": part.revision, "commit": listing.commit, "endpoint": endpoint}


def choose(part: HubPart, names: Iterable[str]) -> list[str]:
    """The files to take. Raises ``ModelSourceError`` when one that is needed is not among them."""
    present = sorted(names)
    for pattern in part.files:
        if not any(matches(name, pattern) for name in present):
            raise ModelSourceError(
                f"{part.repo} at {part.revision} holds no {pattern}", hint="name another revision in the catalogue"
            )
    patterns = (*part.files, *part.optional)
    return [name for name in present if any(matches(name, pattern) for pattern in patterns)]


def _list(client: httpx.Client, endpoint: str, part: HubPart, headers: dict[str, str]) -> Listing:
    import httpx

    url = f"{endpoint}/api/models/{part.repo}/revision/{quote(part.revision, safe='')}"
    try:
        response = client.get(url, params={"blobs": "true"}, headers=headers)
    except httpx.HTTPError as error:
        raise ModelSourceError(
            f"the hub at {endpoint} cannot be reached: {error}",
            hint="check the network or HF_ENDPOINT, or pull with --from FOLDER",
        ) from error
    if response.status_code in (401, 403, 404):
        # The hub answers 401 for what does not exist as well as for what it will not show.
        raise ModelSourceError(
            f"the hub answered {response.status_code} for {part.repo} at {part.revision}",
            hint=f"see {endpoint}/{part.repo}: it may have terms to accept, then set HF_TOKEN; or the revision is gone",
        )
    try:
        response.raise_for_status()
        data = response.json()
        files = {entry["rfilename"]: _expected(entry) for entry in data["siblings"]}
        commit = str(data["sha"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelSourceError(
            f"{url} did not answer as a hub does ({response.status_code}): {error!r}", hint="check HF_ENDPOINT"
        ) from error
    if not re.fullmatch(r"[\w.-]+", commit):
        raise ModelSourceError(f"{url} names no commit", hint="check HF_ENDPOINT")
    safe = {name: entry for name, entry in files.items() if ".." not in name.split("/") and not name.startswith("/")}
    return Listing(commit, safe)


def _expected(entry: dict[str, Any]) -> Expected:
    large = entry.get("lfs") or {}
    return Expected(
        int(large.get("size") or entry.get("size") or 0),
        str(large.get("sha256") or ""),
        "" if large else str(entry.get("blobId") or ""),
    )


def _pinned(part: HubPart, name: str, announced: Expected) -> Expected:
    pin = part.sha256.get(name)
    if pin is None:
        return announced
    if announced.sha256 and announced.sha256 != pin:
        raise ModelSourceError(
            f"{name} of {part.repo} at {part.revision} is not the file that the catalogue knows "
            f"(SHA-256 {announced.sha256}, expected {pin})",
            hint="do not use it before you know why it changed",
        )
    return Expected(announced.size, pin)


def _token() -> str:
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(variable, "").strip():
            return token
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return ""
    file = Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token")
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _home() -> Path:
    named = os.environ.get("HF_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named).expanduser() if named else cache / "huggingface"


def _from_cache(part: HubPart, job: Job) -> dict[str, Any] | None:
    """Copy from the cache that the hub's own tools keep, when it holds the revision with all that is needed."""
    cache = Path(os.environ.get("HF_HUB_CACHE") or _home() / "hub").expanduser()
    repo = cache / f"models--{part.repo.replace('/', '--')}"
    commit = part.revision
    with contextlib.suppress(OSError, UnicodeDecodeError):
        commit = (repo / "refs" / part.revision).read_text(encoding="utf-8").strip() or commit
    snapshot = repo / "snapshots" / commit
    if not snapshot.is_dir():
        return None
    try:
        names = choose(part, (path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()))
    except ModelSourceError:
        return None
    job.need_room(sum((snapshot / name).stat().st_size for name in names))
    for name in names:
        source, target = snapshot / name, job.staged(name)
        copy(source, target, job, f"copying {name} from the hub's cache")
        # In that cache the real file is named by its hash.
        blob = source.resolve().name
        expected = Expected(
            sha256=part.sha256.get(name) or (blob if re.fullmatch(r"[0-9a-f]{64}", blob) else ""),
            git_sha1=blob if re.fullmatch(r"[0-9a-f]{40}", blob) else "",
        )
        if expected.problem(target):
            return None
    return {"repo": part.repo, "revision": part.revision, "commit": commit, "endpoint": "cache"}
