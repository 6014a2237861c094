"""API keys: made at random, shown once, kept as hashes.

A key is ``dw-`` and 256 random bits. The file holds each key's name, day and SHA-256, so whoever reads it can ask
nothing. A slow hash, as passwords need, would add nothing: nobody can try 2^256 keys.

    >>> key = KeyFile(path).add("laptop")       # the only time that it can be seen
    >>> KeyRing(path).holder(key)
    'laptop'
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from deepwell.errors import KeyFileError, UsageError

_log = logging.getLogger(__name__)

_PREFIX = "dw-"
_RANDOM_BYTES = 32
_LONGEST_NAME = 64
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key.

    Attributes:
        name: Who or what holds it; rate limits and logs go by it.
        sha256: Hash of the key, in hexadecimal digits.
        created: When it was made, ISO 8601 in UTC.
    """

    name: str
    sha256: str
    created: str


class KeyFile:
    """A file of keys, readable and writable by its owner alone. It comes into being with the first key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[Key, ...]:
        """All keys, the oldest first; none if there is no file.

        Raises:
            KeyFileError: It cannot be read, is damaged, or others may write to it.
        """
        try:
            with self.path.open("rb") as file:
                _check_owner_alone_writes(self.path, os.fstat(file.fileno()).st_mode)
                return _parse(self.path, file.read())
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be read: {error.strerror}") from error

    def add(self, name: str) -> str:
        """Make a key and return it; it is kept nowhere.

        Raises:
            UsageError: The name is not usable, or taken.
            KeyFileError: As for ``read``, or the file cannot be written.
        """
        if not name or len(name) > _LONGEST_NAME or not name.isprintable() or name != name.strip():
            raise UsageError(f"{name!r} is no name for a key", hint=f"Use 1 to {_LONGEST_NAME} printable letters.")
        with self._locked():
            keys = self.read()
            if any(key.name == name for key in keys):
                raise UsageError(
                    f"there is a key named {name!r} in {self.path}", hint="Remove it, or use another name."
                )
            secret = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            self._write((*keys, Key(name, _hash(secret).hex(), created)))
        return secret

    def remove(self, name: str) -> None:
        """Forget a key; a server that runs refuses it from its next request on.

        Raises:
            UsageError: There is none of that name.
            KeyFileError: As for ``add``.
        """
        with self._locked():
            keys = self.read()
            left = tuple(key for key in keys if key.name != name)
            if len(left) == len(keys):
                raise UsageError(f"there is no key named {name!r} in {self.path}", hint="See: deepwell keys list")
            self._write(left)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file against other processes that change it."""
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def _write(self, keys: Sequence[Key]) -> None:
        """Replace the file as a whole, so that a server never reads half of one."""
        content = {"version": _VERSION, "keys": [asdict(key) for key in keys]}
        target = self.path.resolve()
        try:
            # mkstemp makes files that their owner alone can read and write.
            handle, made = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                Path(made).replace(target)
            except BaseException:
                Path(made).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be written: {error.strerror}") from error


class KeyRing:
    """The keys of a file, as a server holds them: asked for every request, and read again when the file changes."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            KeyFileError: As for ``KeyFile.read``.
        """
        self._file = KeyFile(path)
        self._state = self._stat()
        self._keys = self._digests()

    def __len__(self) -> int:
        return len(self._keys)

    def holder(self, presented: str) -> str | None:
        """The name of the key, or None if it is none. How long that takes tells nothing about any key."""
        self._refresh()
        digest = _hash(presented)
        found = None
        for name, kept in self._keys:
            if hmac.compare_digest(digest, kept):
                found = name
        return found

    def _refresh(self) -> None:
        state = self._stat()
        if state == self._state:
            return
        self._state = state
        try:
            self._keys = self._digests()
        except KeyFileError as error:
            # Whoever damaged or hid the file may have meant to revoke a key: nobody is let in until it is mended.
            _log.error("no key is accepted any more: %s", error.message)
            self._keys = []

    def _digests(self) -> list[tuple[str, bytes]]:
        return [(key.name, bytes.fromhex(key.sha256)) for key in self._file.read()]

    def _stat(self) -> tuple[int, int, int, int] | None:
        try:
            found = self._file.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _check_owner_alone_writes(path: Path, mode: int) -> None:
    # Reading a hash gives nobody a key; writing one does. Windows has no such bits.
    if os.name != "nt" and mode & 0o022:
        raise KeyFileError(f"others may write to {path}, and so add keys of their own", hint=f"Run: chmod 600 {path}")


def _parse(path: Path, content: bytes) -> tuple[Key, ...]:
    try:
        held = json.loads(content)
        if held["version"] != _VERSION:
            raise KeyFileError(f"{path} has version {held['version']!r}; this Deepwell reads version {_VERSION}")
        keys = tuple(Key(str(one["name"]), str(one["sha256"]), str(one["created"])) for one in held["keys"])
        if any(len(bytes.fromhex(key.sha256)) != hashlib.sha256().digest_size for key in keys):
            raise ValueError("a hash has a wrong length")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KeyFileError(
            f"{path} is no file of keys, or damaged", hint="Make one with: deepwell keys add NAME"
        ) from error
    return keys
