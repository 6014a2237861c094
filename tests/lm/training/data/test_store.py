"""Files of tokens: read as written, and never taken for whole when they are not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepwell.lm.training.data import store
from deepwell.lm.training.data.store import (
    MANIFEST,
    Documents,
    SideWriter,
    checksum,
    open_side,
    read_manifest,
    write_manifest,
)


def test_documents_come_back(write_side: Callable[..., Documents]) -> None:
    found = write_side([[1, 2, 3], [], [59_999]], times=[1, 2, 3])
    assert [found.document(number).tolist() for number in range(len(found))] == [[1, 2, 3], [], [59_999]]
    assert found.tokens.dtype == np.uint16
    assert (found.bytes.tolist(), found.times.tolist(), found.learned) == ([3, 0, 1], [1, 2, 3], None)
    assert not found.held_back


def test_large_vocabularies_and_chats(tmp_path: Path) -> None:
    with SideWriter(tmp_path, "validation", vocab_size=70_000, chats=True) as writer:
        writer.add([69_999, 5], size=7, times=1, learned=np.array([False, True]))
        writer.finish()
    found = open_side(tmp_path, "validation", vocab_size=70_000, chats=True)
    assert found.document(0).tolist() == [69_999, 5]
    assert found.learned is not None
    assert found.learned.tolist() == [0, 1]
    assert found.held_back


def test_an_empty_side(tmp_path: Path) -> None:
    with SideWriter(tmp_path, "validation", vocab_size=100, chats=False) as writer:
        writer.finish()
    assert len(open_side(tmp_path, "validation", vocab_size=100, chats=False)) == 0


def test_until_it_is_finished_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), SideWriter(tmp_path, "train", vocab_size=9, chats=False) as writer:
        writer.add([1], size=1, times=1)
        raise RuntimeError("stop")
    assert not list(tmp_path.glob("*.bin"))


def test_the_manifest_counts_for_its_key_and_whole_files(tmp_path: Path) -> None:
    with SideWriter(tmp_path, "train", vocab_size=9, chats=False) as writer:
        writer.add([1, 2], size=2, times=1)
        files = writer.finish()
    assert read_manifest(tmp_path, {"a": 1}) is None
    write_manifest(tmp_path, {"key": {"a": 1}, "facts": {}, "files": files})
    assert read_manifest(tmp_path, {"a": 1}) is not None
    assert read_manifest(tmp_path, {"a": 2}) is None
    content = bytearray((tmp_path / "train.bin").read_bytes())
    content[0] ^= 1
    (tmp_path / "train.bin").write_bytes(content)
    assert read_manifest(tmp_path, {"a": 1}) is None
    for damaged in ("{", "[]", '{"key": {"a": 1}, "files": [3]}'):
        (tmp_path / MANIFEST).write_text(damaged, encoding="utf-8")
        assert read_manifest(tmp_path, {"a": 1}) is None


def test_checksums_see_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_CHECKED", 10)
    path = tmp_path / "a.bin"
    told = set()
    for content in (b"0" * 100, b"1" + b"0" * 99, b"0" * 99 + b"1", b"0" * 101):
        path.write_bytes(content)
        told.add(checksum(path))
    assert len(told) == 4
