"""Every odd picture becomes upright RGB, every bad one a clear error."""

import struct
import sys
import threading
import time
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepwell.errors import MissingExtraError, UnreadableFileError
from deepwell.library.senses.pictures import knows_heic, load_rgb, opened, to_rgb


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA", "I;16", "I", "F", "HSV"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = to_rgb(Image.new(mode, (4, 3)))
    assert image.mode == "RGB"
    assert image.size == (4, 3)


def test_sixteen_bits_keep_their_contrast() -> None:
    values = np.array([[0, 30_000, 60_000]], dtype=np.uint16)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 127, 255]


def test_transparent_is_white() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "a.png", exif=exif)
    upright = load_rgb(tmp_path / "a.png")
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (255, 255, 255)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (tmp_path / "large.png").write_bytes(png_header(13_000, 12_000))
    with pytest.raises(UnreadableFileError, match="more than 150,000,000 pixels"):
        load_rgb(tmp_path / "bomb.png")
    with pytest.raises(UnreadableFileError, match="13000 x 12000 pixels"):
        load_rgb(tmp_path / "large.png")


def test_threads_leave_pillow_and_the_filters_of_warnings_as_they_were(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    before, guard = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    inside = threading.Barrier(3, timeout=20)  # every thread holds its picture open while the others open theirs

    def look(wait: float) -> None:
        with opened(tmp_path / "a.png"):
            inside.wait()
            time.sleep(wait)

    threads = [threading.Thread(target=look, args=(0.02 * n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before
    assert guard == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tiff", "webp", "bmp"])
def test_a_truncated_picture_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"half.{suffix}"
    Image.effect_noise((200, 200), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableFileError, match="half"):
        load_rgb(path)


def test_no_bytes_and_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("this is a text")
    with pytest.raises(UnreadableFileError, match="0 bytes"):
        load_rgb(tmp_path / "empty.png")
    with pytest.raises(UnreadableFileError, match="not a picture"):
        load_rgb(tmp_path / "text.png")


def test_heic_needs_its_package_and_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = tmp_path / "phone.heic"
    phone.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40)
    knows_heic.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MissingExtraError, match="pillow-heif"):
        load_rgb(phone)
    asked: list[bool] = []
    plugin = types.SimpleNamespace(register_heif_opener=lambda: asked.append(True))
    knows_heic.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    for _ in range(2):  # this one is no real HEIC, which its package cannot help either
        with pytest.raises(UnreadableFileError, match="not a picture"):
            load_rgb(phone)
    assert asked == [True]
    knows_heic.cache_clear()


def test_a_missing_file_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_rgb(tmp_path / "none.png")


def test_errors_while_frames_are_decoded_are_covered(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UnreadableFileError, match=r"a\.png is damaged"), opened(path) as image:
        image.load()
