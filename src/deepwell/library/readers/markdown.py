"""Markdown: headings make sections, fences and lists keep their lines, front matter becomes metadata.

The text stays as it was written, marks included, so that a quote can be found in the file again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from deepwell.library.protocols import Senses
from deepwell.library.readers.dates import iso
from deepwell.library.readers.decoding import decode, looks_like_text
from deepwell.library.readers.guard import TEXT_LIMIT, document, plain, read_bytes
from deepwell.library.readers.passages import Block, cut
from deepwell.library.records import Document

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r"[ \t]{0,8}(`{3,}|~{3,})")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s")
_MARKS = re.compile(r"[*_`]+|!?\[([^\]]*)\]\([^)]*\)")
_KEY = re.compile(r"([A-Za-z_][\w .-]{0,60}?)\s*[:=]\s*(.*)$")


class MarkdownReader:
    name = "markdown"
    version = 1
    suffixes = frozenset({".md", ".markdown", ".mdown", ".mkd", ".mdx", ".qmd"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """By suffix; Markdown has no signature."""
        return 0.8 if suffix in self.suffixes and looks_like_text(head) else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is empty, binary or above 64 MiB."""
        del senses
        text, _ = decode(read_bytes(path, TEXT_LIMIT, "text"), path)
        lines = plain(text).split("\n")
        facts, body_from = _front_matter(lines)
        blocks = markdown_blocks(lines, body_from)
        first = next((block.section[-1] for block in blocks if block.role == "heading" and block.section), "")
        metadata: dict[str, str | int | float | None] = dict(facts)
        metadata.pop("title", None)
        date = metadata.pop("date", None) or metadata.get("created")
        metadata["created"] = iso(date) if date else None
        return document("text", path, cut(blocks), title=facts.get("title", first), metadata=metadata)


def _front_matter(lines: list[str]) -> tuple[Mapping[str, str], int]:
    """(its flat keys, index of the first line after it), for YAML's ``---`` and TOML's ``+++``."""
    mark = lines[0].rstrip() if lines else ""
    if mark not in ("---", "+++"):
        return {}, 0
    end = next((at for at, line in enumerate(lines[1:400], 1) if line.rstrip() in (mark, "...")), None)
    if end is None:
        return {}, 0
    facts: dict[str, str] = {}
    under = ""
    for line in lines[1:end]:
        item = re.match(r"\s*-\s+(.*)", line)
        pair = _KEY.match(line)
        if pair and not line[0].isspace():
            under = pair[1].strip().lower()
            facts[under] = _scalar(pair[2])
        elif item and under:
            facts[under] = ", ".join(filter(None, (facts[under], _scalar(item[1]))))
    return {key: value for key, value in facts.items() if value}, end + 1


def _scalar(value: str) -> str:
    value = value.strip()
    if value.startswith("[") and value.endswith("]"):
        return ", ".join(part.strip().strip("\"'") for part in value[1:-1].split(",") if part.strip())
    return value.strip("\"'") if value not in ("|", ">") else ""


def markdown_blocks(lines: list[str], start: int = 0) -> list[Block]:
    """Blocks of Markdown lines from index ``start`` on, with line numbers counted from the first line as 1."""
    blocks: list[Block] = []
    section: list[tuple[int, str]] = []
    pending: list[str] = []
    pending_from = at = start

    def flush() -> None:
        if any(line.strip() for line in pending):
            role: Literal["prose", "lines"] = "lines" if _keeps_lines(pending) else "prose"
            blocks.append(Block("\n".join(pending), path(), role, line=pending_from + 1))
        pending.clear()

    def path() -> tuple[str, ...]:
        return tuple(title for _, title in section)

    def heading(level: int, title: str, source: list[str], line: int) -> None:
        while section and section[-1][0] >= level:
            section.pop()
        section.append((level, _MARKS.sub(lambda mark: mark[1] or "", title).strip() or title))
        blocks.append(Block("\n".join(source), path(), "heading", line=line))

    while at < len(lines):
        line = lines[at]
        if fence := _FENCE.match(line):
            flush()
            stop = _fence_end(lines, at, fence[1])
            blocks.append(Block("\n".join(lines[at:stop]), path(), "lines", line=at + 1))
            at = stop
        elif (found := _ATX.match(line)) and (found[2] or "").strip():
            flush()
            heading(len(found[1]), found[2], [line], at + 1)
            at += 1
        elif len(pending) == 1 and (rule := _UNDERLINE.match(line)) and _may_be_title(pending[0]):
            title = pending.pop()
            heading(1 if rule[1][0] == "=" else 2, title, [title, line], at)
            at += 1
        else:
            if not line.strip():
                flush()
            else:
                if not pending:
                    pending_from = at
                pending.append(line)
            at += 1
    flush()
    return blocks


def _fence_end(lines: list[str], start: int, mark: str) -> int:
    for at in range(start + 1, len(lines)):
        closing = _FENCE.match(lines[at])
        if closing and closing[1].startswith(mark) and not lines[at].strip().strip(mark[0]):
            return at + 1
    return len(lines)


def _keeps_lines(lines: list[str]) -> bool:
    return any(_ITEM.match(line) or line.lstrip().startswith(("|", ">")) or line.startswith("    ") for line in lines)


def _may_be_title(line: str) -> bool:
    return not (_ITEM.match(line) or line.lstrip().startswith(("|", ">", "<")) or line.startswith("    "))
