"""A drawing is its words."""

import gzip
from pathlib import Path

import pytest

from deepwell.errors import UnreadableFileError
from deepwell.library.readers.svg import SvgReader
from deepwell.testing import FakeSenses

DRAWING = b"""<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/svg11.dtd">
<svg xmlns="http://www.w3.org/2000/svg"><title>Water cycle</title><desc>How rain is made</desc>
<text>Sun <tspan>heats</tspan> the sea</text><text>clouds</text><script>evil()</script></svg>"""


@pytest.mark.parametrize("packed", [False, True])
def test_title_description_and_text(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("drawing1.svgz" if packed else "drawing1.svg")
    path.write_bytes(gzip.compress(DRAWING) if packed else DRAWING)
    document = SvgReader().read(path, FakeSenses())
    assert (document.kind, document.title) == ("image", "Water cycle")
    text = "\n".join(passage.text for passage in document.passages)
    assert "How rain is made" in text
    assert "Sun heats the sea\nclouds" in text
    assert "evil" not in text
    assert all(passage.modality == "text" for passage in document.passages)


@pytest.mark.parametrize(
    "content",
    [
        b"<svg><title>unclosed",
        b'<!DOCTYPE svg [<!ENTITY a "aaaa">]><svg><title>&a;</title></svg>',
        b"\x1f\x8bnot gzip at all",
        b"",
    ],
)
def test_a_bad_drawing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.svg"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"bad\.svg"):
        SvgReader().read(path, FakeSenses())


def test_a_bomb_in_gzip(tmp_path: Path) -> None:
    path = tmp_path / "bomb.svgz"
    path.write_bytes(gzip.compress(b"<svg>" + b" " * (33 << 20) + b"</svg>"))
    with pytest.raises(UnreadableFileError, match="unpacks to more than"):
        SvgReader().read(path, FakeSenses())


def test_accepts() -> None:
    accepts = SvgReader().accepts
    assert accepts(DRAWING, ".svg") > 0.9 > accepts(DRAWING, ".txt") > 0.5
    assert accepts(b"hello", ".txt") == 0
