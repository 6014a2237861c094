"""Lines of text on one page of a PDF, each with its box, in the order in which the file draws them.

PDFium ends a line of text with CR LF, gives a box for each stretch of characters in one font, and marks a hyphen that
only breaks a word as U+0002 or U+FFFE. Text of two columns that the file draws row by row comes as one line with a
wide gap; such a line is taken apart here, so that the layout can put the columns one after the other.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace
from typing import Any

from deepwell.library.readers.guard import fold
from deepwell.library.readers.pdf_layout import SOFT_HYPHEN, Line
from deepwell.library.records import Box

_DEVICE = 100_000
_LIMIT = 1_000_000
_ENDING = re.compile(r"[\r\n]+")
# A gap that is wider than this share of the page, and than twice the height of the line, may part two columns.
_GUTTER = 0.015


def page_lines(page: Any) -> list[Line]:
    """Every line with words, at most a million characters of a page."""
    import pypdfium2.raw as pdfium

    textpage = page.get_textpage()
    try:
        count = min(pdfium.FPDFText_CountChars(textpage.raw), _LIMIT)
        if count <= 0:
            return []
        codes = [pdfium.FPDFText_GetUnicode(textpage.raw, at) for at in range(count)]
        text = "".join(map(_char, codes))
        to_box = _Boxes(page, textpage)
        lines = []
        start = 0
        for ending in [*_ENDING.finditer(text), None]:
            stop = ending.start() if ending else count
            lines.extend(_parts(text, start, stop, to_box))
            start = ending.end() if ending else count
        return lines
    finally:
        textpage.close()


def _char(code: int) -> str:
    if code in (0x02, 0xFFFE, 0xAD):
        return SOFT_HYPHEN
    # Halves of surrogate pairs come as two characters; one character must stay one, for boxes are asked for by index.
    return "\ufffd" if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF else chr(code) if code else " "


class _Boxes:
    """Boxes of characters as fractions of the page as it is shown: cropped and turned."""

    def __init__(self, page: Any, textpage: Any) -> None:
        import pypdfium2.raw as pdfium

        self._pdfium, self._page, self._text = pdfium, page, textpage
        self._corners = [ctypes.c_double() for _ in range(4)]
        self._x, self._y = ctypes.c_int(), ctypes.c_int()

    def _box(self, left: float, top: float, right: float, bottom: float) -> Box:
        points = []
        for x, y in ((left, top), (right, bottom)):
            self._pdfium.FPDF_PageToDevice(self._page.raw, 0, 0, _DEVICE, _DEVICE, 0, x, y, self._x, self._y)
            points.append((_share(self._x.value), _share(self._y.value)))
        (x1, y1), (x2, y2) = points
        return Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))

    def stretches(self, start: int, stop: int) -> list[Box]:
        """A box for each stretch in one font."""
        boxes = []
        for at in range(self._pdfium.FPDFText_CountRects(self._text.raw, start, stop - start)):
            left, top, right, bottom = self._corners
            if self._pdfium.FPDFText_GetRect(self._text.raw, at, left, top, right, bottom):
                boxes.append(self._box(left.value, top.value, right.value, bottom.value))
        return boxes

    def char(self, at: int) -> Box | None:
        left, right, bottom, top = self._corners
        if not self._pdfium.FPDFText_GetCharBox(self._text.raw, at, left, right, bottom, top):
            return None
        return self._box(left.value, top.value, right.value, bottom.value)

    def baseline(self, at: int) -> tuple[float | None, float]:
        """(height of a character's baseline from the top, size of its font)."""
        x, y = self._corners[:2]
        if not self._pdfium.FPDFText_GetCharOrigin(self._text.raw, at, x, y):
            return None, 0.0
        self._pdfium.FPDF_PageToDevice(self._page.raw, 0, 0, _DEVICE, _DEVICE, 0, x.value, y.value, self._x, self._y)
        return _share(self._y.value), round(self._pdfium.FPDFText_GetFontSize(self._text.raw, at), 2)


def _share(value: int) -> float:
    return round(min(1.0, max(0.0, value / _DEVICE)), 4)


def union(boxes: list[Box]) -> Box:
    """The smallest box around all."""
    return Box(
        min(box.left for box in boxes),
        min(box.top for box in boxes),
        max(box.right for box in boxes),
        max(box.bottom for box in boxes),
    )


def _parts(text: str, start: int, stop: int, boxes: _Boxes) -> list[Line]:
    if not text[start:stop].strip():
        return []
    stretches = boxes.stretches(start, stop)
    if not stretches:
        return [Line(fold(text[start:stop]).strip(), None)]
    whole = union(stretches)
    base, size = boxes.baseline(start + len(text[start:stop]) - len(text[start:stop].lstrip()))
    last, _ = boxes.baseline(start + len(text[start:stop].rstrip()) - 1)
    line = Line(fold(text[start:stop]).strip(), whole, base=base, last=last, size=size)
    stretches.sort(key=lambda box: box.left)
    reach, gap = stretches[0].right, 0.0
    for box in stretches[1:]:
        gap, reach = max(gap, box.left - reach), max(reach, box.right)
    if gap < _GUTTER or stop - start > 2000:
        return [line]
    return _apart(text, start, stop, boxes, line) or [line]


def _apart(text: str, start: int, stop: int, boxes: _Boxes, line: Line) -> list[Line]:
    """The line cut at its wide gaps, by the boxes of its characters."""
    parts: list[list[tuple[int, Box]]] = []
    for at in range(start, stop):
        box = None if text[at].isspace() else boxes.char(at)
        if box is None:
            continue
        # Overlapping (kerning, accents) or a little further on: the same part.
        if parts and box.left - parts[-1][-1][1].right < _GUTTER and box.right > parts[-1][0][1].left:
            parts[-1].append((at, box))
        else:
            parts.append([(at, box)])
    lines = []
    for index, part in enumerate(parts):
        # From this part's first character to the next one's, so that nothing between is lost.
        first = start if index == 0 else part[0][0]
        last = parts[index + 1][0][0] if index + 1 < len(parts) else stop
        words, around = fold(text[first:last]).strip(), union([box for _, box in part])
        lines.append(replace(line, text=words, box=around, joined=index > 0))
    return lines
