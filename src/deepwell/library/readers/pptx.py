"""PPTX: each slide a page, with its title, its text in order, tables as rows, and the speaker's notes.

Read directly, as ECMA-376 part 1 (19, PresentationML, and 21, DrawingML) has it. Slides come in the order of the
presentation, not of the file names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from deepwell.library.protocols import Senses
from deepwell.library.readers.guard import Archive, document, one_line
from deepwell.library.readers.office import core_properties, main_part, relations
from deepwell.library.readers.passages import Block, cut
from deepwell.library.records import Box, Document

_TITLES = frozenset({"title", "ctrTitle"})
_CHROME = frozenset({"sldNum", "dt", "ftr", "hdr", "sldImg"})


class PptxReader:
    name = "pptx"
    version = 1
    suffixes = frozenset({".pptx", ".pptm", ".ppsx", ".potx"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """A ZIP file, told by its directory or name to be a presentation."""
        return 0.95 if head.startswith(b"PK") and suffix in self.suffixes else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is damaged, encrypted or a bomb."""
        del senses
        with Archive(path) as archive:
            title, metadata = core_properties(archive)
            part = main_part(archive, "ppt/presentation.xml")
            root = archive.xml(part)
            size = next((node for node in root.iter() if _local(node) == "sldSz"), None)
            extent = (_number(size, "cx"), _number(size, "cy")) if size is not None else (0, 0)
            links = relations(archive, part)
            slides = [links[key][1] for key in _slide_ids(root) if key in links]
            blocks: list[Block] = []
            for number, slide in enumerate(slides, 1):
                blocks += _slide(archive, slide, number, extent)
        metadata["slides"] = len(slides)
        first = next((block.section[0] for block in blocks if block.section), "")
        title = title if title and title != "PowerPoint Presentation" else first
        return document("slides", path, cut(blocks), title=title, metadata=metadata)


def _local(node: Any) -> str:
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def _number(node: Any, name: str) -> int:
    value = node.get(name) or ""
    return int(value) if value.lstrip("-").isdigit() else 0


def _slide_ids(root: Any) -> Iterator[str]:
    for node in root.iter():
        if _local(node) == "sldId":
            yield from (value for key, value in node.attrib.items() if key.endswith("}id"))


def _slide(archive: Archive, part: str, number: int, extent: tuple[int, int]) -> list[Block]:
    shapes = list(_shapes(archive.xml(part)))
    titles = [one_line(_words(shape)) for shape in shapes if _role(shape) in _TITLES]
    title = next(filter(None, titles), "")
    section = (title,) if title else ()
    blocks: list[Block] = []
    # The title first, wherever it stands in the drawing order.
    for shape in sorted(shapes, key=lambda shape: _role(shape) not in _TITLES):
        if _role(shape) in _CHROME:
            continue
        table = next((node for node in shape.iter() if _local(node) == "tbl"), None)
        heading = _role(shape) in _TITLES
        text = _rows(table) if table is not None else _words(shape)
        box = _box(shape, extent)
        if text:
            role: Literal["prose", "lines", "heading"] = "heading" if heading else "lines"
            starts, boxes = ((0,), (box,)) if box else ((), ())
            blocks.append(Block(text, section, role, number, starts=starts, boxes=boxes))
    for kind, target in relations(archive, part).values():
        if kind == "notesSlide" and target in archive.names:
            notes = [_words(shape) for shape in _shapes(archive.xml(target)) if _role(shape) not in _CHROME]
            text = "\n".join(filter(None, notes))
            if text:
                blocks.append(Block(f"Notes: {text}", section, page=number))
    return blocks


def _shapes(root: Any) -> Iterator[Any]:
    return (node for node in root.iter() if _local(node) in ("sp", "graphicFrame"))


def _role(shape: Any) -> str:
    place = next((node for node in shape.iter() if _local(node) == "ph"), None)
    return str(place.get("type") or "body") if place is not None else ""


def _words(shape: Any) -> str:
    lines = []
    for paragraph in (node for node in shape.iter() if _local(node) == "p"):
        pieces = []
        for node in paragraph.iter():
            if _local(node) == "t":
                pieces.append(node.text or "")
            elif _local(node) in ("br", "tab"):
                pieces.append(" ")
        lines.append(one_line("".join(pieces)))
    return "\n".join(filter(None, lines))


def _rows(table: Any) -> str:
    found = (node for node in table.iter() if _local(node) == "tr")
    rows = [" | ".join(one_line(_words(cell)) for cell in row if _local(cell) == "tc") for row in found]
    return "\n".join(row for row in rows if row.strip(" |"))


def _box(shape: Any, extent: tuple[int, int]) -> Box | None:
    frame = next((node for node in shape.iter() if _local(node) == "xfrm"), None)
    if frame is None or min(extent) <= 0:
        return None
    at = next((node for node in frame if _local(node) == "off"), None)
    size = next((node for node in frame if _local(node) == "ext"), None)
    if at is None or size is None:
        return None
    left, top = _number(at, "x") / extent[0], _number(at, "y") / extent[1]
    right, bottom = left + _number(size, "cx") / extent[0], top + _number(size, "cy") / extent[1]
    inside = [round(min(1.0, max(0.0, share)), 4) for share in (left, top, right, bottom)]
    return Box(*inside) if inside[0] <= inside[2] and inside[1] <= inside[3] else None
