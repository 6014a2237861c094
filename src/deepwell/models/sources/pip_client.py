"""Run by ``wheel.py`` as a process of its own: find one wheel with pip, and read it from where the last attempt ended.

    python -P pip_client.py PACKAGE VERSION SHA256 PART

Prints one JSON object a line: ``{"event": "bytes", "done": N, "total": N}`` while it reads, and at the end ``done``,
``error`` (with ``message`` and ``hint``), ``full`` for a full disk, or ``different`` when this pip lacks what is used
here.

It uses four things that pip does not promise to keep (the session, the finder and the two calls that make them), the
same ones that pip-tools has stood on for years. It imports nothing of Deepwell, so that it starts in pip's time alone.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

PAUSES = (1.0, 2.0, 4.0, 8.0)
BLOCK = 1 << 16  # what a broken line costs at most


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def main() -> int:
    package, version, sha256, part = sys.argv[1:5]
    warnings.simplefilter("ignore")  # of what an older pip does in a newer Python, nobody here can do anything
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        from pip._internal import commands
    except ImportError:
        say("error", message="pip is not installed beside Deepwell", hint=f"run: {sys.executable} -m ensurepip")
        return 1
    try:
        command: Any = commands.create_command("download")
        options, _ = command.parse_args(["--no-deps", "--no-input", "--only-binary", ":all:", package])
        with command.main_context():
            session = command.get_default_session(options)
            finder = command._build_package_finder(options=options, session=session, ignore_requires_python=True)
            troubles = listen()
            link = find(finder, package, version, sha256, troubles)
            if link is None:
                return 1
            return read(session, link, Path(part))
    except (ImportError, AttributeError, TypeError) as error:
        say("different", message=repr(error))
    except BrokenPipeError:
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        say("full" if full else "error", message=error.strerror or str(error), hint="")
    except Exception as error:  # pip's own errors have no common class that it promises
        say("error", message=f"{type(error).__name__}: {error}", hint="")
    return 1


def end_with_parent() -> None:
    # Not sys.stdin: Python, when it ends, waits for its lock and then aborts.
    while os.read(0, 1):
        pass
    os._exit(1)


def listen() -> list[str]:
    """What pip logs of indexes that it cannot read: it tells nobody else, and an index down looks like an empty one."""
    troubles: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text.startswith("Could not fetch URL") and "404" not in text:
                troubles.append(re.sub(r"^Could not fetch URL |\s*- skipping$", "", text))

    logger = logging.getLogger("pip._internal.index.collector")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(Listener())
    logger.propagate = False
    return troubles


def find(finder: Any, package: str, version: str, sha256: str, troubles: list[str]) -> Any:
    """The address of the wheel, on any of the machine's indexes; the one with the right hash when several have it."""
    from pip._vendor.packaging.version import Version

    found = finder.find_all_candidates(package)
    links = [one.link for one in found if one.version == Version(version) and one.link.is_wheel]
    if not links:
        have = sorted({one.version for one in found}, reverse=True)
        known = f"; it has {', '.join(map(str, have[:5]))}" if have else ", nor any other version of it"
        message = f"it cannot be read: {troubles[-1]}" if troubles else f"it has no wheel of {package} {version}{known}"
        say("error", message=message, hint="")
        return None
    right = [link for link in links if link.hash_name == "sha256" and link.hash == sha256]
    unknown = [link for link in links if link.hash_name != "sha256"]
    if not right and not unknown:
        message = f"its wheel of {package} {version} is not the one that the catalogue knows (SHA-256 {links[0].hash})"
        say("error", message=message, hint="do not use it before you know why it changed")
        return None
    return (right or unknown)[0]


def read(session: Any, link: Any, part: Path) -> int:
    if link.is_file:
        copy(Path(link.file_path), part)
        say("done")
        return 0
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            reason = attempt(session, link.url_without_fragment, part, before)
        except RefusedError as error:
            say("error", message=str(error), hint="")
            return 1
        except OSError as error:  # requests' errors are OSErrors; so is a full disk
            if getattr(error, "errno", None) is not None:
                raise
            reason = f"{type(error).__name__}: {error}"
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "pip":
                raise
            reason = f"{type(error).__name__}: {error}"
        if not reason:
            say("done")
            return 0
        if part.exists() and part.stat().st_size > before:
            failures = 0
        if failures == len(PAUSES):
            hint = "check the network, then run the same command again: it goes on where it stopped"
            say("error", message=reason, hint=hint)
            return 1
        time.sleep(PAUSES[failures])
        failures += 1


class RefusedError(Exception):
    """The index will not send the wheel, however often it is asked."""


def attempt(session: Any, url: str, part: Path, start: int) -> str:
    """One request. Empty when the file is complete, else why it is not."""
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    response = session.get(url, headers=headers, stream=True)
    status = response.status_code
    if status == 416:
        return ""  # nothing is left to read; whoever started us checks the hash
    if status not in (200, 206):
        reason = f"it answered {status} {response.reason}"
        if 400 <= status < 500 and status not in (408, 429):
            raise RefusedError(reason)
        return reason
    if status == 206 and not response.headers.get("content-range", "").lower().startswith(f"bytes {start}-"):
        part.unlink()
        return "it continued at the wrong place"
    done = start if status == 206 else 0
    length = response.headers.get("content-length", "")
    total = done + int(length) if length.isdigit() else 0
    said = 0.0
    with part.open("ab" if status == 206 else "wb") as file:
        for block in response.raw.stream(BLOCK, decode_content=False):
            file.write(block)
            done += len(block)
            if time.monotonic() - said > 0.1:
                said = time.monotonic()
                file.flush()
                say("bytes", done=done, total=total)
    say("bytes", done=done, total=total)
    return "" if not total or done >= total else "the connection broke off"


def copy(source: Path, part: Path) -> None:
    total, done = source.stat().st_size, 0
    with source.open("rb") as reading, part.open("wb") as writing:
        while block := reading.read(BLOCK):
            writing.write(block)
            done += len(block)
        say("bytes", done=done, total=total)


if __name__ == "__main__":
    sys.exit(main())
