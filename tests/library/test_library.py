"""The facade from end to end, on real files, with a fake encoder in place of a model."""

import datetime as dt
import threading
from pathlib import Path

import pytest

import deepwell
from deepwell.errors import LibraryDamagedError, UsageError
from deepwell.library.library import Library
from deepwell.library.records import Answer
from deepwell.testing import HashEncoder, HashImageEncoder, ScriptedChat

NOTES = {
    "boats.md": "# Boats\n\nThe ferry to the island leaves at nine in the morning from the north pier.\n",
    "bees.txt": "The beekeeper counted forty hives behind the chapel in the spring of 1987.\n",
    "bread.txt": "Rye bread needs a sourdough that has stood for two days in a warm kitchen.\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "notes"
    place.mkdir()
    for name, text in NOTES.items():
        (place / name).write_text(text)
    return place


@pytest.fixture
def lib(tmp_path: Path) -> Library:
    made = Library(
        tmp_path / "library", text_encoder=HashEncoder(), image_encoder=HashImageEncoder(), wait_s=0, workers=1
    )
    yield made
    made.close()


def test_add_search_ask_sync_remove(lib: Library, folder: Path) -> None:
    report = lib.add(folder)
    assert (report.added, report.failed, report.unseen) == (3, (), ())
    assert report.passages == 3
    assert report.vectors == 3

    hits = lib.search("how many hives did the beekeeper count")
    assert Path(hits[0].path).name == "bees.txt"
    assert hits[0].kind == "text"
    assert set(hits[0].why) >= {"words", "meaning"}
    assert 0 < hits[0].score <= 1

    answer = lib.ask("How many hives did the beekeeper count?")
    assert not answer.abstained
    assert "forty hives" in answer.text
    assert answer.citations[0].verified
    assert answer.citations[0].quote in NOTES["bees.txt"]
    assert answer.model == "extractive"

    (folder / "bees.txt").unlink()
    (folder / "bread.txt").rename(folder / "loaf.txt")
    (folder / "boats.md").write_text(NOTES["boats.md"].replace("nine", "eleven"))
    planned = lib.sync(dry_run=True)
    assert (planned.dry_run, planned.removed, planned.moved, planned.updated) == (True, 1, 1, 1)
    done = lib.sync()
    assert (done.removed, done.moved, done.updated, done.vectors) == (1, 1, 1, 1)
    assert all(Path(hit.path).name != "bees.txt" for hit in lib.search("beekeeper hives"))
    assert "eleven" in lib.search("ferry to the island")[0].text

    lib.remove(folder / "loaf.txt")
    assert lib.status().documents == 1
    assert lib.sync().added == 0, "what was removed by hand stays out"


def test_nothing_found_is_said_not_invented(lib: Library, folder: Path) -> None:
    lib.add(folder)
    answer = lib.ask("What is the boiling point of tungsten in kelvin?")
    assert answer.abstained
    assert answer.citations == ()


def test_a_model_s_invented_quote_does_not_get_through(lib: Library, folder: Path) -> None:
    lib.add(folder)
    chat = ScriptedChat(['The beekeeper had ninety hives. [1]\n\n[1] "ninety hives behind the chapel"'])
    answer = lib.ask("How many hives did the beekeeper count?", model=chat)
    assert "ninety" not in answer.text
    assert answer.dropped >= 1
    assert all(citation.verified for citation in answer.citations)


def test_a_stream_ends_with_its_answer(lib: Library, folder: Path) -> None:
    lib.add(folder)
    *deltas, last = lib.ask_stream("When does the ferry to the island leave?")
    assert isinstance(last, Answer)
    assert "".join(delta.text for delta in deltas) == last.text


def test_texts_replace_those_of_the_same_id(lib: Library) -> None:
    lib.add_texts(["a red kite over the hill", "tax forms"], ids=["1", "2"], metadata=[{"author": "Ann"}, {}])
    lib.add_texts(["a blue kite over the lake"], ids=["1"])
    hits = lib.search("kite")
    assert [hit.path for hit in hits][:1] == ["text:1"]
    assert "blue" in hits[0].text
    assert lib.status().documents == 2


def test_filters_hold_in_every_arm(lib: Library, folder: Path) -> None:
    lib.add(folder)
    lib.add_texts(["bees and hives in a text"], ids=["x"], metadata=[{"author": "Ann Lee"}])
    assert {hit.path for hit in lib.search("hives", where={"author": "ann lee"})} == {"text:x"}
    assert {Path(hit.path).suffix for hit in lib.search("hives", path="*.md")} <= {".md"}
    tomorrow = dt.date.today() + dt.timedelta(days=1)
    assert len(lib.search("hives", since=tomorrow)) == 0
    with pytest.raises(UsageError, match="film"):
        lib.search("hives", kinds="film")  # type: ignore[arg-type]


def test_another_encoder_takes_over_in_one_step(tmp_path: Path, folder: Path) -> None:
    first, second = HashEncoder(), HashEncoder(name="second", seed=1)
    with Library(tmp_path / "lib", text_encoder=first, workers=1) as lib:
        lib.add(folder)
        assert lib.status().spaces[0].fingerprint == first.fingerprint
    with Library(tmp_path / "lib", text_encoder=second, workers=1) as lib:
        assert lib.status().spaces[0].fingerprint == first.fingerprint
        assert lib.sync().vectors == 3
        (space,) = lib.status().spaces
        assert (space.fingerprint, space.active, space.done, space.total) == (second.fingerprint, True, 3, 3)
        assert "meaning" in lib.search("hives behind the chapel")[0].why


def test_without_a_model_words_still_find(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPWELL_MODELS", str(tmp_path / "no-models"))
    with Library(tmp_path / "lib", workers=1) as lib:
        report = lib.add(folder)
        assert report.vectors == 0
        assert any("deepwell models pull" in notice for notice in report.notices)
        found = lib.search("beekeeper")
        assert Path(found[0].path).name == "bees.txt"
        assert any("deepwell models pull all-minilm-l6-v2" in notice for notice in lib.status().notices)


def test_many_threads_may_search_while_one_writes(lib: Library, folder: Path) -> None:
    lib.add(folder)
    failures: list[BaseException] = []

    def look() -> None:
        try:
            for _ in range(10):
                assert lib.search("beekeeper hives")[0].path.endswith("bees.txt")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    lib.add_texts([f"note number {n} about engines" for n in range(50)])
    for thread in threads:
        thread.join()
    assert not failures


def test_a_folder_that_is_no_library_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(LibraryDamagedError):
        Library(tmp_path / "nothing", create=False)


def test_the_package_offers_the_library_lazily() -> None:
    assert deepwell.Library is Library
    with pytest.raises(AttributeError):
        _ = deepwell.Nothing
