"""Runs over real folders: what is found, what stays, what goes, and what a run costs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepwell.errors import DeepwellError, UsageError
from deepwell.library.indexing import Encoders, Indexer, Limits, Options, Progress, Setup
from deepwell.library.store import Store
from deepwell.testing import HashEncoder

SETUP = Setup("indexing_fakes:choose", "indexing_fakes:senses", sys_path=(str(Path(__file__).parent), *sys.path))


class Place:
    """A library, a folder, an encoder that counts, and an indexer over them."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "files"
        self.folder.mkdir()
        self.store = Store.open(tmp_path / "library", create=True)
        self.encoder = HashEncoder()
        self.told: list[Progress] = []
        options = Options(
            setup=SETUP, workers=1, reader_versions=dict, limits=Limits(fast_s=3, slow_s=3, memory_mb=150)
        )
        self.indexer = Indexer(
            self.store, encoders=Encoders(text=self.encoder), options=options, progress=self.told.append
        )

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def paths(self, words: str) -> list[str]:
        found = self.store.passages(self.store.match(words, limit=100).ids)
        return sorted(passage.path.removeprefix(str(self.folder) + "/") for passage in found)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.store.close()


def test_add_makes_words_and_vectors_searchable(place: Place) -> None:
    place.write("a.txt", "red apples\n\ngreen pears")
    place.write("deep/er/b.txt", "blue plums")
    place.write("photo.xyz", "not readable")
    report = place.indexer.add([place.folder])
    assert (report.added, report.passages, report.vectors, report.failed) == (2, 3, 3, ())
    assert report.notices == ("1 files are not of a kind that Deepwell reads (.xyz 1)",)
    assert place.paths("plums") == ["deep/er/b.txt"]
    (nearest,) = place.store.nearest("text", place.encoder.encode(["green pears"])[0], limit=1).ids
    assert place.store.passages([nearest])[0].text == "green pears"
    assert place.store.passages([nearest])[0].place.lines == (3, 3)
    phases = [progress.phase for progress in place.told]
    assert phases[0] == "look" and phases[-1] == "tidy" and {"read", "vectors"} <= set(phases)


def test_a_second_run_opens_nothing(place: Place) -> None:
    for n in range(5):
        place.write(f"{n}.txt", f"words {n}")
    place.indexer.add([place.folder])
    generation = place.store.generation
    for path in place.folder.iterdir():
        path.chmod(0)
    report = place.indexer.sync()
    assert (report.unchanged, report.bytes_read, report.failed) == (5, 0, ())
    assert place.store.generation == generation


def test_change_move_delete_copy_touch(place: Place) -> None:
    for n in range(6):
        place.write(f"{n}.txt", f"words number{n}")
    place.indexer.add([place.folder])
    ids = {document.path: document.document_id for document in place.store.documents()}
    encoded = place.encoder.encoded
    place.write("0.txt", "something else altogether")
    (place.folder / "1.txt").rename(place.folder / "one.txt")
    (place.folder / "2.txt").unlink()
    shutil.copy(place.folder / "3.txt", place.folder / "three.txt")
    os.utime(place.folder / "4.txt", (1, 1))
    dry = place.indexer.sync(dry_run=True)
    assert (dry.added, dry.updated, dry.moved, dry.removed, dry.unchanged) == (1, 2, 1, 1, 2)
    assert place.paths("number2") == ["2.txt"]
    report = place.indexer.sync()
    assert (report.added, report.updated, report.moved, report.removed) == (1, 1, 1, 1)
    assert (report.passages, place.encoder.encoded - encoded) == (1, 1)  # only the changed file was encoded
    assert place.paths("number1") == ["one.txt"] and place.paths("number2") == place.paths("number0") == []
    moved = next(d for d in place.store.documents() if d.path.endswith("one.txt"))
    assert moved.document_id == ids[str(place.folder / "1.txt")] and moved.title == "one"
    twins = place.store.snapshot().by_content
    assert sorted(len(rows) for rows in twins.values()) == [1, 1, 1, 1, 2]


def test_a_move_between_disks_is_known_by_its_bytes(place: Place) -> None:
    old = place.write("old.txt", "words that travel")
    place.indexer.add([place.folder])
    encoded = place.encoder.encoded
    new = place.folder / "sub" / "new.txt"
    new.parent.mkdir()
    shutil.copyfile(old, new)  # another inode and another time, as after a copy to another disk
    old.unlink()
    place.write("old-neighbour.txt", "so that the folder is not empty")
    report = place.indexer.sync()
    assert (report.moved, report.removed, report.added) == (1, 0, 1)
    assert place.encoder.encoded - encoded == 1


def test_two_files_that_change_places(place: Place) -> None:
    a, b = place.write("a.txt", "alpha words"), place.write("b.txt", "bravo words")
    for path in (a, b):
        os.utime(path, (1000, 1000))
    place.indexer.add([place.folder])
    a.rename(place.folder / "x")
    b.rename(a)
    (place.folder / "x").rename(b)
    place.indexer.sync()
    assert (place.paths("alpha"), place.paths("bravo")) == (["b.txt"], ["a.txt"])


def test_nothing_is_deleted_without_evidence(place: Place, tmp_path: Path) -> None:
    place.write("a.txt", "alpha")
    place.write("closed/b.txt", "bravo")
    place.indexer.add([place.folder])
    away = tmp_path / "away"
    place.folder.rename(away)
    report = place.indexer.sync()
    assert (report.removed, len(report.unseen)) == (0, 1) and "not there" in report.unseen[0].reason
    place.folder.mkdir()
    report = place.indexer.sync()
    assert (report.removed, len(report.unseen)) == (0, 1) and "empty" in report.unseen[0].reason
    assert place.paths("alpha bravo") == ["a.txt", "closed/b.txt"]
    place.folder.rmdir()
    away.rename(place.folder)
    assert place.indexer.sync().unchanged == 2


def test_a_folder_that_cannot_be_listed_deletes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("a.txt", "alpha")
    place.write("closed/b.txt", "bravo")
    place.indexer.add([place.folder])
    (place.folder / "closed" / "b.txt").unlink()
    real = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("deepwell.library.indexing.walk.os.scandir", refuse)
    report = place.indexer.sync()
    assert report.removed == 0 and [failure.reason for failure in report.unseen] == ["no permission to look at it"]
    monkeypatch.undo()
    assert place.indexer.sync().removed == 1


def test_bad_files_cost_only_themselves(place: Place) -> None:
    for word in ("crash", "hang", "eat", "raise"):
        place.write(f"{word}.trick", word)
    place.write("broken.txt", "BROKEN")
    place.write("good.txt", "good words")
    place.write("late.slow", "slow words")
    (place.folder / "loop").symlink_to("loop")
    (place.folder / "dangling").symlink_to("nothing")
    report = place.indexer.add([place.folder])
    reasons = {Path(failure.path).name: failure.reason for failure in report.failed}
    assert reasons.pop("broken.txt").endswith("is broken")
    assert reasons == {
        "crash.trick": "the process that read it died (it crashed, or the system was out of memory)",
        "hang.trick": "reading it took more than 3 seconds",
        "eat.trick": "reading it took more than 150 MB of memory",
        "raise.trick": "its reader broke: KeyError: 'a bug in a reader'",
        "loop": "a symbolic link in a circle",
        "dangling": "a symbolic link to nothing",
    }
    assert place.paths("words") == ["good.txt", "late.slow"]
    assert len(place.store.status().failed) == 5
    assert len([p for p in place.told if p.failure]) == 5
    place.write("broken.txt", "mended words")
    again = place.indexer.sync()
    assert again.added == 1 and again.unchanged == 6
    assert place.paths("mended") == ["broken.txt"]


def test_what_is_not_installed_is_tried_again(place: Place) -> None:
    place.write("a.trick", "extra")
    assert len(place.indexer.add([place.folder]).failed) == 1
    assert len(place.indexer.sync().failed) == 1
    place.write("b.txt", "BROKEN")
    assert len(place.indexer.sync().failed) == 2
    assert len(place.indexer.sync().failed) == 1
    assert len(place.indexer.sync(retry=True).failed) == 2


def test_readers_that_cannot_start_end_the_run(place: Place) -> None:
    place.write("a.txt", "words")
    indexer = Indexer(place.store, options=Options(setup=Setup("no_such_module:choose"), workers=1))
    with pytest.raises(DeepwellError, match="no_such_module"):
        indexer.add([place.folder])


def test_a_newer_reader_or_an_arrived_model_reads_again(place: Place) -> None:
    place.write("a.txt", "words")
    place.indexer.add([place.folder])
    place.indexer.options = replace(place.indexer.options, reader_versions=lambda: {"fake": 2})
    assert place.indexer.sync(dry_run=True).changes[0].action == "retry"
    document = place.store.documents()[0]
    with place.store.writing() as writer:
        writer.put([replace(document, missing=("whisper-tiny",))])
    place.indexer.options = replace(place.indexer.options, reader_versions=dict)
    assert place.indexer.sync().updated == 0
    place.indexer.options = replace(place.indexer.options, present=lambda name: name == "whisper-tiny")
    assert place.indexer.sync().updated == 1


def test_ignored_files(place: Place) -> None:
    for name in ("a.txt", ".hidden/b.txt", "node_modules/c.txt", "drafts/d.txt", "drafts/keep.txt", "e.txt.tmp"):
        place.write(name, f"common {name}")
    place.indexer.add([place.folder])
    assert place.paths("common") == ["a.txt", "drafts/d.txt", "drafts/keep.txt"]
    place.write(".deepwellignore", "drafts/*\n!keep.txt\n")
    report = place.indexer.sync()
    assert report.removed == 1 and place.paths("common") == ["a.txt", "drafts/keep.txt"]


def test_remove_stays_removed_until_added_again(place: Place) -> None:
    a = place.write("a.txt", "common")
    place.write("sub/b.txt", "common too")
    place.indexer.add([place.folder])
    place.indexer.add_texts(["common note"], ids=["n"])
    assert place.indexer.remove([a, "text:n"]).removed == 2
    assert place.indexer.sync().added == 0
    assert place.paths("common") == ["sub/b.txt"]
    assert place.indexer.add([a]).added == 1
    assert place.indexer.remove([place.folder]).removed == 2
    assert place.store.manifest.roots == ()
    with pytest.raises(UsageError, match="nothing named"):
        place.indexer.remove(["/no/such/thing"])


def test_a_file_named_by_itself_that_is_deleted(place: Place) -> None:
    a = place.write("a.txt", "alpha")
    place.write("other.xyz", "")
    place.indexer.add([a])
    a.unlink()
    report = place.indexer.sync()
    assert (report.removed, report.unseen) == (1, ())
    assert place.store.manifest.roots == ()


def test_names_that_are_not_utf8(place: Place) -> None:
    name = os.fsencode(place.folder) + b"/caf\xe9.txt"
    with open(name, "w") as file:  # noqa: PTH123  (bytes, not a Path)
        file.write("latin words")
    report = place.indexer.add([place.folder])
    assert (report.added, report.failed) == (1, ())
    assert place.paths("latin") == ["caf\\xe9.txt"]
    assert place.indexer.sync().unchanged == 1


def test_add_texts(place: Place) -> None:
    report = place.indexer.add_texts(["one", "two", ""], ids=["a", "b", "c"], metadata=[{"n": 1}, {}, {}])
    assert (report.added, report.passages) == (3, 2)
    again = place.indexer.add_texts(["one", "zwei"], ids=["a", "b"], metadata=[{"n": 1}, {}])
    assert (again.unchanged, again.updated) == (1, 1)
    (hit,) = place.store.passages(place.store.match("zwei", limit=5).ids)
    assert hit.path == "text:b"
    assert place.indexer.add_texts(["same", "same"]).added == 1
    for wrong in ({"ids": ["a"]}, {"ids": ["a", "a"]}, {"metadata": [{}]}, {"ids": ["", "b"]}):
        with pytest.raises(UsageError):
            place.indexer.add_texts(["x", "y"], **wrong)  # type: ignore[arg-type]
    assert place.indexer.sync().removed == 0


def test_a_new_encoder_takes_over_when_it_is_done(place: Place) -> None:
    for n in range(3):
        place.write(f"{n}.txt", f"words number{n}")
    place.indexer.add([place.folder])
    other = HashEncoder(seed=1)

    class Interrupted(HashEncoder):
        def encode(self, texts: object, *, query: bool = False) -> object:  # type: ignore[override]
            raise KeyboardInterrupt

    place.indexer.encoders = Encoders(text=Interrupted(seed=1))
    with pytest.raises(KeyboardInterrupt):
        place.indexer.fill_vectors()
    active = place.store.active_encoder("text")
    assert active is not None and active.fingerprint == place.encoder.fingerprint
    assert {space.active: space.done for space in place.store.spaces()} == {True: 3, False: 0}
    place.indexer.encoders = Encoders(text=other)
    assert place.indexer.sync().vectors == 3
    (space,) = place.store.spaces()
    assert (space.fingerprint, space.active, space.done) == (other.fingerprint, True, 3)


def test_an_error_in_the_middle_leaves_a_good_library(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepwell.library.store.writer import Writer

    for n in range(8):
        place.write(f"{n}.txt", f"words number{n}")
    monkeypatch.setattr(Writer, "put_vectors", _no_space)
    with pytest.raises(OSError, match="No space"):
        place.indexer.add([place.folder])
    assert len(place.paths("words")) == 8  # words were committed before vectors
    monkeypatch.undo()
    report = place.indexer.sync()
    assert (report.vectors, report.unchanged) == (8, 8)
    assert not np.isnan(place.store.vectors("text", place.store.wanted("text"))).any()


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_paths_that_do_not_exist(place: Place) -> None:
    report = place.indexer.add([place.folder / "nothing.txt"])
    assert [failure.reason for failure in report.failed] == ["there is no such file or folder"]
    assert place.store.manifest.roots == ()
