"""Text files: long ones in chunks that make up the file, and bytes that are no text by their place."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepwell.errors import DataError
from deepwell.lm.training.data import texts
from deepwell.lm.training.data.files import opened
from deepwell.lm.training.data.texts import CHUNK, WHOLE, read_texts


def test_a_short_file_is_one_document_and_an_empty_one_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffhéllo\r\n\r\nworld".encode())
    (tmp_path / "b.txt").write_bytes(b"")
    assert list(read_texts(tmp_path / "a.txt")) == [("", "héllo\r\n\r\nworld")]
    assert list(read_texts(tmp_path / "b.txt")) == [("", "")]


@pytest.mark.parametrize("packed", [False, True])
def test_a_long_file_is_cut_at_paragraphs(tmp_path: Path, make_words: Callable[[int, int], str], packed: bool) -> None:
    text = "\n\n".join(make_words(seed, 80) for seed in range(400))
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found = list(read_texts(path))
    assert "".join(one for _, one in found) == text
    assert all(CHUNK <= len(one) <= 2 * CHUNK for _, one in found[:-1])
    assert all(one.endswith("\n\n") for _, one in found[:-1])
    line = int(found[3][0].removeprefix("line "))
    assert text.splitlines()[line - 1] == found[3][1].splitlines()[0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.text(alphabet="aé井😀 \n\t", max_size=400))
def test_chunks_put_together_are_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        # The same code on numbers that make every case come soon, a character cut between two reads included.
        for name, value in {"WHOLE": 30, "CHUNK": 20, "_LONGEST": 40, "_READ": 7}.items():
            patch.setattr(texts, name, value)
        assert "".join(one for _, one in read_texts(path)) == text


@pytest.mark.parametrize("before", [0, 5, (1 << 18) - 1, (1 << 18) + 3])
def test_bytes_that_are_no_text_are_named(tmp_path: Path, before: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * before + b"\xc3(")
    with pytest.raises(DataError, match=rf"a\.txt: byte {before} is not UTF-8"):
        list(read_texts(path))
    path.write_bytes(b"a" * before + b"\0")
    with pytest.raises(DataError, match=f"NUL byte at {before}"):
        list(read_texts(path))


def test_a_character_cut_off_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xe4\xba")
    with pytest.raises(DataError, match="byte 3 is not UTF-8"):
        list(read_texts(tmp_path / "a.txt"))


def test_opened_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"not packed")
    with pytest.raises(DataError, match=r"a\.gz cannot be read"), opened(tmp_path / "a.gz") as file:
        file.read()
    with pytest.raises(DataError, match=r"b\.txt cannot be read"), opened(tmp_path / "b.txt"):
        pass
    assert WHOLE > 4 * CHUNK
