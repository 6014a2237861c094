"""Tokenised documents on disk, read by mapping them into memory.

One side of a corpus (``train`` or ``validation``) is some flat files beside each other. ``train.bin`` holds the tokens
of all documents one after the other (uint16, or uint32 for a vocabulary of more than 65536), ``train.offsets.bin``
where each begins, ``train.bytes.bin`` how long its text is, ``train.times.bin`` how often it comes in one pass, and for
chats ``train.learned.bin`` which tokens the assistant says. ``corpus.json`` is written last: without it, or where a
file is not what it says, there is no corpus, so one that was cut short is made anew.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

MANIFEST = "corpus.json"
_CHECKED = 1 << 24
"""Bytes at either end of a file whose checksum is taken, so that opening a large corpus stays instant."""


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """One side of a corpus, n documents with t tokens in all.

    Attributes:
        tokens: [t] uint16 or uint32. Texts are without the tokens that begin and end them; chats are whole.
        offsets: [n + 1] int64, where each document begins.
        bytes: [n] int64, of the text in UTF-8.
        times: [n] int32, how often each comes in one pass.
        learned: [t] uint8, for chats: 1 where the token is the assistant's.
        held_back: Whether this is the side that is not learned from, read in order and without filling in.
    """

    tokens: NDArray[Any]
    offsets: NDArray[np.int64]
    bytes: NDArray[np.int64]
    times: NDArray[np.int32]
    learned: NDArray[np.uint8] | None = None
    held_back: bool = False

    def __len__(self) -> int:
        return len(self.bytes)

    def document(self, number: int) -> NDArray[Any]:
        """The tokens of a document."""
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]


class SideWriter:
    """Writes one side, under names that count for nothing until ``finish``. Use as a context manager."""

    def __init__(self, folder: Path, side: str, *, vocab_size: int, chats: bool) -> None:
        self._folder, self._side = folder, side
        self._dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        kinds = ["", ".offsets", ".bytes", ".times", *([".learned"] if chats else [])]
        self._names = {kind: f"{side}{kind}.bin" for kind in kinds}
        self._stack = ExitStack()
        self._files: dict[str, BinaryIO] = {}
        self.tokens = self.bytes = self.documents = 0

    def __enter__(self) -> SideWriter:
        for kind, name in self._names.items():
            self._files[kind] = self._stack.enter_context((self._folder / f"{name}.part").open("wb"))
        self._files[".offsets"].write(np.int64(0).tobytes())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stack.close()

    def add(self, tokens: Any, *, size: int, times: int, learned: NDArray[np.bool_] | None = None) -> None:
        """Write a document: its tokens [n], bytes of text, repeats, and for chats what is learned [n]."""
        self._files[""].write(np.asarray(tokens, dtype=self._dtype).tobytes())
        self.tokens += len(tokens)
        self.bytes += size
        self.documents += 1
        self._files[".offsets"].write(np.int64(self.tokens).tobytes())
        self._files[".bytes"].write(np.int64(size).tobytes())
        self._files[".times"].write(np.int32(times).tobytes())
        if learned is not None:
            self._files[".learned"].write(learned.astype(np.uint8).tobytes())

    def finish(self) -> dict[str, list[int]]:
        """Put the files in place; returns what ``corpus.json`` says of each."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._stack.close()
        for name in self._names.values():
            (self._folder / f"{name}.part").replace(self._folder / name)
        return {name: list(checksum(self._folder / name)) for name in self._names.values()}


def checksum(path: Path) -> tuple[int, int]:
    """Size of a file and the CRC-32 of its two ends."""
    with path.open("rb") as file:
        crc = zlib.crc32(file.read(_CHECKED))
        size = file.seek(0, 2)
        file.seek(max(size - _CHECKED, 0))
        return size, zlib.crc32(file.read(_CHECKED), crc)


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Say that the corpus is whole."""
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(folder / MANIFEST)


def read_manifest(folder: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ``corpus.json`` says, if it is for this key and every file is as it says; else None."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = content["key"] == key and all(
            checksum(folder / name) == tuple(expected) for name, expected in content["files"].items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return dict(content) if whole else None


def open_side(folder: Path, side: str, *, vocab_size: int, chats: bool) -> Documents:
    """Map the files of a side that ``read_manifest`` found whole."""

    def mapped(kind: str, dtype: Any) -> NDArray[Any]:
        path = folder / f"{side}{kind}.bin"
        # An empty file cannot be mapped.
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)

    return Documents(
        tokens=mapped("", np.uint16 if vocab_size <= 1 << 16 else np.uint32),
        offsets=np.asarray(mapped(".offsets", np.int64)),
        bytes=np.asarray(mapped(".bytes", np.int64)),
        times=np.asarray(mapped(".times", np.int32)),
        learned=mapped(".learned", np.uint8) if chats else None,
        held_back=side == "validation",
    )
