"""PDF: text with boxes, columns, hyphens, headings, pages that need OCR, and files that must be refused.

The files are written here, object by object, so that each test says exactly what the page holds.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

from deepwell.errors import UnreadableFileError
from deepwell.library.protocols import OcrLine
from deepwell.library.readers.pdf import PdfReader
from deepwell.library.readers.pdf_layout import Line, Words, blocks_of_page
from deepwell.library.records import Box
from deepwell.testing import FakeSenses

pytest.importorskip("pypdfium2")


def text_at(x: int, y: int, text: str, size: int = 12) -> str:
    return f"BT /F1 {size} Tf {x} {y} Td ({text}) Tj ET\n"


def pdf(
    pages: Sequence[str], *, info: str = "", outline: Sequence[tuple[str, int]] = (), trailer: str = "", page: str = ""
) -> bytes:
    """A PDF of US letter pages, 612 x 792 points, with Helvetica as /F1 and a 2 x 2 picture as /X1."""
    first = 6
    kids = [first + 2 * number for number in range(len(pages))]
    after = first + 2 * len(pages)
    objects = {
        1: f"<< /Type /Catalog /Pages 2 0 R {f'/Outlines {after} 0 R' if outline else ''} >>",
        2: f"<< /Type /Pages /Count {len(pages)} /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] >>",
        3: "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        4: f"<< {info} >>",
        5: "<< /Type /XObject /Subtype /Image /Width 2 /Height 2 /ColorSpace /DeviceGray /BitsPerComponent 8 "
        "/Length 4 >>\nstream\nABCD\nendstream",
    }
    for kid, content in zip(kids, pages, strict=True):
        objects[kid] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {kid + 1} 0 R {page} "
            "/Resources << /Font << /F1 3 0 R >> /XObject << /X1 5 0 R >> >> >>"
        )
        objects[kid + 1] = f"<< /Length {len(content.encode('latin-1'))} >>\nstream\n{content}\nendstream"
    if outline:
        last = after + len(outline)
        objects[after] = f"<< /First {after + 1} 0 R /Last {last} 0 R /Count {len(outline)} >>"
        for number, (title, index) in enumerate(outline, after + 1):
            following = f"/Next {number + 1} 0 R" if number < last else ""
            objects[number] = f"<< /Title ({title}) /Parent {after} 0 R {following} /Dest [{kids[index]} 0 R /Fit] >>"
    body, places = "%PDF-1.7\n", {}
    for number in sorted(objects):
        places[number] = len(body.encode("latin-1"))
        body += f"{number} 0 obj\n{objects[number]}\nendobj\n"
    start = len(body.encode("latin-1"))
    body += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n"
    body += "".join(f"{places[number]:010} 00000 n \n" for number in sorted(objects))
    body += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R /Info 4 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n"
    return body.encode("latin-1")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


PICTURE = "q 612 0 0 792 0 0 cm /X1 Do Q\n"


def test_text_boxes_and_facts(tmp_path: Path) -> None:
    info = "/Title (The Well) /Author (Ada) /CreationDate (D:20240506070809Z)"
    pages = [text_at(72, 720, "Water is deep down in the ground."), text_at(72, 720, "The second page has words too.")]
    data = pdf(pages, info=info)
    document = PdfReader().read(write(tmp_path / "a.pdf", data), FakeSenses())
    assert (document.kind, document.title, document.metadata["author"]) == ("pdf", "The Well", "Ada")
    assert document.metadata["created"] == "2024-05-06T07:08:09+00:00" and document.metadata["pages"] == 2
    assert [(passage.place.page, passage.text) for passage in document.passages] == [
        (1, "Water is deep down in the ground."),
        (2, "The second page has words too."),
    ]
    (box,) = document.passages[0].place.boxes
    assert box.left == pytest.approx(72 / 612, abs=0.01)
    assert box.bottom == pytest.approx(1 - 720 / 792, abs=0.01)
    assert 0.25 < box.right - box.left < 0.4


def test_boxes_follow_a_turned_page(tmp_path: Path) -> None:
    data = pdf([text_at(72, 720, "Words on a page that is turned.")], page="/Rotate 90")
    document = PdfReader().read(write(tmp_path / "a.pdf", data), FakeSenses())
    (box,) = document.passages[0].place.boxes
    # A quarter clockwise: what was near the top is near the right edge, and lines run downwards.
    assert box.left > 0.85 and box.bottom - box.top > 0.2


def test_columns_drawn_row_by_row_are_read_one_after_the_other(tmp_path: Path) -> None:
    rows = "".join(
        text_at(50, 700 - 14 * row, f"left column line {row} with some words in it")
        + text_at(330, 700 - 14 * row, f"right column line {row} with other words in it")
        for row in range(8)
    )
    document = PdfReader().read(write(tmp_path / "a.pdf", pdf([rows])), FakeSenses())
    text = " ".join(" ".join(passage.text for passage in document.passages).split())
    assert text.index("left column line 7") < text.index("right column line 0")


def test_headings_come_from_the_outline(tmp_path: Path) -> None:
    body = "".join(text_at(72, 600 - 14 * row, "Words that fill the page of this chapter well.") for row in range(3))
    pages = [text_at(72, 700, "1 Depth", 20) + body, body, text_at(72, 700, "2 Width", 20) + body]
    data = pdf(pages, outline=[("Depth", 0), ("Width", 2)])
    document = PdfReader().read(write(tmp_path / "a.pdf", data), FakeSenses())
    assert [passage.place.section for passage in document.passages] == [("Depth",), ("Depth",), ("Width",)]
    assert document.passages[0].text.startswith("1 Depth\n\nWords")


def box(row: int) -> Box:
    return Box(0.1, row / 50, 0.9, row / 50 + 0.015)


def test_hyphens_at_line_ends() -> None:
    lines = ["A well-known pump brings wa-", "ter up; it is a well-", "known one, built in Baden-", "Baden by Ada."]
    (block,) = blocks_of_page([Line(text, box(row)) for row, text in enumerate(lines, 1)], 1, {}, Words())
    assert block.text == "A well-known pump brings water up; it is a well-known one, built in Baden- Baden by Ada."
    assert [block.text[start:][:4] for start in block.starts] == ["A we", "ter ", "know", "Bade"]


def test_a_page_without_text_is_read_by_ocr(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdf", pdf([PICTURE, text_at(72, 720, "A page with a text layer of its own.")]))
    seen = [OcrLine("Scanned words on a page", box(5), 0.9), OcrLine("and more", box(6), 0.9)]
    document = PdfReader().read(path, FakeSenses(lines=seen))
    assert document.passages[0].text == "Scanned words on a page and more"
    assert document.passages[0].place.boxes == (seen[0].box, seen[1].box)
    assert document.metadata["pages_read_by_ocr"] == 1 and document.missing == ()
    without = PdfReader().read(path, FakeSenses())
    assert without.missing == ("rapidocr",) and [passage.place.page for passage in without.passages] == [2]


def test_a_picture_of_dangerous_size_is_not_decoded(tmp_path: Path) -> None:
    data = pdf([PICTURE]).replace(b"/Width 2 /Height 2", b"/Width 60000 /Height 60000")
    document = PdfReader().read(write(tmp_path / "a.pdf", data), FakeSenses(lines=[OcrLine("never", box(1), 1.0)]))
    assert document.passages == ()


def test_a_blank_page_asks_for_nothing(tmp_path: Path) -> None:
    document = PdfReader().read(write(tmp_path / "a.pdf", pdf([""])), FakeSenses())
    assert (document.passages, document.missing) == ((), ())


def test_refusals(tmp_path: Path) -> None:
    keys = f"/O <{'ab' * 32}> /U <{'cd' * 32}>"
    encrypted = f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 {keys} >> /ID [<00><00>]"
    path = write(tmp_path / "a.pdf", pdf([text_at(72, 720, "secret")], trailer=encrypted))
    with pytest.raises(UnreadableFileError, match=r"a\.pdf is encrypted with a password"):
        PdfReader().read(path, FakeSenses())
    with pytest.raises(UnreadableFileError, match="damaged or truncated"):
        PdfReader().read(write(tmp_path / "b.pdf", b"%PDF-1.7\n" + bytes(300)), FakeSenses())
    with pytest.raises(UnreadableFileError, match="is empty"):
        PdfReader().read(write(tmp_path / "c.pdf", b""), FakeSenses())


def test_thousands_of_pages(tmp_path: Path) -> None:
    pages = [text_at(72, 720, f"This is the page with the number {number}.") for number in range(1, 2001)]
    document = PdfReader().read(write(tmp_path / "a.pdf", pdf(pages)), FakeSenses())
    assert len(document.passages) == 2000 and document.passages[-1].text.endswith("number 2000.")
