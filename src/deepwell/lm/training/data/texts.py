"""Text files as documents: a short file is one, a long one is cut at its paragraphs.

A novel is one file of a megabyte. As one document it would fall to training or to validation as a whole, and a run on
three novels could hold nothing back. So what is longer than ``WHOLE`` bytes is cut into chunks of about ``CHUNK``, at
an empty line where there is one, else at the end of a line, else anywhere. Put together, the chunks are the file.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from deepwell.errors import DataError
from deepwell.lm.training.data.files import opened

WHOLE = 64 * 1024
"""Bytes up to which a file is one document."""
CHUNK = 10_000
"""Characters that a chunk has at least, but for the last."""
_LONGEST = 2 * CHUNK
_READ = 1 << 18
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n\s*")


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """The documents of a text file, each with its place in it (empty where the file is one document).

    Raises:
        DataError: The file cannot be read, is not UTF-8 (naming the byte), or holds a NUL.
    """
    pieces = _decoded(path)
    held, size = "", 0
    for piece in pieces:
        held += piece
        size += len(piece.encode())
        if size > WHOLE:
            break
    else:
        yield "", held
        return
    line = 1
    for more, ended in _then_end(pieces):
        held += more
        while len(held) > _LONGEST or (ended and held):
            cut = _cut(held)
            yield f"line {line}", held[:cut]
            line += held.count("\n", 0, cut)
            held = held[cut:]


def _then_end(pieces: Iterator[str]) -> Iterator[tuple[str, bool]]:
    yield "", False
    yield from ((piece, False) for piece in pieces)
    yield "", True


def _cut(text: str) -> int:
    """Where the first chunk of a text ends."""
    if len(text) <= CHUNK + CHUNK // 2:
        return len(text)
    paragraph = _PARAGRAPH.search(text, CHUNK)
    if paragraph is not None and paragraph.end() <= _LONGEST:
        return paragraph.end()
    line = text.find("\n", CHUNK, _LONGEST)
    return line + 1 if line >= 0 else CHUNK


def _decoded(path: Path) -> Iterator[str]:
    """The text of a file in pieces, without the mark that some editors put first."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read, first = 0, True
    with opened(path) as file:
        while True:
            data = file.read(_READ)
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                at = read - waiting + error.start
                raise DataError(
                    f"{path}: byte {at} is not UTF-8", hint="Convert the file to UTF-8, as with iconv"
                ) from error
            if "\0" in text:
                raise DataError(
                    f"{path} has a NUL byte at {read - waiting + len(text[: text.index(chr(0))].encode())}, so it is"
                    " hardly text"
                )
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            read += len(data)
            if text:
                yield text
            if not data:
                return
