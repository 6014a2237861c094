"""API keys: random, shown once, kept as hashes, revoked at once."""

import json
import logging
import os
import threading
from pathlib import Path

import pytest

from deepwell.errors import KeyFileError, UsageError
from deepwell.server.keys import KeyFile, KeyRing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "keys.json"


def test_a_key_opens_and_its_file_does_not_hold_it(path: Path) -> None:
    key = KeyFile(path).add("laptop")
    other = KeyFile(path).add("phone")
    assert key != other
    assert key.startswith("dw-") and len(key) >= 46  # 256 bits in base64
    assert key not in path.read_text() and key[3:] not in path.read_text()
    ring = KeyRing(path)
    assert len(ring) == 2
    assert ring.holder(key) == "laptop"
    assert ring.holder(other) == "phone"
    for wrong in ("", "dw-", key[:-1], key + "x", key.swapcase(), key.encode().hex(), "\udcff", "ключ"):
        assert ring.holder(wrong) is None
    assert ring.holder(KeyFile(path).read()[0].sha256) is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such bits")
def test_the_file_is_its_owners_alone(path: Path) -> None:
    KeyFile(path).add("laptop")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o620)
    with pytest.raises(KeyFileError, match="others may write") as refused:
        KeyFile(path).read()
    assert "chmod 600" in refused.value.hint


def test_names_are_told_apart_and_can_be_removed(path: Path) -> None:
    file = KeyFile(path)
    assert file.read() == ()
    file.add("laptop")
    file.add("phone")
    assert [key.name for key in file.read()] == ["laptop", "phone"]
    with pytest.raises(UsageError, match="there is a key named 'phone'"):
        file.add("phone")
    with pytest.raises(UsageError, match="no key named 'tablet'"):
        file.remove("tablet")
    file.remove("laptop")
    assert [key.name for key in file.read()] == ["phone"]
    assert sorted(one.name for one in path.parent.iterdir() if not one.name.endswith(".lock")) == ["keys.json"]


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "\x1b[2J", "x" * 65])
def test_a_name_that_cannot_be_shown_is_refused(path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name for a key"):
        KeyFile(path).add(name)
    assert not path.exists()


def test_a_ring_sees_what_changes_in_its_file(path: Path) -> None:
    ring = KeyRing(path)
    assert len(ring) == 0
    key = KeyFile(path).add("laptop")
    assert ring.holder(key) == "laptop"
    KeyFile(path).remove("laptop")
    assert ring.holder(key) is None


def test_a_ring_lets_nobody_in_by_a_file_that_was_damaged_or_removed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = KeyFile(path).add("laptop")
    whole = path.read_text()
    ring = KeyRing(path)
    path.write_text(whole[:-20])
    with caplog.at_level(logging.ERROR):
        assert ring.holder(key) is None
    assert "no key is accepted" in caplog.text
    path.write_text(whole)
    assert ring.holder(key) == "laptop"
    path.unlink()
    assert ring.holder(key) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"version": 1}',
        b'{"version": 1, "keys": 3}',
        b'{"version": 1, "keys": [{"name": "a", "sha256": "zz", "created": ""}]}',
        b'{"version": 1, "keys": [{"name": "a", "sha256": "00", "created": ""}]}',
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_none_of_keys_is_named(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=r"keys\.json is no file of keys"):
        KeyRing(path)


def test_a_file_of_a_later_version_is_not_guessed_at(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"version": 2, "keys": []}))
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="version 2"):
        KeyFile(path).read()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="cannot be written"):
        KeyFile(tmp_path / "file" / "keys.json").add("laptop")
    with pytest.raises(KeyFileError, match="cannot be read"):
        KeyFile(tmp_path).read()


def test_many_who_add_at_once_lose_none(path: Path) -> None:
    threads = [threading.Thread(target=KeyFile(path).add, args=(f"key {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in KeyFile(path).read()) == [f"key {number}" for number in range(8)]
