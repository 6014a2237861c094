"""One file over HTTP, resumed where it broke off, and believed only when its hash is right.

``download`` writes to ``NAME.part`` beside the file it is asked for and renames it at the end, so a file that bears its
final name is complete. A part that is left by a kill, a broken line or a full disk is continued by the next call with a
``Range`` request; when the server cannot do that, or what was put together has the wrong hash, it starts again at zero.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepwell.errors import ModelSourceError
from deepwell.models.shelf import sha256_of

if TYPE_CHECKING:
    import httpx

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds to wait after the first, second ... failure in a row; one more gives up. Progress starts the row again."""

Report = Callable[[int, int], None]
"""Called with the bytes there are and the bytes there will be (0 when not known)."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file must be. ``git_sha1`` is git's name for a blob, the only hash that a hub has of its small files."""

    size: int = 0
    sha256: str = ""
    git_sha1: str = ""

    def problem(self, path: Path) -> str:
        """What is wrong with a file, empty when nothing is."""
        size = path.stat().st_size
        if self.size and size != self.size:
            return f"{size} bytes arrived where {self.size} were expected"
        if self.sha256 and (found := sha256_of(path)) != self.sha256:
            return f"its SHA-256 is {found} and should be {self.sha256}"
        if self.git_sha1 and not self.sha256 and (found := git_sha1_of(path)) != self.git_sha1:
            return f"its git hash is {found} and should be {self.git_sha1}"
        return ""


def git_sha1_of(path: Path) -> str:
    """The name that git gives to a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_client() -> httpx.Client:
    """An HTTP client with the proxies and certificates that the environment names."""
    import httpx

    # httpx reads SSL_CERT_FILE by itself; people behind a company's proxy more often have set one of the other two.
    bundle = "" if os.environ.get("SSL_CERT_FILE") else os.environ.get("REQUESTS_CA_BUNDLE", "")
    bundle = bundle or ("" if os.environ.get("SSL_CERT_FILE") else os.environ.get("CURL_CA_BUNDLE", ""))
    verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=bundle) if Path(bundle).is_file() else True
    timeout = httpx.Timeout(30.0, connect=15.0)
    return httpx.Client(follow_redirects=True, timeout=timeout, verify=verify, headers={"user-agent": "deepwell"})


def download(
    client: httpx.Client,
    url: str,
    target: Path,
    *,
    expected: Expected,
    headers: Mapping[str, str] | None = None,
    report: Report | None = None,
) -> None:
    """Fetch one file to ``target``, continuing an earlier attempt.

    Raises:
        ModelSourceError: The address cannot be reached or refuses, or what arrives is not what was expected.
    """
    if target.exists() and not expected.problem(target):
        return
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists() and part.stat().st_size > 0
    while True:
        _fill(_Request(client, url, dict(headers or {}), expected, report or _no_report), part)
        problem = expected.problem(part)
        if not problem:
            part.replace(target)
            return
        part.unlink()
        if not resumed:
            raise ModelSourceError(
                f"what {_host(url)} sent as {target.name} is not what was promised: {problem}",
                hint="try again later; if it stays so, the file was changed there and should not be trusted",
            )
        # Half of one version and half of another: only a fresh start can tell whether the server is to blame.
        resumed = False


@dataclass(frozen=True, slots=True)
class _Request:
    client: httpx.Client
    url: str
    headers: dict[str, str]
    expected: Expected
    report: Report


def _no_report(_done: int, _total: int) -> None:
    pass


def _fill(request: _Request, part: Path) -> None:
    """Add to ``part`` until the server says that it is complete."""
    import httpx

    expected = request.expected
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        if expected.size and before == expected.size:
            return
        if expected.size and before > expected.size:
            part.unlink()
            before = 0
        try:
            if _attempt(request, part, before):
                return
            reason = "the connection broke off"
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = str(error) or type(error).__name__
        except _BusyError as error:
            reason = str(error)
        if (part.stat().st_size if part.exists() else 0) > before:
            failures = 0
        if failures == len(PAUSES):
            raise ModelSourceError(
                f"{_host(request.url)} could not be read: {reason}",
                hint="check the network, then run the same command again: it goes on where it stopped",
            )
        time.sleep(PAUSES[failures])
        failures += 1


class _BusyError(Exception):
    """The server asks to come back later."""


def _attempt(request: _Request, part: Path, start: int) -> bool:
    """Ask once. True when the file is complete as far as the server tells."""
    url, expected = request.url, request.expected
    # Without "identity" a server may compress on the fly, and then byte ranges mean something else.
    asked = {**request.headers, "accept-encoding": "identity"}
    if start:
        asked["range"] = f"bytes={start}-"
    with request.client.stream("GET", url, headers=asked) as response:
        status = response.status_code
        if status == 416:  # nothing after the part's end: it is complete, or from another version of the file
            if not expected.size:
                return True
            part.unlink()
            return False
        if status in (408, 429) or status >= 500:
            raise _BusyError(f"it answered {status} {response.reason_phrase}")
        if status not in (200, 206):
            message = f"{_host(url)} answered {status} {response.reason_phrase} for {url}"
            raise ModelSourceError(message, hint=_advice(status))
        if status == 206 and _starts_at(response.headers.get("content-range", "")) != start:
            part.unlink(missing_ok=True)
            return False
        done = start if status == 206 else 0
        length = response.headers.get("content-length", "")
        total = expected.size or (done + int(length) if length.isdigit() else 0)
        with part.open("ab" if status == 206 else "wb") as file:
            request.report(done, total)
            # As it comes: asked for blocks of one size, httpx would drop the last, unfilled one when the line breaks.
            for block in response.iter_raw():
                file.write(block)
                done += len(block)
                request.report(done, total)
                if total and done > total:
                    message = f"{_host(url)} sends more than the {total} bytes it promised"
                    raise ModelSourceError(message, hint="try again later")
    return not total or done == total


def _starts_at(content_range: str) -> int:
    first = content_range.lower().removeprefix("bytes").strip().partition("-")[0]
    return int(first) if first.isdigit() else -1


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or url


def _advice(status: int) -> str:
    if status in (401, 403):
        return "the files need a permission: accept the model's terms on the hub and set HF_TOKEN"
    if status in (404, 410):
        return "it is not there (any more): name another source in the catalogue, or pull from a folder with --from"
    return "try again later, or pull from a folder with --from"
