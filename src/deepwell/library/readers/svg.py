"""Drawings in SVG: their title, description and text. They are not rendered, so there is nothing to look at."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from deepwell.errors import UnreadableFileError
from deepwell.library.protocols import Senses
from deepwell.library.readers.guard import check_size, document, shown
from deepwell.library.readers.image import name_words
from deepwell.library.readers.passages import Block, cut
from deepwell.library.records import Document

_LIMIT = 32 << 20


class SvgReader:
    """Reads ``.svg`` and ``.svgz``."""

    name = "svg"
    version = 1
    suffixes = frozenset({".svg", ".svgz"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """An ``<svg`` element near the start, or the suffix of a compressed one."""
        if b"<svg" in head:
            return 0.95 if suffix in self.suffixes else 0.6
        if suffix in self.suffixes:
            return 0.9 if head[:2] == b"\x1f\x8b" or head.lstrip().startswith(b"<") else 0.4
        return 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Words of a drawing. Raises ``UnreadableFileError`` when it is not well-formed or defines entities."""
        del senses
        check_size(path, _LIMIT, "a drawing")
        data = _unpacked(path)
        if b"<!ENTITY" in data:
            raise UnreadableFileError(
                f"{shown(path)} defines XML entities, which are not expanded", hint="Save it as plain SVG."
            )
        try:
            root = ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise UnreadableFileError(
                f"{shown(path)} is not well-formed SVG ({error})", hint="Save it again."
            ) from error
        title, described, written = "", [], []
        for element in root.iter():
            tag = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
            words = " ".join("".join(element.itertext()).split()) if tag in {"title", "desc", "text", "format"} else ""
            if tag == "title" and not title:
                title = words
            elif tag in {"title", "desc"} and words:
                described.append(words)
            elif tag == "text" and words:
                written.append(words)
        heading = "\n".join(dict.fromkeys(part for part in (title, *described, name_words(path)) if part))
        blocks = [Block(heading or "drawing"), Block("\n".join(written), role="lines")]
        return document("image", path, cut(blocks), title=title, metadata={"format": "svg"})


def _unpacked(path: Path) -> bytes:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFileError(
            f"{shown(path)} is damaged ({error})", hint="Replace it with a whole copy."
        ) from error
    if len(data) > _LIMIT:
        raise UnreadableFileError(f"{shown(path)} unpacks to more than {_LIMIT >> 20} MiB", hint="Save a simpler copy.")
    return data
