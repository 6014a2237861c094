"""One writer at a time, and everybody else learns who it is.

The lock is held by the operating system on an open file (``filelock``), so it dies with its process: a killed writer
never blocks anybody. ``writer.json`` beside it says who holds it; it is only ever read to tell people.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from deepwell.errors import LibraryBusyError
from deepwell.library.store.format import write_atomically

LOCK = "library.lock"
HOLDER = "writer.json"


def _command() -> str:
    words = [Path(sys.argv[0]).name or "python", *sys.argv[1:]]
    return " ".join(words)[:200].encode("utf-8", "backslashreplace").decode()


def _holder(folder: Path) -> str:
    try:
        data: dict[str, Any] = json.loads((folder / HOLDER).read_text("utf-8"))
        since = time.strftime("%H:%M:%S", time.localtime(float(data["since"])))
        return f"process {data['pid']} on {data['host']} ({data['command']}), since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def current_writer(folder: Path) -> str | None:
    """Who is writing now, as one line; None when nobody is."""
    if not (folder / LOCK).exists():
        return None
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _holder(folder)
    except OSError:  # a library that may only be read has no writers to report
        return None
    lock.release()
    return None


@contextmanager
def writer_lock(folder: Path, *, wait: float = 0.0, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the library for writing.

    Args:
        folder: The library.
        wait: Seconds to wait for another writer; negative waits for ever.
        on_wait: Called once, with a line that names the other writer, before waiting.

    Raises:
        LibraryBusyError: Another process still writes after ``wait`` seconds.
    """
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = _holder(folder)
        if wait == 0:
            raise _busy(folder, holder) from None
        if on_wait is not None:
            on_wait(f"waiting for {holder}, which is writing to {folder}")
        try:
            lock.acquire(timeout=wait, poll_interval=0.1)
        except Timeout:
            raise _busy(folder, _holder(folder)) from None
    try:
        about = {"pid": os.getpid(), "host": socket.gethostname(), "command": _command(), "since": time.time()}
        write_atomically(folder / HOLDER, json.dumps(about))
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _busy(folder: Path, holder: str) -> LibraryBusyError:
    return LibraryBusyError(
        f"{folder} is being written to by {holder}", hint="Wait until it is done, or stop that process."
    )
