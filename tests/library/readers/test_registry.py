"""The right reader for a file, by what it holds; one clear line for what nobody reads."""

import os
import struct
import zipfile
from pathlib import Path

import pytest

from deepwell.errors import UnreadableFileError
from deepwell.library.protocols import Reader
from deepwell.library.readers import available, choose, listing
from deepwell.testing import FakeSenses

BUILT_IN = set("code csv docx email epub html json markdown parquet pdf pptx text xlsx".split())


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_the_built_in_readers_come_by_entry_point() -> None:
    assert {reader.name for reader in available()} >= BUILT_IN
    assert all(isinstance(reader, Reader) for reader in available())
    assert not [info for info in listing() if info.problem]
    assert all(suffix.startswith(".") and suffix == suffix.lower() for info in listing() for suffix in info.suffixes)


@pytest.mark.parametrize(
    ("name", "data", "reader"),
    [
        ("a.txt", b"%PDF-1.7\n%\xe2\xe3", "pdf"),
        ("notes", b"just words\n", "text"),
        ("a.unknown", b"just words\n", "text"),
        ("a.md", b"# Title\n", "markdown"),
        ("a.txt", b"<!DOCTYPE html><html><body>x", "html"),
        ("run", b"#!/usr/bin/env python3\nprint(1)\n", "code"),
        ("a.PY", b"print(1)\n", "code"),
        ("a.csv", b"a,b\n1,2\n", "csv"),
        ("a.jsonl", b"{}\n", "json"),
        ("a.bin", b"PAR1\x15\x04", "parquet"),
        ("a.eml", b"From: a@b.c\r\nSubject: x\r\n\r\nhi", "email"),
        ("a.txt", "wide words\n".encode("utf-16"), "text"),
    ],
)
def test_choice(tmp_path: Path, name: str, data: bytes, reader: str) -> None:
    assert choose(write(tmp_path / name, data)).name == reader


@pytest.mark.parametrize(
    ("part", "reader"),
    [("word/document.xml", "docx"), ("ppt/presentation.xml", "pptx"), ("xl/workbook.xml", "xlsx")],
)
def test_an_office_file_is_known_whatever_its_name(tmp_path: Path, part: str, reader: str) -> None:
    path = tmp_path / "wrong.pdf"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr(part, "<x/>")
    assert choose(path).name == reader


def refusal(path: Path) -> str:
    with pytest.raises(UnreadableFileError) as caught:
        choose(path).read(path, FakeSenses())
    assert "\n" not in caught.value.message
    return caught.value.message


def test_refusals(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "empty.txt", b"")) == "empty.txt is empty (0 bytes)"
    junk = bytes(range(256)) * 32
    assert "not what its name says" in refusal(write(tmp_path / "junk.txt", junk))
    assert refusal(write(tmp_path / "junk.bin", junk)) == "junk.bin is not a kind of file Deepwell reads"
    assert "cannot be read" in refusal(tmp_path / "not-there.txt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", "y")
    assert "not a kind of file" in refusal(tmp_path / "a.zip")


def test_a_picture_named_like_a_document_is_not_read_as_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.docx", b"\x89PNG\r\n\x1a\n" + bytes(100))
    try:
        assert choose(path).name == "image"
    except UnreadableFileError as error:
        assert "not what its name says" in error.message


def test_old_and_encrypted_office_files_are_told_apart(tmp_path: Path) -> None:
    def container(name: str) -> bytes:
        header = bytearray(512)
        header[:8] = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
        struct.pack_into("<H", header, 30, 9)
        struct.pack_into("<I", header, 48, 0)
        entry = bytearray(128)
        entry[: 2 * len(name)] = name.encode("utf-16-le")
        struct.pack_into("<H", entry, 64, 2 * len(name) + 2)
        return bytes(header + entry + bytes(384))

    assert "encrypted" in refusal(write(tmp_path / "a.docx", container("EncryptedPackage")))
    assert "before 2007" in refusal(write(tmp_path / "a.doc", container("WordDocument")))


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    try:
        path.write_text("words to find", encoding="utf-8")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    document = choose(path).read(path, FakeSenses())
    assert document.title.encode("utf-8").decode() == "caf\ufffd"
    assert document.passages[0].text == "words to find"
