"""Plain text: paragraphs between blank lines, with their lines. What no other reader claims and is text comes here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from deepwell.library.protocols import Senses
from deepwell.library.readers.decoding import decode, looks_like_text
from deepwell.library.readers.guard import TEXT_LIMIT, document, plain, read_bytes
from deepwell.library.readers.passages import Block, cut
from deepwell.library.records import Document

_GAP = re.compile(r"\n(?:[^\S\n]*\n)+")
# Lines this short are a list, a poem or a log, whose line breaks mean something; longer ones are only wrapped.
_WRAPPED = 50


class TextReader:
    name = "text"
    version = 1
    suffixes = frozenset({".txt", ".text", ".log", ".rst", ".adoc", ".org", ".tex", ".srt", ".vtt"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """Certain of nothing: any other reader that knows the file better goes first."""
        if not looks_like_text(head):
            return 0.0
        return 0.6 if suffix in self.suffixes else 0.2

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is empty, binary or above 64 MiB."""
        del senses
        text, encoding = decode(read_bytes(path, TEXT_LIMIT, "text"), path)
        return document("text", path, cut(paragraphs(plain(text))), metadata={"encoding": encoding})


def paragraphs(text: str, section: tuple[str, ...] = (), first_line: int | None = 1) -> list[Block]:
    """One block for each stretch of lines between blank ones."""
    blocks = []
    line, start = first_line, 0
    while start < len(text):
        gap = _GAP.search(text, start)
        stop, following = (gap.start(), gap.end()) if gap else (len(text), len(text))
        body = text[start:stop]
        if body.strip():
            role: Literal["prose", "lines"] = "prose" if _is_prose(body) else "lines"
            blocks.append(Block(body, section, role, line=line))
        if line is not None:
            line += text.count("\n", start, following)
        start = following
    return blocks


def _is_prose(body: str) -> bool:
    lines = body.count("\n") + 1
    return lines == 1 or len(body) / lines >= _WRAPPED
