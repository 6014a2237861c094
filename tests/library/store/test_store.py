"""The store: liveness, scopes in every arm, switching in one commit, bounded files, locks, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from deepwell.errors import LibraryBusyError, LibraryDamagedError
from deepwell.library.records import Filters, Label, Passage, Place
from deepwell.library.store import NewPassage, Store, StoredDocument, content_id, new_passages
from deepwell.library.store.snapshot import path_matcher


def made(name: str, *texts: str, **fields: object) -> tuple[StoredDocument, list[NewPassage]]:
    content = content_id("|".join(texts), "test", 1)
    values: dict[str, object] = {"path": f"/files/{name}", "kind": "text", "title": name} | fields
    document = StoredDocument(document_id=f"id-{name}", content_id=content, **values)  # type: ignore[arg-type]
    return document, new_passages(content, [Passage(text) for text in texts])


def put(store: Store, *rows: tuple[StoredDocument, list[NewPassage]]) -> None:
    with store.writing() as writer:
        writer.put([document for document, _ in rows], [p for _, passages in rows for p in passages])


def found(store: Store, words: str, **options: object) -> list[str]:
    ids = store.match(words, limit=50, **options).ids  # type: ignore[arg-type]
    return [passage.path.removeprefix("/files/") for passage in store.passages(ids, **options)]  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "library", create=True)


def test_passages_come_back_as_they_were_put(store: Store) -> None:
    content = content_id("x", "test", 1)
    document = StoredDocument("d", "/files/a.pdf", "pdf", "A", content, mtime_ns=5 * 10**9, metadata={"author": "Ann"})
    passage = Passage("two boats", Place(page=3, lines=(1, 2), section=("One", "Two")), "image", (Label("boat", 0.5),))
    put(store, (document, new_passages(content, [passage])))
    (got,) = store.passages(store.match("boat", limit=3).ids)
    assert (got.text, got.place, got.modality, got.labels) == ("two boats", passage.place, "image", passage.labels)
    assert (got.document_id, got.path, got.kind, got.title) == ("d", "/files/a.pdf", "pdf", "A")
    assert (dict(got.metadata), got.modified, got.passage_id) == ({"author": "Ann"}, 5.0, f"{content}-0")


def test_a_changed_document_switches_in_one_step(store: Store) -> None:
    put(store, made("a", "old words"), made("b", "old friends"))
    before = store.generation
    put(store, made("a", "new words"))
    assert store.generation > before
    assert found(store, "old") == ["b"]
    assert found(store, "new") == ["a"]


def test_passages_without_a_document_are_invisible_and_collected(store: Store) -> None:
    put(store, made("a", "kept words"))
    _, orphans = made("b", "orphan words")
    with store.writing() as writer:
        writer.put([], orphans)
        assert found(store, "orphan") == []
    assert store.tables.get("passages").count_rows() == 1


def test_weighted_words(store: Store) -> None:
    put(store, made("a", "apple"), made("b", "banana"))
    assert found(store, "apple banana") and store.passages(store.match({"apple": 1.0, "banana": 5.0}, limit=1).ids)
    assert store.passages(store.match({"apple": 1.0, "banana": 5.0}, limit=1).ids)[0].title == "b"
    assert store.passages(store.match({"apple": 5.0, "banana": 1.0}, limit=1).ids)[0].title == "a"
    for nothing in ("", "  ", "the", {}, {"apple": 0.0}):
        assert len(store.match(nothing, limit=5)) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "title"),
    [("人工智能", "ai"), ("公园", "park"), ("索引", "db"), ("首都", "tokyo"), ("running", "run"), ("CAFE", "cafe")],
)
def test_words_of_other_scripts_and_forms(store: Store, query: str, title: str) -> None:
    put(
        store,
        made("ai", "机器学习是人工智能的一个分支，研究算法。"),
        made("park", "今天天气很好，我们去公园散步。"),
        made("db", "数据库索引可以加快查询速度。"),
        made("tokyo", "東京は日本の首都です。"),
        made("run", "she runs every day"),
        made("cafe", "a café by the sea"),
    )
    assert found(store, query) == [title]


@pytest.mark.parametrize("word", ["cat", "dog", "sea", "die", "men", "son", "ten", "fort", "mine", "data"])
def test_stop_words_of_other_languages_are_words(store: Store, word: str) -> None:
    put(store, made("held", f"this is the {word} of it"), made("other", "lighthouse"))
    assert found(store, word) == ["held"]


def library_of_many(store: Store, count: int) -> list[str]:
    """Documents 0..count-1, each the same words and a vector that turns slowly, so that rank follows number."""
    rows = [made(f"{n}", f"common words number{n}", kind="pdf" if n % 2 else "text") for n in range(count)]
    put(store, *rows)
    ids = [passages[0].passage_id for _, passages in rows]
    angles = np.linspace(0, 1.5, count, dtype=np.float32)
    with store.writing() as writer:
        table = writer.vector_table("text", "angles", "angles-1", 8)
        vectors = np.zeros((count, 8), dtype=np.float32)
        vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
        writer.put_vectors(table, ids, vectors)
    return ids


QUERY = np.array([np.cos(1), -np.sin(1), 0, 0, 0, 0, 0, 0], dtype=np.float32)  # not beside the first: halves are coarse


@pytest.mark.parametrize("indexed", [False, True])
def test_every_arm_keeps_to_a_narrow_scope(tmp_path: Path, indexed: bool) -> None:
    store = Store.open(tmp_path / "library", create=True)
    if indexed:
        store.index_vectors_from = 1000
    ids = library_of_many(store, 1200)
    assert bool(store.manifest.vectors[0].trained) == indexed
    # The allowed ones are the very last of the ranking, so a filter after the fact would find none.
    within = store.scope(Filters(path="*/119?"))
    assert within is not None and len(within.contents) == 10
    assert store.nearest("text", QUERY, limit=4, within=within).ids == tuple(ids[1190:1194])
    assert set(store.match("common", limit=20, within=within).ids) == set(ids[1190:])
    wide = store.scope(Filters(kinds=("pdf",)))
    assert store.nearest("text", QUERY, limit=5, within=wide).ids == (ids[1], ids[3], ids[5], ids[7], ids[9])
    assert set(store.match("common", limit=700, within=wide).ids) == set(ids[1::2])
    nobody = store.scope(Filters(path="/nowhere"))
    assert len(store.nearest("text", QUERY, limit=5, within=nobody)) == 0
    assert len(store.match("common", limit=5, within=nobody)) == 0


def test_removed_documents_vanish_from_every_arm(store: Store) -> None:
    ids = library_of_many(store, 30)
    with store.writing() as writer:
        writer.remove(["id-0", "id-1"])
        assert store.nearest("text", QUERY, limit=2).ids == (ids[2], ids[3])
        assert ids[0] not in store.match("common", limit=50).ids
        assert store.passages(ids[:3])[0].title == "2"
    assert store.tables.get("passages").count_rows() == 28
    (space,) = store.spaces()
    assert (space.done, space.total, space.active) == (28, 28, True)


def test_vectors_of_what_has_none_are_nan(store: Store) -> None:
    ids = library_of_many(store, 3)
    got = store.vectors("text", [ids[1], "nothing-0"])
    assert got.shape == (2, 8) and np.isnan(got[1]).all()
    assert abs(float(np.linalg.norm(got[0])) - 1) < 1e-3
    assert store.vectors("image", ids).shape == (3, 0)
    assert len(store.nearest("image", QUERY, limit=3)) == 0


def test_scope_filters(store: Store) -> None:
    put(
        store,
        made("a.pdf", "a", kind="pdf", created=100.0, metadata={"author": "Ann", "year": 2024}),
        made("reports/b.pdf", "b", kind="pdf", created=200.0, metadata={"author": "Bob"}),
        made("reports/c.txt", "c", created=300.0, metadata={"author": "ann"}),
    )

    def names(**filters: object) -> set[str]:
        scope = store.scope(Filters(**filters))  # type: ignore[arg-type]
        assert scope is not None
        return {document.removeprefix("id-") for document in scope.documents}

    assert store.scope(Filters()) is None
    assert names(kinds=("pdf",)) == {"a.pdf", "reports/b.pdf"}
    assert names(path="*.pdf") == {"a.pdf", "reports/b.pdf"}
    assert names(path="reports") == names(path="/files/reports/") == {"reports/b.pdf", "reports/c.txt"}
    assert names(path="reports/*.txt") == {"reports/c.txt"}
    assert names(since=200.0) == {"reports/b.pdf", "reports/c.txt"}
    assert names(until=200.0) == {"a.pdf"}
    assert names(where={"author": "ANN"}) == {"a.pdf", "reports/c.txt"}
    assert names(where={"author": "ann", "year": "2024"}) == {"a.pdf"}
    assert names(where={"colour": "red"}) == set()


def test_path_matcher_does_not_match_parts_of_names() -> None:
    assert not path_matcher("report")("/files/reports/a")
    assert path_matcher("text:*")("text:note")
    assert not path_matcher("/files/a*")("/home/files/ab")


def test_same_content_in_two_places(store: Store) -> None:
    put(store, made("one/a", "twin"), made("two/a", "twin"))
    assert store.tables.get("passages").count_rows() == 1
    assert found(store, "twin", within=store.scope(Filters(path="two"))) == ["two/a"]
    with store.writing() as writer:
        writer.remove(["id-one/a"])
    assert found(store, "twin") == ["two/a"]


def test_many_small_runs_leave_few_files(store: Store) -> None:
    for n in range(70):
        put(store, made(f"{n}", f"words number{n}"))
    status = store.status()
    assert status.documents == status.passages == 70
    assert status.files_on_disk < 400
    versions = [len(list(p.glob("*.manifest"))) for p in store.tables.folder.glob("*.lance/_versions")]
    assert max(versions) <= 45
    assert found(store, "number69") == ["69"]


def test_a_new_encoder_switches_when_it_is_told(store: Store) -> None:
    ids = library_of_many(store, 4)
    with store.writing() as writer:
        table = writer.vector_table("text", "other", "other-1", 4)
        assert not table.active and writer.without_vector(table, ids) == ids
        writer.put_vectors(table, ids, np.eye(4, dtype=np.float32))
        assert store.nearest("text", QUERY, limit=1).ids == (ids[0],)  # still the old one's space
        writer.switch(table)
    active = store.active_encoder("text")
    assert active is not None and active.fingerprint == "other-1"
    assert store.nearest("text", np.eye(4, dtype=np.float32)[2], limit=1).ids == (ids[2],)
    assert len(list(store.tables.folder.glob("vectors-*"))) == 1


def test_another_process_sees_commits_and_the_lock(store: Store) -> None:
    put(store, made("a", "first words"))
    code = f"""
import sys
from pathlib import Path
from deepwell.errors import LibraryBusyError
from deepwell.library.store import Store
store = Store.open(Path({str(store.folder)!r}))
print(store.generation, len(store.match("second", limit=5)), flush=True)
try:
    with store.writing():
        print("wrote")
except LibraryBusyError as error:
    print(error.message, flush=True)
sys.stdin.readline()
print(store.generation, len(store.match("second", limit=5)), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        with store.writing() as writer:
            assert other.stdout.readline().split() == ["1", "0"]
            assert f"process {os.getpid()} on" in other.stdout.readline()
            document, passages = made("b", "second words")
            writer.put([document], passages)
        assert store.status().writer is None
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline().split() == ["2", "1"]


def test_the_second_writer_waits_or_is_told(store: Store) -> None:
    lines: list[str] = []
    holds, release = threading.Event(), threading.Event()

    def hold() -> None:
        with store.writing():
            holds.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()
    other = Store.open(store.folder)
    assert "process" in (other.status().writer or "")
    with pytest.raises(LibraryBusyError, match=str(os.getpid())), other.writing(wait=0.2, on_wait=lines.append):
        pass
    assert "waiting for process" in lines[0]
    threading.Timer(0.1, release.set).start()
    with other.writing(wait=-1):
        pass
    thread.join()


def test_readers_are_undisturbed_while_a_writer_works(store: Store) -> None:
    put(store, *[made(f"{n}", f"steady words {n}") for n in range(20)])
    reader = Store.open(store.folder)
    problems: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            ids = reader.match("steady", limit=30).ids
            if len(ids) != 20 or len(reader.passages(ids)) != 20:
                problems.append(f"{len(ids)} found")

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(30):
        put(store, made("changing", f"changing words {n}"))
    store.tables.optimize("passages")
    store.tables.optimize("documents")
    stop.set()
    thread.join()
    assert problems == []


def test_not_a_library(tmp_path: Path) -> None:
    with pytest.raises(LibraryDamagedError, match="not a library"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(LibraryDamagedError, match=r"letter\.txt"):
        Store.open(tmp_path, create=True)
    library = tmp_path / "library"
    Store.open(library, create=True)
    manifest = json.loads((library / "library.json").read_text())
    (library / "library.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(LibraryDamagedError, match="format 99"):
        Store.open(library)
    (library / "library.json").write_text("{")
    with pytest.raises(LibraryDamagedError, match="cannot be read"):
        Store.open(library)


def test_a_creation_that_was_killed_is_done_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "library", create=True)
    store.close()
    (tmp_path / "library" / "library.json").unlink()
    store = Store.open(tmp_path / "library", create=True)
    put(store, made("a", "words"))
    assert found(store, "words") == ["a"]


def test_names_that_are_not_utf8(store: Store) -> None:
    path = os.fsdecode(b"/files/caf\xe9.txt")
    put(store, made("x", "words", path=path))
    assert store.documents()[0].path == path
    assert found(store, "words") == ["caf\\xe9.txt"]
