"""DOCX: paragraphs under their headings, lists, tables as rows, notes; facts from the core properties.

The XML is read directly, as ECMA-376 part 1 (17, WordprocessingML) has it, so that text inside links, content controls
and tracked insertions is there, and deleted text is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from deepwell.library.protocols import Senses
from deepwell.library.readers.guard import Archive, document, one_line
from deepwell.library.readers.office import core_properties, main_part
from deepwell.library.readers.passages import Block, cut
from deepwell.library.records import Document

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_STRICT = "{http://purl.oclc.org/ooxml/wordprocessingml/main}"
_NAMED = re.compile(r"heading\s*([1-9])$", re.IGNORECASE)
_INNER = frozenset({"sdt", "sdtContent", "customXml", "ins", "smartTag", "moveTo"})


class DocxReader:
    name = "docx"
    version = 1
    suffixes = frozenset({".docx", ".docm", ".dotx"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """A ZIP file, told by its directory or name to be from a word processor."""
        return 0.95 if head.startswith(b"PK") and suffix in self.suffixes else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is damaged, encrypted or a bomb."""
        del senses
        with Archive(path) as archive:
            title, metadata = core_properties(archive)
            part = main_part(archive, "word/document.xml")
            folder = part.rpartition("/")[0]
            blocks = _Body(_levels(archive.xml_or_none(f"{folder}/styles.xml"))).blocks(archive.xml(part))
            for notes in ("footnotes", "endnotes", "comments"):
                root = archive.xml_or_none(f"{folder}/{notes}.xml")
                if root is not None:
                    blocks += [Block(text, (notes,)) for text in map(_text, _all(root, "p")) if text.strip()]
        return document("document", path, cut(blocks), title=title, metadata=metadata)


def _local(node: Any) -> str:
    tag = node.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _get(node: Any, name: str) -> str | None:
    value = node.get(_W + name) or node.get(_STRICT + name)
    return str(value) if value else None


def _all(node: Any, name: str) -> Iterator[Any]:
    return node.iter(_W + name, _STRICT + name)  # type: ignore[no-any-return]


def _child(node: Any, *names: str) -> Any:
    for name in names:
        node = next((child for child in node if _local(child) == name), None) if node is not None else None
    return node


def _levels(styles: Any) -> dict[str, int]:
    """Heading level, from 1, of each style that has one: by outline level, by name, or as the style it is based on."""
    if styles is None:
        return {}
    told: dict[str, int] = {}
    based: dict[str, str] = {}
    for style in _all(styles, "style"):
        key = _get(style, "styleId") or ""
        name = _child(style, "name")
        outline = _child(style, "pPr", "outlineLvl")
        parent = _child(style, "basedOn")
        if parent is not None:
            based[key] = _get(parent, "val") or ""
        shown = (_get(name, "val") or "") if name is not None else ""
        if outline is not None and (_get(outline, "val") or "9").isdigit() and int(_get(outline, "val") or 9) < 9:
            told[key] = int(_get(outline, "val") or 0) + 1
        elif found := _NAMED.match(shown):
            told[key] = int(found[1])
        elif shown.lower() == "title":
            told[key] = 0
    for key in based:
        ancestor, steps = key, 0
        while ancestor not in told and ancestor in based and steps < 20:
            ancestor, steps = based[ancestor], steps + 1
        if ancestor in told:
            told[key] = told[ancestor]
    return told


class _Body:
    def __init__(self, levels: dict[str, int]) -> None:
        self._levels = levels
        self._section: list[tuple[int, str]] = []

    def blocks(self, root: Any) -> list[Block]:
        body = _child(root, "body")
        blocks: list[Block] = []
        for node in _flat(body if body is not None else root):
            if _local(node) == "tbl":
                rows = [" | ".join(_cells(row)) for row in _all(node, "tr")]
                blocks.append(Block("\n".join(row for row in rows if row.strip(" |")), self._path(), "lines"))
                continue
            text = _text(node)
            if not text.strip():
                continue
            style = _child(node, "pPr", "pStyle")
            outline = _child(node, "pPr", "outlineLvl")
            level = self._levels.get(_get(style, "val") or "") if style is not None else None
            if outline is not None and (_get(outline, "val") or "9") in "012345678":
                level = int(_get(outline, "val") or 0) + 1
            if level is not None:
                self._section = [*(pair for pair in self._section if pair[0] < level), (level, one_line(text))]
                blocks.append(Block(text, self._path(), "heading"))
                continue
            listed = style is not None and "List" in (_get(style, "val") or "")
            item = listed or _child(node, "pPr", "numPr") is not None
            blocks.append(Block(f"- {text}" if item else text, self._path(), tight=item))
        return blocks

    def _path(self) -> tuple[str, ...]:
        return tuple(title for _, title in self._section)


def _flat(node: Any, depth: int = 0) -> Iterator[Any]:
    """Paragraphs and tables in order, out of the wrappers they may stand in."""
    for child in node:
        if _local(child) in ("p", "tbl"):
            yield child
        elif _local(child) in _INNER and depth < 50:
            yield from _flat(child, depth + 1)


def _cells(row: Any) -> list[str]:
    return [one_line(" ".join(map(_text, _all(cell, "p")))) for cell in row if _local(cell) == "tc"]


def _text(paragraph: Any) -> str:
    pieces = []
    for node in paragraph.iter():
        name = _local(node)
        if name == "t":
            pieces.append(node.text or "")
        elif name == "tab":
            if _local(node.getparent()) == "r":
                pieces.append("\t")
        elif name in ("br", "cr"):
            pieces.append("\n")
        elif name == "noBreakHyphen":
            pieces.append("-")
    return "".join(pieces).strip()
