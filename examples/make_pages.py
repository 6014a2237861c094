"""Set a text as a PDF, a DOCX, a slide deck, an EPUB or a scanned page, for the example library.

The PDF writer here knows one font and two sizes. That is all that a page of text needs, and it keeps a layout package out
of the project.
"""

from __future__ import annotations

import html
import re
import textwrap
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_DAY = datetime(2024, 1, 1)


def blocks(text: str) -> list[tuple[int, str]]:
    """Markdown to (heading level or 0, text); a table stays one block of lines."""
    out = []
    for block in re.split(r"\n\s*\n", text.strip()):
        level = len(block) - len(block.lstrip("#"))
        body = block.lstrip("# ")
        out.append((level, body if body.startswith("|") else " ".join(body.split())))
    return out


def pdf(text: str, path: Path, *, author: str) -> None:
    """A PDF with a text layer, on A5 pages."""
    lines: list[tuple[int, str]] = []
    for level, block in blocks(text):
        size = {1: 19, 2: 14}.get(level, 11)
        lines += [(size, line) for line in textwrap.wrap(block, int(640 / size))] + [(8, "")]
    pages: list[list[tuple[int, str]]] = [[]]
    left = 490.0
    for size, line in lines:
        if left < size * 1.4:
            pages.append([])
            left = 490.0
        pages[-1].append((size, line))
        left -= size * 1.4
    title = blocks(text)[0][1]
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Times-Roman >>"]
    objects.append(f"<< /Title ({_escape(title)}) /Author ({_escape(author)}) /CreationDate (D:20240101120000Z) >>")
    kids = []
    for page in pages:
        drawn = ["BT 56 550 Td"]
        for size, line in page:
            drawn.append(f"0 {-size * 1.4:.1f} Td /F1 {size} Tf ({_escape(line)}) Tj")
        stream = "\n".join([*drawn, "ET"])
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 420 595] /Contents {len(objects)} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(kids)}] >>"
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode()
    trailer = len(out) - len(table) - len(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n")
    out += f"trailer << /Size {len(objects) + 1} /Root 1 0 R /Info 4 0 R >>\nstartxref\n{trailer}\n%%EOF\n".encode()
    path.write_bytes(out)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def scan(text: str, *, seed: int = 1) -> Image.Image:
    """A page as an old scanner gives it: grey paper, uneven ink, a stain, one degree off level. No text layer."""
    rng = np.random.default_rng(seed)
    page = Image.new("L", (1240, 1100), 232)
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=30)
    for row, line in enumerate(text.splitlines()):
        draw.text((110 + rng.integers(-2, 3), 90 + row * 45), line, fill=int(rng.integers(25, 70)), font=font)
    page = page.rotate(0.9 if seed % 2 else -0.7, resample=Image.Resampling.BICUBIC, fillcolor=225)
    page = page.filter(ImageFilter.GaussianBlur(0.7))
    y, x = np.mgrid[0 : page.height, 0 : page.width]
    stain = 26 * np.exp(-((((x - 960) / 210) ** 2 + ((y - 880) / 170) ** 2) ** 2))
    grey = np.asarray(page, np.float32) - stain + rng.normal(0, 6, (page.height, page.width)) - 14 * (x / page.width)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def docx(text: str, path: Path, *, author: str) -> None:
    """A Word file with headings, paragraphs and tables."""
    from docx import Document

    document = Document()
    document.core_properties.author = author
    document.core_properties.title = blocks(text)[0][1]
    document.core_properties.created = document.core_properties.modified = _DAY
    for level, block in blocks(text):
        if level:
            document.add_heading(block, level)
        elif block.startswith("|"):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
            rows = [row for row in rows if not set("".join(row)) <= set("-: ")]
            table = document.add_table(len(rows), len(rows[0]))
            for into, row in zip(table.rows, rows, strict=True):
                for cell, value in zip(into.cells, row, strict=True):
                    cell.text = value
        else:
            document.add_paragraph(block)
    document.save(str(path))


DECK = [
    (
        "Warm ferns, cold sea",
        ["Plan for the trustees of Harrow Skerry, February 2025", "Ines Vale and Oluwaseun Adeyemi"],
        "Start with the photograph of the tree fern. Pause. Then the bill for paraffin.",
    ),
    (
        "What we ask for",
        [
            "48,600 pounds over two years",
            "31,000 for the heat pump and its sea loop",
            "13,400 for ribs and glass",
            "4,200 for the crossing",
        ],
        "If somebody asks why the crossing costs so much, invite them to carry a pane of glass.",
    ),
    (
        "The heat pump",
        [
            "12 kilowatts, drawing from the Letterbox inlet",
            "Sea never below 6.6 degrees in 2024",
            "Cuts the heating bill from 1,035 to 345 pounds a winter",
        ],
        "The compressor goes in the old oil store, where nobody sleeps.",
    ),
    (
        "When",
        [
            "April 2025: two ribs above the tree fern",
            "June 2025: sea loop, at the spring tide of the 12th",
            "September 2025: heat pump runs",
            "2026: glass, pane by pane",
        ],
        "Biscuit is not to be told about the warm pipe.",
    ),
    (
        "What could go wrong",
        [
            "Storms: keep 120 panes in store",
            "Jellyfish in the intake: a mesh of 4 millimetres",
            "The paraffin heater stays for one more winter",
        ],
        "",
    ),
]


def slides(path: Path) -> None:
    """A deck of five slides with speaker's notes."""
    from pptx import Presentation

    deck = Presentation()
    deck.core_properties.title, deck.core_properties.author = DECK[0][0], "Ines Vale"
    deck.core_properties.created = deck.core_properties.modified = _DAY
    for number, (title, points, notes) in enumerate(DECK):
        slide = deck.slides.add_slide(deck.slide_layouts[0 if number == 0 else 1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = "\n".join(points)
        if notes:
            slide.notes_slide.notes_text_frame.text = notes
    deck.save(str(path))


def epub(title: str, author: str, chapters: list[str], path: Path) -> None:
    """An EPUB 3 book, one file a chapter."""
    pages = {}
    for number, chapter in enumerate(chapters, 1):
        body = "".join(
            f"<h1>{html.escape(b)}</h1>" if level else f"<p>{html.escape(b)}</p>" for level, b in blocks(chapter)
        )
        name = html.escape(blocks(chapter)[0][1])
        pages[f"c{number}.xhtml"] = (
            '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml">'
            f"<head><title>{name}</title></head><body>{body}</body></html>"
        )
    links = "".join(
        f'<li><a href="{name}">{html.escape(blocks(c)[0][1])}</a></li>' for name, c in zip(pages, chapters, strict=True)
    )
    pages["nav.xhtml"] = (
        '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">'
        f'<head><title>Contents</title></head><body><nav epub:type="toc"><ol>{links}</ol></nav></body></html>'
    )
    items = "".join(
        f'<item id="{Path(name).stem}" href="{name}" media-type="application/xhtml+xml"{" properties=" + chr(34) + "nav" + chr(34) if name == "nav.xhtml" else ""}/>'
        for name in pages
    )
    spine = "".join(f'<itemref idref="{Path(name).stem}"/>' for name in pages if name != "nav.xhtml")
    package = (
        '<?xml version="1.0" encoding="utf-8"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id">'
        '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:identifier id="id">urn:deepwell:harrow-skerry</dc:identifier>'
        f"<dc:title>{html.escape(title)}</dc:title><dc:creator>{html.escape(author)}</dc:creator><dc:language>en</dc:language>"
        f'<meta property="dcterms:modified">2024-01-01T12:00:00Z</meta></metadata><manifest>{items}</manifest><spine>{spine}</spine></package>'
    )
    container = (
        '<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
        '<rootfiles><rootfile full-path="book/package.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    with zipfile.ZipFile(path, "w") as archive:

        def put(name: str, data: str, method: int = zipfile.ZIP_DEFLATED) -> None:
            archive.writestr(zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0)), data, method)

        put("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        put("META-INF/container.xml", container)
        put("book/package.opf", package)
        for name, page in pages.items():
            put(f"book/{name}", page)
