"""PDF: the text layer with a box for each line; pages without one are rendered and read by OCR.

Three modules share the work. This one opens the file, walks its pages and finds what the outline says; ``pdf_text``
gets the lines of a page with their boxes; ``pdf_layout`` puts them in reading order and makes paragraphs.

PDFium keeps state of its own that is not safe for threads, so one page of one file is read at a time in a process.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from deepwell.errors import MissingExtraError, MissingModelError, UnreadableFileError
from deepwell.library.protocols import Senses
from deepwell.library.readers.dates import pdf_date
from deepwell.library.readers.guard import check_size, document, needs, shown
from deepwell.library.readers.passages import Block, cut
from deepwell.library.readers.pdf_layout import Line, Words, blocks_of_page
from deepwell.library.records import Document, Passage

_LOCK = threading.RLock()
_OCR = "rapidocr"
_DPI = 200
_RENDER_PIXELS = 20_000_000
_PICTURE_PIXELS = 200_000_000
_OUTLINE_LIMIT = 20_000
_OUTLINE_DEPTH = 6
# Fewer letters than this is a page number or a stamp, not a text layer.
_FEW = 16
_NO_TITLE = frozenset({"untitled", "untitled document", "title", "unknown", "anonymous"})


class PdfReader:
    name = "pdf"
    version = 1
    suffixes = frozenset({".pdf"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """By signature, which may stand after up to 1,024 bytes of something else (ISO 32000-1, annex H)."""
        if b"%PDF-" in head[:1024]:
            return 1.0 if head.startswith(b"%PDF-") or suffix in self.suffixes else 0.5
        return 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is encrypted, damaged or above 2 GiB."""
        check_size(path)
        with needs():
            import pypdfium2
        with _LOCK:
            try:
                # PDFium opens UTF-8 names only; any other name is handed over as an open file.
                pdf = pypdfium2.PdfDocument(path if _is_utf8(path) else path.open("rb"), autoclose=True)
            except pypdfium2.PdfiumError as error:
                raise _refusal(path, error) from error
            try:
                return _Reading(pdf, path, senses).document()
            finally:
                pdf.close()


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refusal(path: Path, error: Exception) -> UnreadableFileError:
    import pypdfium2.raw as pdfium

    code = getattr(error, "err_code", None)
    if code == pdfium.FPDF_ERR_PASSWORD:
        return UnreadableFileError(f"{shown(path)} is encrypted with a password", hint="Save it without one.")
    if code == pdfium.FPDF_ERR_SECURITY:
        return UnreadableFileError(f"{shown(path)} is encrypted in a way that cannot be opened")
    return UnreadableFileError(f"{shown(path)} is damaged or truncated: it cannot be opened as a PDF")


class _Reading:
    """One file while it is read: what was learnt on earlier pages (compounds, section) serves the later ones."""

    def __init__(self, pdf: Any, path: Path, senses: Senses) -> None:
        self._pdf, self._path, self._senses = pdf, path, senses
        self._words = Words()
        self._missing: set[str] = set()
        self._scanned = self._skipped = 0
        self._outline = _outline(pdf)

    def document(self) -> Document:
        facts = self._pdf.get_metadata_dict()
        count = len(self._pdf)
        passages: list[Passage] = []
        for number in range(1, count + 1):
            # Page by page: only passages are kept, so a file of thousands of pages needs the memory of one.
            passages.extend(cut(self._blocks(number)))
        if count and self._skipped == count:
            raise UnreadableFileError(f"{shown(self._path)} is damaged: none of its {count} pages can be opened")
        metadata: dict[str, str | int | float | None] = {
            "author": facts.get("Author"),
            "subject": facts.get("Subject"),
            "keywords": facts.get("Keywords"),
            "created": pdf_date(facts.get("CreationDate") or ""),
            "pages": count,
            "pages_read_by_ocr": self._scanned or None,
            "notice": f"{self._skipped} of {count} pages are damaged and were left out" if self._skipped else None,
        }
        missing = tuple(sorted(self._missing))
        title = facts.get("Title") or ""
        title = "" if title.lower() in _NO_TITLE else title
        return document("pdf", self._path, passages, title=title, metadata=metadata, missing=missing)

    def _blocks(self, number: int) -> list[Block]:
        import pypdfium2

        from deepwell.library.readers.pdf_text import page_lines

        try:
            page = self._pdf[number - 1]
        except pypdfium2.PdfiumError:
            self._skipped += 1
            return []
        try:
            lines = page_lines(page)
            if _is_poor(lines):
                read = self._read_picture(page)
                lines = read if read else lines
        except pypdfium2.PdfiumError:
            self._skipped += 1
            return []
        finally:
            page.close()
        return blocks_of_page(lines, number, self._outline, self._words)

    def _read_picture(self, page: Any) -> list[Line]:
        """Lines read from the page as a picture; none when it is blank or nothing here can read."""
        if _OCR in self._missing or not _has_marks(page):
            return []
        width, height = page.get_size()
        scale = min(_DPI / 72, math.sqrt(_RENDER_PIXELS / max(1.0, width * height)))
        try:
            picture = page.render(scale=scale, may_draw_forms=False).to_pil().convert("RGB")
            found = self._senses.ocr(picture)
        except (MissingModelError, MissingExtraError):
            self._missing.add(_OCR)
            return []
        self._scanned += 1
        return [Line(line.text.strip(), line.box) for line in found if line.text.strip()]


def _is_poor(lines: list[Line]) -> bool:
    """Whether a text layer is absent, or letters without known meaning make most of it (fonts without a map)."""
    text = "".join(line.text for line in lines)
    letters = sum(char.isalnum() for char in text)
    unknown = sum(char == "\ufffd" or "\ue000" <= char <= "\uf8ff" for char in text)
    return letters < _FEW or unknown > letters / 2


def _has_marks(page: Any) -> bool:
    """Whether there is anything on the page to read: pictures or drawings, none of them of a dangerous size."""
    import pypdfium2.raw as pdfium

    count = 0
    for item in page.get_objects(max_depth=3):
        count += 1
        if item.type == pdfium.FPDF_PAGEOBJ_IMAGE:
            width, height = item.get_px_size()
            if width * height > _PICTURE_PIXELS:
                return False
        if count > 20_000:
            break
    return count > 0


def _outline(pdf: Any) -> dict[int, list[tuple[int, str]]]:
    """Headings by page from 1: (depth from 0, title)."""
    import pypdfium2

    found: dict[int, list[tuple[int, str]]] = {}
    try:
        for entry in _limited(pdf.get_toc(max_depth=_OUTLINE_DEPTH), _OUTLINE_LIMIT):
            target = entry.get_dest()
            index = target.get_index() if target is not None else None
            title = " ".join(entry.get_title().split())
            if index is not None and title:
                found.setdefault(index + 1, []).append((entry.level, title))
    except (pypdfium2.PdfiumError, ValueError, UnicodeError):
        # A broken outline is no reason not to read the pages.
        return found
    return found


def _limited(entries: Iterator[Any], limit: int) -> Iterator[Any]:
    for _, entry in zip(range(limit), entries, strict=False):
        yield entry
