"""EPUB: the chapters of the spine in order, each a page; facts from the package document."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from deepwell.errors import UnreadableFileError
from deepwell.library.protocols import Senses
from deepwell.library.readers.dates import iso
from deepwell.library.readers.guard import Archive, document, one_line, shown
from deepwell.library.readers.html import HtmlPage, html_text
from deepwell.library.readers.passages import Block, cut
from deepwell.library.records import Document

_CHAPTERS = frozenset({"application/xhtml+xml", "text/html", "application/x-dtbook+xml"})


class EpubReader:
    name = "epub"
    version = 1
    suffixes = frozenset({".epub"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """By the first member, which names the format (EPUB 3.3, OCF 4.3), or by the directory."""
        if b"mimetypeapplication/epub+zip" in head[:128]:
            return 1.0
        return 0.95 if head.startswith(b"PK") and suffix in self.suffixes else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is damaged, protected or a bomb."""
        del senses
        with Archive(path) as archive:
            if "META-INF/rights.xml" in archive.names or "META-INF/sinf.xml" in archive.names:
                raise UnreadableFileError(f"{shown(path)} is protected by its seller and cannot be read")
            container = archive.xml("META-INF/container.xml")
            rootfile = next((node for node in container.iter() if _local(node) == "rootfile"), None)
            if rootfile is None or not rootfile.get("full-path"):
                raise UnreadableFileError(f"{shown(path)} is damaged: its container names no package document")
            part = str(rootfile.get("full-path"))
            package = archive.xml(part)
            title, metadata = _facts(package)
            blocks: list[Block] = []
            lost = number = 0
            for name in _spine(package, posixpath.dirname(part)):
                if name not in archive.names:
                    lost += 1
                    continue
                number += 1
                blocks += _chapter(html_text(archive.read(name), path), number)
        metadata["chapters"] = number
        metadata["notice"] = f"{lost} chapters that the book lists are not in the file" if lost else None
        return document("book", path, cut(blocks), title=title, metadata=metadata)


def _local(node: Any) -> str:
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def _facts(package: Any) -> tuple[str, dict[str, str | int | float | None]]:
    found: dict[str, list[str]] = {}
    for node in package.iter():
        if isinstance(node.tag, str) and node.tag.startswith("{http://purl.org/dc/elements/1.1/}"):
            found.setdefault(_local(node), []).append(one_line("".join(node.itertext())))
    first = {key: values[0] for key, values in found.items()}
    return first.get("title", ""), {
        "author": ", ".join(found.get("creator", ())),
        "publisher": first.get("publisher"),
        "language": first.get("language"),
        "subject": ", ".join(found.get("subject", ())),
        "created": iso(first.get("date", "")),
    }


def _spine(package: Any, folder: str) -> list[str]:
    items = {node.get("id"): node for node in package.iter() if _local(node) == "item"}
    names = []
    for reference in (node for node in package.iter() if _local(node) == "itemref"):
        item = items.get(reference.get("idref"))
        if item is None or item.get("media-type") not in _CHAPTERS:
            continue
        if "nav" not in (item.get("properties") or "").split():
            names.append(posixpath.normpath(posixpath.join(folder, unquote(item.get("href") or "").split("#")[0])))
    return names


def _chapter(source: str, number: int) -> list[Block]:
    page = HtmlPage(source)
    blocks = page.blocks(number)
    # A chapter without headings of its own still has a name in its head.
    named = any(block.role == "heading" for block in blocks)
    return blocks if named or not page.title else page.blocks(number, (page.title,))
