import errno
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deepwell import models
from deepwell.errors import MissingModelError, ModelSourceError, UsageError
from deepwell.models import pulling, shelf
from deepwell.models.sources import job

BODY = os.urandom(200_000)


def url_source(server, body: bytes = BODY, path: str = "/weights", **more: object) -> dict[str, object]:
    server.files[path] = body
    return {
        "kind": "url",
        "url": server.url + path,
        "file": "weights.bin",
        "sha256": hashlib.sha256(body).hexdigest(),
        **more,
    }


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    """A folder, elsewhere, that holds the folder of a model."""
    place = tmp_path / "stick" / "mine"
    place.mkdir(parents=True)
    (place / "weights.bin").write_bytes(BODY)
    (place / "notes.txt").write_text("not part of it")
    return place


def test_a_pull_records_where_every_byte_came_from(server, add_model, shelf_folder: Path) -> None:
    add_model("mine", url_source(server))
    steps = []
    (pulled,) = models.pull("mine", progress=steps.append)
    assert pulled.folder == shelf_folder / "mine" == models.folder("mine")
    assert (pulled.size, pulled.already) == (len(BODY), False)
    record = models.manifest("mine")
    assert record is not None
    assert record.files == {"weights.bin": shelf.FileRecord(len(BODY), hashlib.sha256(BODY).hexdigest())}
    assert record.source == f"address {server.url}/weights"
    assert {step.doing for step in steps} == {"fetching weights.bin", "checking"}
    assert [path.name for path in (shelf_folder / ".work").iterdir()] == ["mine.lock"]


def test_what_is_here_is_not_fetched_again_unless_forced(server, add_model) -> None:
    add_model("mine", url_source(server))
    models.pull("mine")
    server.asked.clear()
    (again,) = models.pull("mine")
    assert again.already
    assert server.asked == []
    (forced,) = models.pull("mine", force=True)
    assert not forced.already
    assert server.paths() == ["/weights"]


def test_a_damaged_model_is_fetched_again(server, add_model) -> None:
    add_model("mine", url_source(server))
    models.pull("mine")
    (models.folder("mine") / "weights.bin").write_bytes(b"cut")
    models.pull("mine")
    assert models.verify("mine").ok


def test_sources_are_tried_in_order(server, add_model, tmp_path: Path, stick: Path) -> None:
    gone = {"kind": "folder", "path": str(tmp_path / "not mounted")}
    here = {"kind": "folder", "path": str(stick)}
    add_model("mine", gone, here, url_source(server))
    (pulled,) = models.pull("mine")
    assert pulled.source == f"folder {stick}"
    assert server.asked == []
    assert not (pulled.folder / "notes.txt").exists()


def test_when_no_source_works_each_ones_reason_is_told(server, add_model, tmp_path: Path) -> None:
    wrong = url_source(server, path="/wrong", sha256="0" * 64)
    add_model("mine", {"kind": "folder", "path": str(tmp_path / "not mounted")}, wrong)
    with pytest.raises(ModelSourceError, match="none of its sources worked") as caught:
        models.pull("mine")
    assert "there is no folder" in caught.value.message
    assert "its SHA-256 is" in caught.value.message
    assert not models.is_present("mine")


def test_a_model_without_a_source_says_how_to_bring_one(add_model) -> None:
    add_model("mine")
    with pytest.raises(ModelSourceError, match="names no source") as caught:
        models.pull("mine")
    assert caught.value.hint == "deepwell models pull mine --from FOLDER"


def test_a_source_that_brings_too_little_is_not_enough(server, add_model) -> None:
    add_model("mine", url_source(server), files=("weights.bin", "config.json"))
    with pytest.raises(ModelSourceError, match=r"brought no config\.json"):
        models.pull("mine")


def test_several_parts_make_one_model(server, add_model, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    parts = [url_source(server), {"kind": "folder", "path": str(tmp_path), "files": ["config.json"]}]
    add_model("mine", {"parts": parts}, files=("weights.bin", "config.json"))
    models.pull("mine")
    record = models.manifest("mine")
    assert record is not None
    assert sorted(record.files) == ["config.json", "weights.bin"]


@pytest.mark.parametrize("inner", [False, True])
def test_a_folder_named_by_hand_is_taken_instead(inner: bool, server, add_model, stick: Path) -> None:
    add_model("mine", url_source(server))
    models.pull("mine", source=stick if inner else stick.parent)
    assert (models.folder("mine") / "weights.bin").read_bytes() == BODY
    assert server.asked == []


def test_a_pulled_model_carried_to_another_machine_is_checked(server, add_model, tmp_path: Path, monkeypatch) -> None:
    add_model("mine", url_source(server))
    models.pull("mine")
    carried = models.folder("mine")
    there = tmp_path / "there"
    there.mkdir()
    (there / "catalogue.toml").write_text((carried.parent / "catalogue.toml").read_text())
    monkeypatch.setenv("DEEPWELL_MODELS", str(there))
    models.pull("mine", source=carried.parent)
    assert models.verify("mine").ok
    models.remove("mine")
    (carried / "weights.bin").write_bytes(BODY[:-1] + bytes([BODY[-1] ^ 1]))
    with pytest.raises(ModelSourceError, match="is damaged: its SHA-256"):
        models.pull("mine", source=carried.parent)


def test_the_wrong_folder_is_refused_by_what_it_lacks(add_model, tmp_path: Path) -> None:
    add_model("mine")
    with pytest.raises(ModelSourceError, match=r"is not the model 'mine': weights\.bin missing"):
        models.pull("mine", source=tmp_path)


def test_of_a_set_the_rest_is_pulled_when_one_fails(server, add_model, shelf_folder: Path) -> None:
    add_model("bad", url_source(server, path="/bad", sha256="0" * 64))
    add_model("good", url_source(server))
    with (shelf_folder / "catalogue.toml").open("a") as file:
        file.write('[sets]\nboth = ["bad", "good"]\n')
    with pytest.raises(ModelSourceError, match="'bad' was not pulled"):
        models.pull("both")
    assert models.is_present("good")


def test_an_unknown_name_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(UsageError, match="no model named 'nobody'"):
        models.pull("nobody")


def test_a_failed_pull_leaves_the_old_model(server, add_model) -> None:
    add_model("mine", url_source(server))
    models.pull("mine")
    server.files["/weights"] = b"something else"
    with pytest.raises(ModelSourceError):
        models.pull("mine", force=True)
    assert models.verify("mine").ok


def test_no_room_is_found_out_before_the_fetch(server, add_model, monkeypatch: pytest.MonkeyPatch) -> None:
    add_model("mine", url_source(server, size=len(BODY)), url_source(server, path="/mirror"))
    monkeypatch.setattr(job.shutil, "disk_usage", lambda place: _Usage(1_000_000))
    with pytest.raises(ModelSourceError, match=r"no room for the model 'mine'.* are needed, 1 MB are free") as caught:
        models.pull("mine")
    assert "DEEPWELL_MODELS" in caught.value.hint
    assert server.asked == []


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_disk_that_fills_up_meanwhile_ends_the_pull_clearly(server, add_model, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    add_model("mine", url_source(server), url_source(server, path="/mirror"))
    monkeypatch.setattr(pulling, "fetch", full)
    with pytest.raises(ModelSourceError, match="no room for the model 'mine'"):
        models.pull("mine")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPWELL_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(UsageError, match="cannot be written") as caught:
        models.pull("yamnet")
    assert "DEEPWELL_MODELS" in caught.value.hint


def test_two_pulls_at_once_fetch_once(server, add_model) -> None:
    add_model("mine", url_source(server))
    server.pause = 0.02
    waited: list[str] = []
    results: list[models.pulling.Pulled] = []

    def run() -> None:
        results.extend(models.pull("mine", progress=lambda step: waited.append(step.doing)))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.paths() == ["/weights"]
    assert sorted(one.already for one in results) == [False, True]
    assert "waiting for another pull of it" in waited


def test_remove_frees_the_model_and_its_leftovers(server, add_model, shelf_folder: Path) -> None:
    add_model("mine", url_source(server))
    models.pull("mine")
    left = shelf_folder / ".work" / "mine" / "parts" / "x.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"12345")
    freed = models.remove("mine")
    assert freed > len(BODY) + 5
    assert not models.is_present("mine")
    assert not (shelf_folder / "mine").exists()
    assert not left.exists()


def test_remove_what_is_not_here_or_not_ours(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError):
        models.remove("yamnet")
    with pytest.raises(UsageError, match="no model named"):
        models.remove("nobody")
    (tmp_path / "own").mkdir()
    with pytest.raises(UsageError, match="is a path"):
        models.remove(str(tmp_path / "own"))
    assert (tmp_path / "own").exists()


def test_remove_waits_for_nobody(server, add_model) -> None:
    add_model("mine", url_source(server))
    server.pause = 0.05
    pulling_thread = threading.Thread(target=models.pull, args=("mine",))
    pulling_thread.start()
    while not server.asked:
        time.sleep(0.005)
    with pytest.raises(ModelSourceError, match="is being pulled by another process"):
        models.remove("mine")
    pulling_thread.join()
    assert models.verify("mine").ok


@pytest.mark.slow
def test_killed_at_any_moment_the_model_is_the_old_or_the_new_one(server, add_model) -> None:
    old, new = os.urandom(150_000), os.urandom(150_000)
    add_model("mine", url_source(server, old))
    models.pull("mine")
    shelf_file = models.folder("mine").parent / "catalogue.toml"
    shelf_file.unlink()
    add_model("mine", url_source(server, new))
    server.pause = 0.01
    code = "from deepwell import models; models.pull('mine', force=True)"
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    whole = time.monotonic() - started
    chance = random.Random(7)
    seen = set()
    for _ in range(12):
        running = subprocess.Popen([sys.executable, "-c", code])
        time.sleep(chance.uniform(0.3, 1.1) * whole)
        running.kill()
        running.wait()
        result = models.verify("mine")
        assert result.ok, result
        seen.add((models.folder("mine") / "weights.bin").read_bytes() in (old, new))
    assert seen == {True}
    server.pause = 0.0
    models.pull("mine", force=True)
    assert (models.folder("mine") / "weights.bin").read_bytes() == new
