"""Bytes to text when nothing says which encoding: byte order marks, UTF-8, UTF-16 by its zeros, then a guess.

UTF-8 is tried first, because text in another encoding is almost never valid UTF-8 by chance.
"""

import codecs
import re
from pathlib import Path

from deepwell.errors import UnreadableFileError
from deepwell.library.readers.guard import shown

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_WELL_FORMED = re.compile(rb"[\xc2-\xf4][\x80-\xbf]{1,3}")
_SAMPLE = 1 << 16


def looks_like_text(head: bytes) -> bool:
    """Whether the first bytes of a file may be text in some encoding: no NUL but UTF-16's, and hardly any controls."""
    if not head:
        return False
    if any(head.startswith(mark) for mark, _ in _MARKS) or wide(head):
        return True
    return b"\0" not in head and len(_CONTROLS.findall(head)) <= len(head) // 100


def wide(head: bytes) -> str | None:
    """``utf-16-le`` or ``utf-16-be`` when every second byte is mostly zero and the others are not."""
    sample = head[: len(head) & ~1][:_SAMPLE]
    if len(sample) < 4:
        return None
    even, odd, half = sample[::2].count(0), sample[1::2].count(0), len(sample) // 2
    if odd > 0.7 * half and even < 0.02 * half:
        return "utf-16-le"
    return "utf-16-be" if even > 0.7 * half and odd < 0.02 * half else None


def decode(data: bytes, path: Path) -> tuple[str, str]:
    """(text, name of its encoding). Raises ``UnreadableFileError`` when the bytes are not text."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace"), encoding
    if not looks_like_text(data[:_SAMPLE]):
        raise UnreadableFileError(f"{shown(path)} holds binary data, not text")
    if zeros := wide(data):
        return data.decode(zeros, "replace"), zeros
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        # Cut within its last character, or a rare bad byte among many good ones (a log): still UTF-8.
        bad, good = data.decode("utf-8", "replace").count("\ufffd"), len(_WELL_FORMED.findall(data))
        if error.start >= len(data) - 4 or bad * 50 < good:
            return data.decode("utf-8", "replace"), "utf-8"
    encoding = _guess(data)
    return data.decode(encoding, "replace"), encoding


def _guess(data: bytes) -> str:
    try:
        from charset_normalizer import from_bytes
    except ModuleNotFoundError:
        return "cp1252"
    # Only where it is not ASCII does an encoding show; a sample keeps the guess quick for any size.
    first = next((spot.start() for spot in re.finditer(rb"[\x80-\xff]", data)), 0)
    best = from_bytes(data[max(0, first - 1024) : first + _SAMPLE // 4]).best()
    return best.encoding if best is not None else "cp1252"
