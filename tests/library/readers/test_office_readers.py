"""DOCX, PPTX, XLSX, EPUB and EML, and the archives that must be refused."""

import warnings
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deepwell.errors import UnreadableFileError
from deepwell.library.readers import guard
from deepwell.library.readers.docx import DocxReader
from deepwell.library.readers.eml import EmlReader
from deepwell.library.readers.epub import EpubReader
from deepwell.library.readers.pptx import PptxReader
from deepwell.library.readers.xlsx import XlsxReader
from deepwell.testing import FakeSenses

READERS = {".docx": DocxReader(), ".pptx": PptxReader(), ".xlsx": XlsxReader(), ".epub": EpubReader()}


def make_docx(path: Path) -> Path:
    docx = pytest.importorskip("docx")
    made = docx.Document()
    made.core_properties.title = "Wells"
    made.core_properties.author = "Ada"
    made.core_properties.created = datetime(2024, 5, 6, 7, 8, 9)
    made.add_heading("Depth", 1)
    made.add_paragraph("Water is deep down. " * 30)
    made.add_heading("Tools", 2)
    made.add_paragraph("bucket", style="List Bullet")
    made.add_paragraph("rope", style="List Bullet")
    table = made.add_table(rows=2, cols=2)
    cells = [cell for row in table.rows for cell in row.cells]
    for cell, text in zip(cells, "well metres Kola 12262".split(), strict=True):
        cell.text = text
    made.add_paragraph("More to say about tools. " * 30)
    made.save(str(path))
    return path


def make_pptx(path: Path) -> Path:
    pptx = pytest.importorskip("pptx")
    made = pptx.Presentation()
    made.core_properties.author = "Ada"
    for title, body in (("Why wells", "They hold water\nThey are cool"), ("How deep", "Very")):
        slide = made.slides.add_slide(made.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = body
        slide.notes_slide.notes_text_frame.text = f"say it slowly: {title}"
    grid = slide.shapes.add_table(1, 2, 0, 0, 914400, 914400).table
    grid.cell(0, 0).text, grid.cell(0, 1).text = "Kola", "12262"
    made.save(str(path))
    return path


def make_xlsx(path: Path) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    made = openpyxl.Workbook()
    sheet = made.active
    sheet.title = "Wells"
    sheet.append(("name", "metres", "dug"))
    sheet.append(("Kola", 12262, datetime(1970, 5, 24)))
    sheet.append(("Yakima", 4.5, datetime(1999, 1, 2)))
    made.create_sheet("Empty")
    made.properties.creator = "Ada"
    made.save(path)
    return path


def make_epub(path: Path, *, missing: bool = False) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/content.opf"/></rootfiles></container>',
        )
        archive.writestr(
            "OEBPS/content.opf",
            """<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>
            <dc:title>The Well</dc:title><dc:creator>Ada</dc:creator><dc:creator>Grace</dc:creator>
            <dc:date>2001-02-03</dc:date></metadata>
            <manifest><item id="b" href="b%20c.xhtml" media-type="application/xhtml+xml"/>
            <item id="a" href="a.xhtml" media-type="application/xhtml+xml"/>
            <item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/></manifest>
            <spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/></spine></package>""",
        )
        archive.writestr("OEBPS/a.xhtml", "<html><body><h1>One</h1><p>It began.</p></body></html>")
        if not missing:
            chapter = "<html><head><title>Two</title></head><body><p>It ended.</p></body></html>"
            archive.writestr("OEBPS/b c.xhtml", chapter)
        archive.writestr("OEBPS/nav.xhtml", "<html><body><p>contents</p></body></html>")
    return path


MAKERS = {".docx": make_docx, ".pptx": make_pptx, ".xlsx": make_xlsx, ".epub": make_epub}


def test_docx(tmp_path: Path) -> None:
    document = READERS[".docx"].read(make_docx(tmp_path / "a.docx"), FakeSenses())
    assert (document.kind, document.title, document.metadata["author"]) == ("document", "Wells", "Ada")
    assert str(document.metadata["created"]).startswith("2024-05-06T07:08:09")
    assert [passage.place.section for passage in document.passages] == [("Depth",), ("Depth", "Tools")]
    assert document.passages[1].text.startswith("Tools\n- bucket\n- rope\n\nwell | metres\nKola | 12262\n\nMore")


def test_pptx(tmp_path: Path) -> None:
    document = READERS[".pptx"].read(make_pptx(tmp_path / "a.pptx"), FakeSenses())
    assert (document.kind, document.title, document.metadata["slides"]) == ("slides", "Why wells", 2)
    first, second = document.passages
    assert first.text == "Why wells\n\nThey hold water\nThey are cool\n\nNotes: say it slowly: Why wells"
    assert (first.place.page, first.place.section) == (1, ("Why wells",))
    assert second.place.page == 2 and "Kola | 12262" in second.text
    assert second.place.boxes


def test_xlsx(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = READERS[".xlsx"].read(make_xlsx(tmp_path / "a.xlsx"), FakeSenses())
    schema, rows = document.passages
    assert schema.text.startswith("Table Wells: 2 rows, 3 columns.\nname: Kola, Yakima\nmetres: number, 4.5 to 12262\n")
    assert "dug: date, 1970-05-24 to 1999-01-02" in schema.text
    assert rows.text == "name: Kola; metres: 12262; dug: 1970-05-24\nname: Yakima; metres: 4.5; dug: 1999-01-02"
    assert rows.place.rows == (1, 2) and rows.place.section == ("Wells",)
    assert document.metadata["sheets"] == "Wells, Empty" and document.metadata["author"] == "Ada"


def test_epub(tmp_path: Path) -> None:
    document = READERS[".epub"].read(make_epub(tmp_path / "a.epub"), FakeSenses())
    assert (document.kind, document.title, document.metadata["author"]) == ("book", "The Well", "Ada, Grace")
    assert [(passage.place.page, passage.place.section, passage.text) for passage in document.passages] == [
        (1, ("One",), "One\n\nIt began."),
        (2, ("Two",), "It ended."),
    ]
    partly = READERS[".epub"].read(make_epub(tmp_path / "b.epub", missing=True), FakeSenses())
    assert "1 chapters" in str(partly.metadata["notice"])


EML = b"""From: Ada Lovelace <ada@example.org>\r
To: =?utf-8?q?Gr=C3=A4ce?= <grace@example.org>\r
Subject: Deep water\r
Date: Mon, 6 May 2024 07:08:09 +0200\r
MIME-Version: 1.0\r
Content-Type: multipart/mixed; boundary=XX\r
\r
--XX\r
Content-Type: multipart/alternative; boundary=YY\r
\r
--YY\r
Content-Type: text/plain; charset=utf-8\r
\r
The well is dry.\r
--YY\r
Content-Type: text/html\r
\r
<p>The well is <b>dry</b>.</p>\r
--YY--\r
--XX\r
Content-Type: text/plain; name=notes.txt\r
Content-Disposition: attachment; filename=notes.txt\r
\r
Bring a longer rope.\r
--XX\r
Content-Type: application/pdf\r
Content-Disposition: attachment; filename=map.pdf\r
Content-Transfer-Encoding: base64\r
\r
JVBERi0=\r
--XX--\r
"""


def test_eml(tmp_path: Path) -> None:
    path = tmp_path / "a.eml"
    path.write_bytes(EML)
    document = EmlReader().read(path, FakeSenses())
    assert (document.kind, document.title) == ("email", "Deep water")
    assert document.metadata["author"] == "Ada Lovelace <ada@example.org>"
    assert document.metadata["to"] == "Gräce <grace@example.org>"
    assert document.metadata["created"] == "2024-05-06T07:08:09+02:00"
    assert document.metadata["attachments"] == "notes.txt, map.pdf"
    text = "\n".join(passage.text for passage in document.passages)
    assert text.count("The well is dry.") == 1 and "Bring a longer rope." in text


@pytest.mark.parametrize("suffix", READERS)
def test_truncated_and_corrupt_archives(tmp_path: Path, suffix: str) -> None:
    whole = MAKERS[suffix](tmp_path / f"whole{suffix}").read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("head", b"PK\x03\x04"), ("flipped", whole)):
        path = tmp_path / f"{name}{suffix}"
        damaged = bytearray(data)
        if name == "flipped":
            for at in range(60, len(whole) // 2, 7):
                damaged[at] ^= 0x55
        path.write_bytes(bytes(damaged))
        with pytest.raises(UnreadableFileError, match=r"damaged"):
            READERS[suffix].read(path, FakeSenses())


@pytest.mark.parametrize("suffix", READERS)
def test_zip_bombs_are_refused_unopened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb{suffix}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", bytes(guard._RATIO_FLOOR + 1))
    with pytest.raises(UnreadableFileError, match="unpacks from"):
        READERS[suffix].read(path, FakeSenses())


BOMB = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><x>&b;</x>'


@pytest.mark.parametrize(
    ("suffix", "part"),
    [
        (".docx", "word/document.xml"),
        (".pptx", "ppt/presentation.xml"),
        (".xlsx", "xl/workbook.xml"),
        (".epub", "META-INF/container.xml"),
    ],
)
def test_xml_entities_are_refused(tmp_path: Path, suffix: str, part: str) -> None:
    path = tmp_path / f"bomb{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr(part, BOMB)
    with pytest.raises(UnreadableFileError, match="defines XML entities"):
        READERS[suffix].read(path, FakeSenses())


def test_an_encrypted_archive(tmp_path: Path) -> None:
    path = make_docx(tmp_path / "a.docx")
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(mark, at + 4)
    path.write_bytes(bytes(data))
    with pytest.raises(UnreadableFileError, match="encrypted with a password"):
        READERS[".docx"].read(path, FakeSenses())


def test_the_same_bytes_give_the_same_document(tmp_path: Path) -> None:
    for suffix, maker in MAKERS.items():
        path = maker(tmp_path / f"a{suffix}")
        assert READERS[suffix].read(path, FakeSenses()) == READERS[suffix].read(path, FakeSenses())


def test_dates() -> None:
    from deepwell.library.readers.dates import iso, pdf_date

    assert pdf_date("D:20230306180657Z") == "2023-03-06T18:06:57+00:00"
    assert pdf_date("D:20170101+01'00'") == "2017-01-01T00:00:00+01:00"
    assert pdf_date("D:2017") == "2017-01-01T00:00:00"
    assert pdf_date("yesterday") == pdf_date("D:20179999") == iso("soon") == ""
    assert iso("2024-05-06") == "2024-05-06"
    assert iso(datetime(2024, 5, 6, tzinfo=UTC)) == "2024-05-06T00:00:00+00:00"
