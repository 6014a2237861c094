"""A picture becomes one passage for what it shows and one for each stretch of its text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from deepwell.errors import UnreadableFileError
from deepwell.library.protocols import OcrLine, Reader
from deepwell.library.readers.image import ImageReader, believed, is_page, name_words
from deepwell.library.readers.image_facts import image_facts
from deepwell.library.records import Box, Label
from deepwell.testing import FakeSenses

READER = ImageReader()
SEEN = (Label("golden retriever dog", 0.8), Label("tennis ball", 0.1), Label("crane", 0.001))
WRITTEN = (
    OcrLine("Beware of", Box(0.1, 0.1, 0.5, 0.2), 0.99),
    OcrLine("the dog", Box(0.1, 0.3, 0.5, 0.4), 0.98),
    OcrLine("who bites first", Box(0.1, 0.5, 0.5, 0.6), 0.99),
)


def save(path: Path, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    Image.new("RGB", size, "green").save(path, **options)
    return path


def test_what_it_shows_and_what_it_says(tmp_path: Path) -> None:
    document = READER.read(save(tmp_path / "rex_at_home.png"), FakeSenses(lines=WRITTEN, seen=SEEN))
    whole, text = document.passages
    assert (document.kind, document.title, document.missing) == ("image", "rex_at_home", ())
    assert whole.modality == "image"
    assert whole.labels == SEEN
    assert whole.text == "rex at home\ngolden retriever dog, tennis ball"
    assert text.modality == "text"
    assert text.text.split() == ["Beware", "of", "the", "dog", "who", "bites", "first"]
    assert text.place.boxes == tuple(line.box for line in WRITTEN)
    assert document.metadata["width"] == 40


def test_without_models_it_is_still_found_by_name_and_asks_to_be_read_again(tmp_path: Path) -> None:
    document = READER.read(save(tmp_path / "lighthouse.jpg"), FakeSenses())
    assert document.missing == ("efficientnet-lite0", "rapidocr")
    (whole,) = document.passages
    assert (whole.text, whole.labels, whole.modality) == ("lighthouse", (), "image")


def test_specks_are_not_text(tmp_path: Path) -> None:
    specks = [OcrLine("o", Box(0, 0, 1, 1), 0.6), OcrLine("-.", Box(0, 0, 1, 1), 0.6)]
    assert len(READER.read(save(tmp_path / "a.png"), FakeSenses(lines=specks, seen=SEEN)).passages) == 1


def test_a_sign_in_a_photograph_is_part_of_what_it_shows(tmp_path: Path) -> None:
    everywhere = Box(0, 0, 1, 1)
    sign = [OcrLine("Bäckerei", Box(0.1, 0.1, 0.5, 0.2), 0.93), OcrLine("W", everywhere, 0.97)]
    doubted = OcrLine("ABAXIN", everywhere, 0.74)
    (whole,) = READER.read(save(tmp_path / "a.png"), FakeSenses(lines=[*sign, doubted], seen=SEEN)).passages
    assert whole.text == "a\ngolden retriever dog, tennis ball\n“Bäckerei”"


def test_on_a_page_short_and_doubtful_lines_are_kept(tmp_path: Path) -> None:
    total = OcrLine("7,-", Box(0.6, 0.7, 0.7, 0.8), 0.6)
    _, text = READER.read(save(tmp_path / "a.png"), FakeSenses(lines=[*WRITTEN, total], seen=SEEN)).passages
    assert text.text.endswith("7,-")


@given(st.lists(st.tuples(st.text(max_size=2), st.floats(0, 1)), max_size=50))
def test_no_number_of_specks_makes_a_page(found: list[tuple[str, float]]) -> None:
    latin = [(text.encode("ascii", "ignore").decode(), score) for text, score in found]
    assert not is_page([OcrLine(text, Box(0, 0, 1, 1), score) for text, score in latin])


def test_a_chinese_sign_and_a_chinese_page() -> None:
    sign = [OcrLine("出口", Box(0, 0, 1, 1), 0.95)]
    assert believed(sign) == sign and not is_page(sign)
    assert is_page([OcrLine("他们说这座灯塔建于那一年", Box(0, 0, 1, 1), 0.99)] * 2)


def test_each_page_of_a_scan_is_read(tmp_path: Path) -> None:
    pages = [Image.new("1", (50, 50), value) for value in (0, 1, 1)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    document = READER.read(tmp_path / "scan.tif", FakeSenses(lines=WRITTEN, seen=SEEN))
    assert [passage.place.page for passage in document.passages] == [1, 1, 2, 3]
    assert [passage.modality for passage in document.passages] == ["image", "text", "text", "text"]


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("L", (20, 20), value) for value in (0, 128, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert len(READER.read(tmp_path / "a.gif", FakeSenses(lines=(), seen=SEEN)).passages) == 1


def photograph(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "NIKON CORPORATION", "NIKON D90"
    exif[0x010E] = "Fishing boats at dawn"
    exif[0x0112] = 8
    exif.get_ifd(0x8769)[0x9003] = "2023:07:04 06:12:30"
    exif.get_ifd(0x8769)[0x9011] = "+02:00"
    gps = exif.get_ifd(0x8825)
    ratio = TiffImagePlugin.IFDRational
    gps[1], gps[2] = "S", (ratio(33), ratio(51), ratio(2520, 100))
    gps[3], gps[4] = "E", (ratio(151), ratio(12), ratio(40))
    return save(path, exif=exif)


def test_when_where_and_with_what(tmp_path: Path) -> None:
    document = READER.read(photograph(tmp_path / "DSC_0042.jpg"), FakeSenses(lines=(), seen=SEEN))
    facts = document.metadata
    assert facts["created"] == "2023-07-04T06:12:30+02:00"
    assert facts["camera"] == "NIKON D90"
    assert (facts["latitude"], facts["longitude"]) == (-33.857, 151.211111)
    assert (facts["width"], facts["height"]) == (30, 40)  # as it is looked at, not as it is stored
    assert document.passages[0].text == "Fishing boats at dawn\ngolden retriever dog, tennis ball"


def test_words_of_photo_organisers(tmp_path: Path) -> None:
    xmp = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
      xmlns:dc="http://purl.org/dc/elements/1.1/"><rdf:Description rdf:about="">
      <dc:title><rdf:Alt><rdf:li xml:lang="x-default">Harvest</rdf:li></rdf:Alt></dc:title>
      <dc:subject><rdf:Bag><rdf:li>vineyard</rdf:li><rdf:li>autumn</rdf:li></rdf:Bag></dc:subject>
      <dc:creator><rdf:Seq><rdf:li>Ada</rdf:li></rdf:Seq></dc:creator></rdf:Description></rdf:RDF></x:xmpmeta>"""
    document = READER.read(save(tmp_path / "IMG_1.jpg", xmp=xmp), FakeSenses(lines=(), seen=SEEN))
    assert document.title == "Harvest"
    assert document.metadata["author"] == "Ada"
    assert document.passages[0].text.splitlines()[:2] == ["Harvest", "vineyard, autumn"]


def test_words_in_a_png(tmp_path: Path) -> None:
    chunks = PngInfo()
    chunks.add_text("Title", "Plan of the garden")
    chunks.add_text("Creation Time", "2020-02-03")
    document = READER.read(save(tmp_path / "a.png", pnginfo=chunks), FakeSenses(lines=(), seen=()))
    assert document.title == "Plan of the garden"
    assert document.metadata["created"] == "2020-02-03"


@pytest.mark.parametrize("broken", [b"\xff" * 40, b"II*\0\xff\xff\xff\xff", b""])
def test_broken_facts_break_nothing(broken: bytes) -> None:
    image = Image.new("RGB", (5, 5))
    image.info["exif"], image.info["xmp"] = b"Exif\0\0" + broken, broken
    assert image_facts(image).metadata["width"] == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("IMG_20240517_103000.jpg", ""),
        ("DSC01234.jpg", ""),
        ("1002674143_1b742ab4b8.jpg", ""),
        ("Screenshot 2024-05-17.png", ""),
        ("my-holidayPictures_2024.jpg", "my holiday Pictures 2024"),
        ("Ölberg.png", "Ölberg"),
        ("pizza.png", "pizza"),
    ],
)
def test_words_of_a_file_name(name: str, words: str) -> None:
    assert name_words(Path(name)) == words


def test_signatures_decide_before_suffixes(tmp_path: Path) -> None:
    assert isinstance(READER, Reader)
    for suffix in ("png", "jpg", "gif", "tiff", "webp", "bmp", "jp2"):
        head = save(tmp_path / f"a.{suffix}").read_bytes()[:4096]
        assert READER.accepts(head, f".{suffix}") > 0.9
        if suffix != "bmp":  # two letters prove nothing
            assert READER.accepts(head, ".txt") > 0.9
    assert READER.accepts(b"\0\0\0\x18ftypheic", ".heic") > 0.9
    assert 0 < READER.accepts(b"plain text", ".png") < 0.5
    assert READER.accepts(b"plain text", ".txt") == 0
    assert READER.accepts(b"", "") == 0


def test_a_damaged_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UnreadableFileError, match=r"half\.png is damaged"):
        READER.read(path, FakeSenses(lines=(), seen=()))
