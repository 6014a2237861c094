"""Text is read whichever way the page lies, and quietly."""

import logging
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from deepwell.library.protocols import OcrLine
from deepwell.library.senses.ocr import PageReader, printed_part

pytest.importorskip("rapidocr")
pytest.importorskip("onnxruntime")

LINES = ("The harbour opens at seven", "Invoice number 4711")


@pytest.fixture(scope="module")
def reader() -> PageReader:
    return PageReader(threads=1)


def page(ink: str = "black", paper: str = "white") -> Image.Image:
    image = Image.new("RGB", (520, 200), paper)
    draw = ImageDraw.Draw(image)
    for i, text in enumerate(LINES):
        draw.text((30, 40 + 70 * i), text, ink, font=ImageFont.load_default(34))
    return image


def texts(lines: list[OcrLine]) -> list[str]:
    return [line.text for line in lines]


def test_lines_with_boxes_and_nothing_on_the_terminal(reader: PageReader, capfd: pytest.CaptureFixture[str]) -> None:
    lines = reader.read(page())
    assert texts(lines) == list(LINES)
    assert all(line.score > 0.9 for line in lines)
    first = lines[0].box
    assert first.left == pytest.approx(30 / 520, abs=0.03)
    assert first.top < 60 / 200 < first.bottom < 100 / 200
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger().handlers or logging.getLogger().level != logging.DEBUG


def test_a_page_on_its_side_keeps_boxes_on_the_picture_as_it_is(reader: PageReader) -> None:
    lines = reader.read(page().rotate(90, expand=True))
    assert texts(lines) == list(LINES)
    first, second = (line.box for line in lines)
    assert first.right < second.left  # turned anticlockwise, the first line stands left of the second
    assert first.bottom - first.top > 0.5


def test_a_line_on_a_large_blank_page_is_not_overlooked(reader: PageReader) -> None:
    image = Image.new("L", (2550, 3300), "white")
    ImageDraw.Draw(image).text((300, 420), LINES[0], "black", font=ImageFont.load_default(44))
    (line,) = reader.read(image)
    assert line.text == LINES[0]
    assert line.box.left == pytest.approx(300 / 2550, abs=0.02)
    assert line.box.top < 440 / 3300 < line.box.bottom < 500 / 3300


def test_the_printed_part() -> None:
    image = Image.new("L", (1000, 2000), 240)
    assert printed_part(image) == (0, 0, 1000, 2000)
    image.paste(20, (400, 600, 700, 900))
    left, top, right, bottom = printed_part(image)
    assert 340 < left < 400 and 540 < top < 600 and 700 < right < 760 and 900 < bottom < 960


@pytest.mark.slow
@pytest.mark.parametrize("turn", [180, 270])
def test_other_turns(reader: PageReader, turn: int) -> None:
    assert texts(reader.read(page().rotate(turn, expand=True))) == list(LINES)


@pytest.mark.slow
def test_faint_inverted_bilevel_and_palette_pages(reader: PageReader) -> None:
    assert texts(reader.read(page("#c8c8c8", "#f4f4f4"))) == list(LINES)
    assert texts(reader.read(ImageOps.invert(page()))) == list(LINES)
    assert texts(reader.read(page().convert("1"))) == list(LINES)
    assert texts(reader.read(page().convert("P"))) == list(LINES)


def test_nothing_to_read(reader: PageReader) -> None:
    assert reader.read(Image.new("RGB", (200, 200), "white")) == []
    assert reader.read(Image.new("RGB", (3, 3), "white")) == []


def test_the_models_come_with_the_wheel() -> None:
    import rapidocr

    models = Path(rapidocr.__file__).parent / "models"
    assert len(list(models.glob("*.onnx"))) >= 3, "rapidocr would download its models at the first page"
