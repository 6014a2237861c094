import subprocess
import sys
from pathlib import Path

import pytest

from deepwell import models
from deepwell.errors import MissingModelError, UsageError
from deepwell.models import shelf
from deepwell.models.shelf import FileRecord, Manifest


def place(folder: Path, name: str = "yamnet", **files: bytes) -> Path:
    """A pulled model with these files, by stem."""
    target = folder / name
    target.mkdir(parents=True)
    records = {}
    for stem, data in (files or {"weights": b"1234"}).items():
        (target / f"{stem}.bin").write_bytes(data)
        records[f"{stem}.bin"] = FileRecord(len(data), shelf.sha256_of(target / f"{stem}.bin"))
    info = models.find(name) if name == "yamnet" else models.find("yamnet")
    shelf.write_manifest(target, Manifest(name, "a test", "2026-01-01T00:00:00+00:00", records), info)
    return target


def test_a_missing_model_names_the_command_that_fetches_it() -> None:
    with pytest.raises(MissingModelError, match="'whisper-tiny' is not on this machine") as caught:
        models.folder("whisper-tiny")
    assert caught.value.hint == "deepwell models pull whisper-tiny"
    assert not models.is_present("whisper-tiny")


def test_an_unknown_name_is_bad_usage_not_missing() -> None:
    with pytest.raises(UsageError):
        models.folder("whisper-tinny")
    with pytest.raises(UsageError):
        models.folder("Whisper Tiny")
    assert not models.is_present("whisper-tinny")


def test_a_pulled_model_is_found(shelf_folder: Path) -> None:
    target = place(shelf_folder)
    assert models.folder("yamnet") == target
    assert models.is_present("yamnet")
    record = models.manifest("yamnet")
    assert record is not None
    assert (record.source, record.size) == ("a test", 4)


def test_a_path_to_a_folder_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path)
    assert models.folder(str(tmp_path / "own")) == tmp_path / "own"
    assert models.folder("./own") == Path("own")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.folder("~/own") == tmp_path / "own"
    with pytest.raises(MissingModelError, match="no folder"):
        models.folder("./other")


def test_a_folder_placed_by_hand_counts_when_the_files_are_there(shelf_folder: Path) -> None:
    target = shelf_folder / "whisper-tiny"
    target.mkdir(parents=True)
    for name in ("config.json", "model.bin", "tokenizer.json"):
        (target / name).write_text("x")
    assert not models.is_present("whisper-tiny")
    (target / "vocabulary.txt").write_text("x")
    assert models.folder("whisper-tiny") == target
    assert models.manifest("whisper-tiny") is None
    assert "placed by hand" in models.verify("whisper-tiny").note


def test_a_folder_that_no_catalogue_knows_can_be_used_and_is_listed(shelf_folder: Path) -> None:
    (shelf_folder / "our-own").mkdir(parents=True)
    with pytest.raises(UsageError):
        models.folder("our-own")
    (shelf_folder / "our-own" / "weights.bin").write_bytes(b"12345")
    assert models.folder("our-own") == shelf_folder / "our-own"
    entry = models.listing()[-1]
    assert (entry.info.name, entry.present, entry.size) == ("our-own", True, 5)


def test_listing_tells_what_is_here(shelf_folder: Path) -> None:
    place(shelf_folder)
    entries = {entry.info.name: entry for entry in models.listing()}
    assert entries["yamnet"].present
    assert entries["yamnet"].folder == shelf_folder / "yamnet"
    assert not entries["whisper-tiny"].present
    assert entries["whisper-tiny"].size == 78_090_594
    assert entries["whisper-tiny"].sets == ("starter",)


def test_verify_names_what_is_wrong(shelf_folder: Path) -> None:
    target = place(shelf_folder, good=b"good", cut=b"1234", gone=b"1", turned=b"abcd")
    assert models.verify("yamnet").ok
    (target / "cut.bin").write_bytes(b"12")
    (target / "gone.bin").unlink()
    (target / "turned.bin").write_bytes(b"abce")
    (target / "stranger.txt").write_text("?")
    result = models.verify("yamnet")
    assert not result.ok
    assert sorted(result.problems) == [
        "cut.bin: 2 bytes, expected 4",
        "gone.bin: missing",
        "turned.bin: its content has changed",
    ]
    assert result.note == "not from the pull: stranger.txt"
    assert shelf.verify(str(target)).problems == result.problems


def test_a_truncated_model_is_missing_not_loaded(shelf_folder: Path) -> None:
    target = place(shelf_folder)
    (target / "weights.bin").write_bytes(b"12")
    with pytest.raises(MissingModelError):
        models.folder("yamnet")
    assert shelf.names_here() == ("yamnet",)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "files": 3}', "\x00"])
def test_a_senseless_manifest_is_none(text: str, shelf_folder: Path) -> None:
    target = place(shelf_folder)
    (target / shelf.MANIFEST).write_text(text)
    assert shelf.read_manifest(target) is None


def test_the_fingerprint_tells_content_apart(shelf_folder: Path) -> None:
    one = shelf.read_manifest(place(shelf_folder, "yamnet", a=b"1", b=b"2"))
    same = shelf.read_manifest(place(shelf_folder / "x", "yamnet", b=b"2", a=b"1"))
    other = shelf.read_manifest(place(shelf_folder / "y", "yamnet", a=b"2", b=b"1"))
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_a_kill_between_the_two_renames_is_finished_by_whoever_looks(shelf_folder: Path) -> None:
    target = place(shelf_folder)
    ready = shelf.ready_folder(target)
    ready.parent.mkdir(parents=True)
    target.rename(ready)
    assert models.folder("yamnet") == target
    assert not ready.exists()


def test_swapping_replaces_the_whole_folder(shelf_folder: Path) -> None:
    target = place(shelf_folder, old=b"old")
    fresh = place(shelf_folder / ".work" / "yamnet" / "x", new=b"new")
    fresh.rename(shelf.ready_folder(target))
    shelf.swap_in(shelf.ready_folder(target), target)
    assert sorted(path.name for path in target.iterdir()) == [shelf.MANIFEST, "new.bin"]
    assert not (shelf_folder / ".work" / "yamnet" / "old").exists()


def test_asking_for_a_folder_imports_nothing_heavy(shelf_folder: Path) -> None:
    place(shelf_folder)
    code = (
        "import sys; from deepwell import models; models.folder('yamnet');"
        "print([name for name in ("
        "'httpx', 'ssl', 'filelock', 'rich', 'numpy', 'tomllib', 'subprocess') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
