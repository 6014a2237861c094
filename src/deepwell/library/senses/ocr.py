"""Words from pictures of text: scanned pages, screenshots, signs in photographs.

Three small networks of PaddleOCR (https://arxiv.org/abs/2009.09941), which the ``rapidocr`` wheel carries: one finds
lines, one reads a line, and the page's orientation is worked out here from the two: lines that stand upright mean a
page on its side, and a page upside down reads far less surely than the same lines turned round. The networks read
English, Chinese, Japanese and most languages in Latin letters; Arabic, Hebrew and Indic scripts come out empty or as
nonsense.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from deepwell.errors import MissingExtraError
from deepwell.library.protocols import OcrLine
from deepwell.library.records import Box
from deepwell.library.senses.pictures import to_rgb
from deepwell.library.senses.reading_order import reading_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

LONG_SIDE = 2000
"""Larger pictures are scaled down to this before reading: an A4 page at 170 dots per inch."""

_SURE = 0.9
_LEAST_SCORE = 0.5
_SAMPLE = 3
_LEAST_SIDE = 12
_FAINT = 110
_INK = 48
_MARGIN = 0.02
_MOSTLY = 0.5


@dataclass
class PageReader:
    """Reads lines of text from pictures.

    Attributes:
        threads: Threads of each network; None leaves it to onnxruntime (all cores).
    """

    threads: int | None = None

    @cached_property
    def engine(self) -> Any:
        """The rapidocr engine, quiet and off the network: its models lie inside its wheel."""
        if importlib.util.find_spec("rapidocr") is None or importlib.util.find_spec("onnxruntime") is None:
            raise MissingExtraError(
                "reading text in pictures needs rapidocr", hint="Run: pip install 'deepwell[images]'"
            )
        from rapidocr import RapidOCR

        threads = -1 if self.threads is None else self.threads
        engine = RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.max_side_len": LONG_SIDE,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
        return engine

    def read(self, image: Image) -> list[OcrLine]:
        """Lines in reading order, boxes as fractions of the picture as given (even when its text stands sideways)."""
        import numpy as np

        image = to_rgb(image)
        if min(image.size) < _LEAST_SIDE:
            return []
        whole = image.size
        part = printed_part(image)
        if (part[2] - part[0]) * (part[3] - part[1]) < _MOSTLY * whole[0] * whole[1]:
            image = image.crop(part)
        else:
            part = (0, 0, *whole)
        if max(image.size) > LONG_SIDE:
            image.thumbnail((LONG_SIDE, LONG_SIDE), reducing_gap=3.0)
        pixels = np.ascontiguousarray(np.asarray(_stretched(image))[:, :, ::-1])  # the networks want blue first
        quads = self._find(pixels)
        if len(quads) == 0:
            return []
        turns, read = self._read_upright(pixels, quads)
        kept = [i for i, (text, score) in enumerate(read) if text.strip() and score >= _LEAST_SCORE]
        upright = [_turned_bounds(quads[i], pixels.shape[:2], turns) for i in kept]
        lines = []
        for i in (kept[j] for j in reading_order(upright)):
            text, score = read[i]
            lines.append(OcrLine(text.strip(), _box(quads[i], pixels.shape[:2], part, whole), round(float(score), 3)))
        return lines

    def _find(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Corners of lines [N, 4, 2] in pixels (x, y), from the top left clockwise as seen on the picture."""
        import numpy as np

        found = self.engine(pixels, use_det=True, use_cls=False, use_rec=False)
        boxes = getattr(found, "boxes", None)
        return np.zeros((0, 4, 2)) if boxes is None else np.asarray(boxes, dtype=np.float64)

    def _read_upright(
        self, pixels: NDArray[np.uint8], quads: NDArray[np.float64]
    ) -> tuple[int, list[tuple[str, float]]]:
        """Text and score of each line, and the quarter turns (anticlockwise) that set the page upright.

        The longest lines are read first. When the network is sure of them the page stands as assumed; when it is not,
        they are read turned round as well, and the surer way wins for the whole page.
        """
        import numpy as np

        widths = np.linalg.norm(quads[:, 1] - quads[:, 0], axis=1)
        heights = np.linalg.norm(quads[:, 3] - quads[:, 0], axis=1)
        sideways = heights[heights > 1.5 * widths].sum() > widths[widths > 1.5 * heights].sum()
        lengths = heights if sideways else widths
        sample = np.argsort(-lengths)[:_SAMPLE].tolist()
        turns = 1 if sideways else 0

        def sureness(read: dict[int, tuple[str, float]]) -> float:
            return sum(score for _, score in read.values()) / len(read)

        as_assumed = {i: self._line(pixels, quads[i], turns) for i in sample}
        best = as_assumed
        if sureness(as_assumed) < _SURE:
            turned_round = {i: self._line(pixels, quads[i], turns + 2) for i in sample}
            if sureness(turned_round) > sureness(as_assumed) + 0.02:
                turns, best = turns + 2, turned_round
        return turns, [best[i] if i in best else self._line(pixels, quads[i], turns) for i in range(len(quads))]

    def _line(self, pixels: NDArray[np.uint8], quad: NDArray[np.float64], turns: int) -> tuple[str, float]:
        """One line's text and score."""
        import numpy as np

        crop = np.ascontiguousarray(np.rot90(_cut_out(pixels, quad), turns))
        read = self.engine(crop, use_det=False, use_cls=False, use_rec=True)
        texts, scores = getattr(read, "txts", None), getattr(read, "scores", None)
        return (str(texts[0]), float(scores[0])) if texts and scores else ("", 0.0)


def printed_part(image: Image) -> tuple[int, int, int, int]:
    """The picture without the even ground around what is on it: left, top, right, bottom in pixels.

    The network that finds lines looks at the whole picture, and overlooks a line or two on a large blank page.
    """
    import numpy as np

    step = max(1, max(image.size) // 500)
    grey = np.asarray(image.convert("L").reduce(step), dtype=np.int16)
    ink = np.abs(grey - int(np.median(grey))) > _INK
    if not ink.any():
        return (0, 0, *image.size)
    margin = round(_MARGIN * max(grey.shape)) + 1
    spans = []
    for axis, side in ((0, image.width), (1, image.height)):
        marked = np.flatnonzero(ink.any(axis=axis))
        first, last = int(marked[0]) - margin, int(marked[-1]) + 1 + margin
        spans.append((max(0, first * step), min(side, last * step)))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def _stretched(image: Image) -> Image:
    """Faint print made black on white: when dark and light are close together, spread them over the whole range."""
    import numpy as np
    from PIL import ImageOps

    dark, light = np.percentile(np.asarray(image.convert("L").reduce(max(1, max(image.size) // 500))), (0.5, 99.5))
    return ImageOps.autocontrast(image, cutoff=0.1) if light - dark < _FAINT else image


def _cut_out(pixels: NDArray[np.uint8], quad: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A line, straightened: the quadrilateral [4, 2] as a rectangle of its own width and height."""
    import cv2
    import numpy as np

    width = max(1, round(max(np.linalg.norm(quad[1] - quad[0]), np.linalg.norm(quad[2] - quad[3]))))
    height = max(1, round(max(np.linalg.norm(quad[3] - quad[0]), np.linalg.norm(quad[2] - quad[1]))))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float32)
    matrix = cv2.getPerspectiveTransform(quad.astype(np.float32), corners)
    return np.asarray(
        cv2.warpPerspective(pixels, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE),
        dtype=np.uint8,
    )


def _turned_bounds(quad: NDArray[np.float64], shape: tuple[int, ...], turns: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a line after the page was turned anticlockwise ``turns`` times."""
    x, y = quad[:, 0], quad[:, 1]
    width, height = shape[1], shape[0]
    for _ in range(turns % 4):
        x, y, width, height = y, width - x, height, width
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def _box(
    quad: NDArray[np.float64], shape: tuple[int, ...], part: tuple[int, int, int, int], whole: tuple[int, int]
) -> Box:
    """Bounds of a line as fractions of the whole picture, of which ``part`` was looked at as pixels of ``shape``."""
    import numpy as np

    left, top, right, bottom = part
    xs = (left + np.clip(quad[:, 0] / shape[1], 0, 1) * (right - left)) / whole[0]
    ys = (top + np.clip(quad[:, 1] / shape[0], 0, 1) * (bottom - top)) / whole[1]
    return Box(*(round(float(value), 4) for value in (xs.min(), ys.min(), xs.max(), ys.max())))
