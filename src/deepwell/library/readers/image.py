"""Pictures: what they show, what is written in them, and what their files say of when and where.

The first passage is the picture as a whole: the names of what it shows, words people gave it, words of its file name.
Its meaning is taken from the labels (see ``encoders/conse.py``), its likeness from the pixels. A page of text follows
as passages of its own with a box for each line, page by page for a TIFF of several pages.

OCR finds letters everywhere: a wheel is an O, a roof an A. In a photograph such lines are one or two characters, or
the network doubts them. So text that does not amount to a page is believed only line by line, and what is left, the
words of a sign or a shirt, is part of what the picture as a whole shows: it is found by its words, not by what an
encoder makes of a scrap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deepwell.errors import DeepwellError, MissingExtraError, MissingModelError
from deepwell.library.protocols import OcrLine, Senses
from deepwell.library.readers.guard import document, shown
from deepwell.library.readers.image_facts import ImageFacts, image_facts
from deepwell.library.readers.passages import Block, cut
from deepwell.library.records import Document, Label, Passage, Place
from deepwell.library.senses.pictures import opened, to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_PAGES = 500
_NAMED = 6
_NAMED_SCORE = 0.02

_WORD = 3
"""Letters or digits that make a word; a Chinese or Japanese character counts as two."""
_PAGE = 24.0
"""Letters in words, each line's times its score, that make a page of text."""
_SURE = 0.85
"""The score of a line that is believed where there is no page around it."""

_CAMERA_NAME = re.compile(r"(?i)^(img|dsc[nf]?|p|pict?|image|photo|screenshot|scan|mvi|pxl|wp)?[-_ ]?[\d_\-. ]+$")
_HASH_NAME = re.compile(r"(?i)^[0-9a-f_-]{12,}$")

_SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+",
    b"\x00\x00\x00\x0cjP  \r\n", b"\xff\x4f\xff\x51", b"8BPS", b"qoif",
)  # fmt: skip
_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis"})


class ImageReader:
    """Reads anything that Pillow decodes."""

    name = "image"
    version = 2
    suffixes = frozenset(
        ".jpg .jpeg .jpe .png .gif .bmp .dib .tif .tiff .webp .avif .heic .heif .jp2 .j2k .ppm .pgm .pbm .pnm .tga "
        ".ico .psd .qoi .pcx".split()
    )
    cost: Literal["fast", "slow"] = "slow"

    def accepts(self, head: bytes, suffix: str) -> float:
        """A picture's signature is proof; a suffix alone is weak."""
        if head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
            return 0.95
        if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
            return 0.95
        if head[:2] == b"BM" and suffix in {".bmp", ".dib"}:
            return 0.95
        return 0.4 if suffix in self.suffixes else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Look at one picture. Raises ``UnreadableFileError`` for a damaged one, and for a decompression bomb."""
        missing: list[str] = []
        with opened(path) as image:
            facts = image_facts(image)
            several = image.format in {"TIFF", "MPO"} and image.format == "TIFF" and getattr(image, "n_frames", 1) > 1
            passages: list[Passage] = []
            labels: tuple[Label, ...] = ()
            signs: list[str] = []
            for number, frame in enumerate(_frames(image, several=several), start=1):
                page = number if several else None
                if number == 1:
                    labels = tuple(_labels(frame, senses, missing))
                lines = _lines(frame, senses, missing)
                if several or is_page(lines):
                    passages.extend(cut(text_blocks(lines, page=page)))
                else:
                    signs.extend(line.text.strip() for line in believed(lines))
        whole = Passage(
            describe(labels, facts, path, signs),
            Place(page=1 if several else None),
            modality="image",
            labels=labels,
        )
        return document(
            "image",
            path,
            [whole, *passages],
            title=facts.title or shown(path.stem),
            metadata=facts.metadata,
            missing=tuple(missing),
        )


def _frames(image: Image, *, several: bool) -> Iterator[Image]:
    """The picture, or each page of a scan of several pages; of an animation the first frame."""
    if not several:
        yield to_rgb(image)
        return
    from PIL import ImageSequence

    for number, frame in enumerate(ImageSequence.Iterator(image)):
        if number == _MAX_PAGES:
            return
        yield to_rgb(frame)


def _labels(image: Image, senses: Senses, missing: list[str]) -> Sequence[Label]:
    try:
        return senses.labels(image)
    except (MissingModelError, MissingExtraError) as error:
        _note(missing, "efficientnet-lite0", "torch", error)
        return ()


def _lines(image: Image, senses: Senses, missing: list[str]) -> Sequence[OcrLine]:
    if "rapidocr" in missing:
        return ()
    try:
        return senses.ocr(image)
    except (MissingModelError, MissingExtraError) as error:
        _note(missing, "rapidocr", "rapidocr", error)
        return ()


def _note(missing: list[str], model: str, package: str, error: DeepwellError) -> None:
    name = model if isinstance(error, MissingModelError) else package
    if name not in missing:
        missing.append(name)


def _letters(text: str) -> int:
    """Letters and digits, those of scripts that write a word in one or two (from U+2E80 on) counted twice."""
    return sum(1 + (character >= "\u2e80") for character in text if character.isalnum())


def is_page(lines: Sequence[OcrLine]) -> bool:
    """Whether what OCR found is text that was put there to be read, not letters seen in things."""
    sizes = ((_letters(line.text), line.score) for line in lines)
    return sum(size * score for size, score in sizes if size >= _WORD) >= _PAGE


def believed(lines: Sequence[OcrLine]) -> list[OcrLine]:
    """All lines of a page; elsewhere the words that the network is sure of."""
    if is_page(lines):
        return list(lines)
    return [line for line in lines if line.score >= _SURE and _letters(line.text) >= _WORD]


def text_blocks(lines: Sequence[OcrLine], *, page: int | None = None) -> list[Block]:
    """Lines of OCR that are believed, in reading order, as one block with a box for each."""
    kept = [line for line in believed(lines) if line.text.strip()]
    if not kept:
        return []
    starts, text = [], ""
    for line in kept:
        text += "\n" if text else ""
        starts.append(len(text))
        text += line.text.strip()
    return [Block(text, page=page, starts=tuple(starts), boxes=tuple(line.box for line in kept))]


def describe(labels: Sequence[Label], facts: ImageFacts, path: Path, signs: Sequence[str] = ()) -> str:
    """The words by which a picture is found: what people wrote of it, its name, what it shows, what stands on it."""
    shows = [label.name for label in labels[:_NAMED] if label.score >= _NAMED_SCORE] or [x.name for x in labels[:1]]
    parts = [facts.title, facts.caption, ", ".join(facts.keywords), name_words(path), ", ".join(shows)]
    parts.append(", ".join(f"“{sign}”" for sign in dict.fromkeys(signs)))
    told: list[str] = []
    for part in parts:
        if part and part.lower() not in (earlier.lower() for earlier in told):
            told.append(part)
    return "\n".join(told) or "picture"


def name_words(path: Path) -> str:
    """The words of a file name; nothing for names that a camera or a program made up."""
    stem = shown(path.stem)
    if _CAMERA_NAME.match(stem) or _HASH_NAME.match(stem):
        return ""
    return " ".join(word for word in re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", stem) if word)
