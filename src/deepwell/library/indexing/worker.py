"""A process that reads files, driven over its standard input and output by ``pool``.

Readers run native code on files that nobody vouches for. In a process of their own a crash, a hang or a hunger for
memory costs one file. The process is started as a module of its own rather than by ``multiprocessing``, which would run
the user's main script again in every worker and so demands a guard in it.

Messages are pickles with their length before them. To the worker: one ``Setup``, then ``Batch`` after ``Batch``. From
it: None when it is ready (or a line that says why it cannot be), then for each file its number as it starts and the
``Outcome``. When the parent is gone, so is the worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import pickle
import signal
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from deepwell.errors import DeepwellError, MissingExtraError, MissingModelError

if TYPE_CHECKING:
    from deepwell.library.protocols import Reader
    from deepwell.library.records import Document

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Setup:
    """Where a worker finds readers and senses, as ``module:name``.

    Attributes:
        choose: A function from a path to the ``Reader`` for it; when there is none it gives None, or raises an error
            with the code ``unknown-kind``.
        senses: A function without arguments that makes the ``Senses``.
        sys_path: The parent's, so that the worker imports the same code.
    """

    choose: str = "deepwell.library.readers:choose"
    senses: str = "deepwell.library.senses.local:one_thread"
    sys_path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One file to read.

    Attributes:
        known: ``(file_hash, reader, version)`` of what the library holds already: the same need not be read again.
        slow: Read it even if that takes long; otherwise a slow file is put off.
    """

    path: str
    size: int
    known: tuple[tuple[str, str, int], ...] = ()
    slow: bool = False


UNKNOWN_KIND = "unknown-kind"
"""The code of an error of ``choose`` that says: no reader is for such files."""

Result = Literal["read", "same", "later", "skipped", "failed", "gone"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file.

    Attributes:
        result: ``read``; ``same`` bytes as something known; ``later``: slow, put off; ``skipped``: no reader for it;
            ``failed``: see ``reason``; ``gone``: it vanished meanwhile.
        environment: The failure lies in what is installed, not in the file.
    """

    result: Result
    file_hash: str = ""
    reader: str = ""
    reader_version: int = 0
    document: Document | None = None
    reason: str = ""
    hint: str = ""
    environment: bool = False


def send(stream: BinaryIO, message: object) -> None:
    """Write one message."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one message; raises ``EOFError`` when the other side is gone."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


def resolve(reference: str) -> Any:
    """The object that ``module:name`` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def hash_file(path: Path) -> str:
    """BLAKE2b of a file's bytes, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_file(task: Task, choose: Callable[[Path], Reader | None], senses: Callable[[], Any]) -> Outcome:
    """Read one file; whatever goes wrong becomes an ``Outcome``."""
    path = Path(task.path)
    file_hash = ""
    try:
        reader = choose(path)
        if reader is None:
            return Outcome("skipped")
        file_hash = hash_file(path)
        if (file_hash, reader.name, reader.version) in task.known:
            return Outcome("same", file_hash, reader.name, reader.version)
        if reader.cost == "slow" and not task.slow:
            return Outcome("later")
        document = reader.read(path, senses())
        return Outcome("read", file_hash, reader.name, reader.version, document)
    except FileNotFoundError:
        return Outcome("gone") if not os.path.lexists(path) else _failure(file_hash, "a symbolic link to nothing")
    except (MissingModelError, MissingExtraError) as error:
        return _failure(file_hash, _unnamed(error.message, path), error.hint, environment=True)
    except DeepwellError as error:
        if error.code == UNKNOWN_KIND:
            return Outcome("skipped")
        return _failure(file_hash, _unnamed(error.message, path), error.hint)
    except PermissionError:
        return _failure(file_hash, "no permission to read it", "Change its permissions, then: deepwell sync --retry")
    except MemoryError:
        return _failure(file_hash, "reading it takes more memory than there is")
    except OSError as error:
        return _failure(file_hash, error.strerror or str(error))
    except Exception as error:
        return _failure(file_hash, f"its reader broke: {type(error).__name__}: {error}")


def _unnamed(message: str, path: Path) -> str:
    """A reader's message without the file's name: every list of failures has the path before it."""
    name = os.fsencode(path.name).decode("utf-8", "replace")
    return message.removeprefix(f"{name} ").removeprefix("is ") if message.startswith(f"{name} ") else message


def _failure(file_hash: str, reason: str, hint: str = "", *, environment: bool = False) -> Outcome:
    line = " ".join(reason.split())[:500]
    return Outcome("failed", file_hash, reason=line, hint=hint, environment=environment)


def _exit_with_parent(stream: BinaryIO, inbox: list[Any], ready: threading.Condition) -> None:
    """Collect messages; when the parent closes the pipe or dies, leave at once, even from the middle of a file."""
    while True:
        try:
            message = receive(stream)
        except (EOFError, OSError):
            os._exit(0)
        with ready:
            inbox.append(message)
            ready.notify()


def main() -> None:
    """Serve until the parent is gone."""
    # What readers print must not get between the messages.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inbox: list[Any] = []
    ready = threading.Condition()
    source = os.fdopen(os.dup(0), "rb")
    threading.Thread(target=_exit_with_parent, args=(source, inbox, ready), daemon=True).start()

    def next_message() -> Any:
        with ready:
            while not inbox:
                ready.wait()
            return inbox.pop(0)

    setup: Setup = next_message()
    sys.path[:] = setup.sys_path or sys.path
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it ends its workers itself
    with contextlib.suppress(OSError, AttributeError):
        os.nice(5)
    try:
        choose = resolve(setup.choose)
    except Exception as error:
        send(out, f"{setup.choose}: {type(error).__name__}: {error}")
        return
    send(out, None)
    made: list[Any] = []

    def senses() -> Any:
        if not made:
            made.append(resolve(setup.senses)())
        return made[0]

    while True:
        tasks: tuple[Task, ...] = next_message()
        for number, task in enumerate(tasks):
            send(out, number)
            send(out, read_file(task, choose, senses))
