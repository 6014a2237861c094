"""Whatever happens to a folder, after a sync the library is what a plain model says it should be.

The model is a dictionary from path to text. Files are read in this process, so that a sync takes milliseconds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deepwell.library.indexing import Encoders, Indexer, Options, Setup, run, worker
from deepwell.library.store import Store
from deepwell.testing import FakeReader, FakeSenses, HashEncoder

FOLDERS = ("", "x", "x/y")
NAMES = ("a.txt", "b.txt", "c.txt")
TEXTS = ("red apple", "green pear\n\nblue plum", "BROKEN", "")


class PoolHere:
    """A pool without processes."""

    def __init__(self, *_: object, **__: object) -> None:
        self.tasks: list[worker.Task] = []
        self.slow_left = 0

    def __enter__(self) -> PoolHere:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def fast_left(self) -> int:
        return len(self.tasks)

    @property
    def busy(self) -> bool:
        return bool(self.tasks)

    def submit(self, tasks: Iterable[worker.Task]) -> None:
        self.tasks.extend(tasks)

    def next(self, timeout: float) -> tuple[worker.Task, worker.Outcome]:
        task = self.tasks.pop(0)
        return task, worker.read_file(task, lambda path: FakeReader(), FakeSenses)


class Folder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(run, "ReaderPool", PoolHere)
        self.scratch = Path(tempfile.mkdtemp())
        self.root = self.scratch / "files"
        self.root.mkdir()
        self.clock = 1_000_000_000
        self.model: dict[str, str] = {}
        self.unlistable: set[str] = set()
        self.store = Store.open(self.scratch / "library", create=True)
        self.encoder = HashEncoder(dim=4)
        encoders = Encoders(text=self.encoder)
        self.indexer = Indexer(self.store, encoders=encoders, options=Options(setup=Setup(), reader_versions=dict))
        self.write("", "anchor.txt", "always here")
        self.synced: dict[str, str] = {}
        self.indexer.add([self.root])
        self.settle()

    def teardown(self) -> None:
        self.patch.undo()
        self.store.close()
        shutil.rmtree(self.scratch)

    def path(self, folder: str, name: str) -> Path:
        return self.root / folder / name

    def write(self, folder: str, name: str, text: str) -> None:
        path = self.path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.clock += 1  # each write has a time of its own, as on a real disk
        os.utime(path, ns=(self.clock, self.clock))
        self.model[str(path)] = text

    @rule(folder=st.sampled_from(FOLDERS), name=st.sampled_from(NAMES), text=st.sampled_from(TEXTS))
    def create_or_change(self, folder: str, name: str, text: str) -> None:
        self.write(folder, name, text)

    @rule(folder=st.sampled_from(FOLDERS), name=st.sampled_from(NAMES))
    def delete(self, folder: str, name: str) -> None:
        self.path(folder, name).unlink(missing_ok=True)
        self.model.pop(str(self.path(folder, name)), None)

    @rule(
        folder=st.sampled_from(FOLDERS),
        name=st.sampled_from(NAMES),
        to=st.sampled_from(FOLDERS),
        to_name=st.sampled_from(NAMES),
    )
    def move(self, folder: str, name: str, to: str, to_name: str) -> None:
        old, new = self.path(folder, name), self.path(to, to_name)
        if str(old) in self.model and old != new:
            new.parent.mkdir(parents=True, exist_ok=True)
            old.replace(new)
            self.model[str(new)] = self.model.pop(str(old))

    @rule(folder=st.sampled_from(FOLDERS[1:]))
    def delete_folder(self, folder: str) -> None:
        shutil.rmtree(self.root / folder, ignore_errors=True)
        prefix = f"{self.root / folder}/"
        self.model = {path: text for path, text in self.model.items() if not path.startswith(prefix)}

    @rule(folder=st.sampled_from(FOLDERS[1:]))
    def sync_while_a_folder_cannot_be_listed(self, folder: str) -> None:
        """What lies there stays as it was; the rest is brought in step."""
        closed = str(self.root / folder)
        if not Path(closed).is_dir():
            return
        real = os.scandir

        def refuse(path: str) -> object:
            if str(path) == closed:
                raise PermissionError(13, "Permission denied")
            return real(path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deepwell.library.indexing.walk.os.scandir", refuse)
            report = self.indexer.sync()
        assert len(report.unseen) == 1
        held = {document.path for document in self.store.documents()}
        before = {path for path in self.synced if path.startswith(closed + "/")}
        # A file may have moved out of the closed folder: then it is held, under its new name.
        moved = {change.old_path for change in report.changes if change.action == "move"}
        assert before - moved <= held
        self.synced = {document.path: "" for document in self.store.documents()}

    @rule()
    @precondition(lambda self: True)
    def sync(self) -> None:
        self.indexer.sync()
        self.settle()

    def settle(self) -> None:
        """The library is the model."""
        self.synced = dict(self.model)
        documents = {document.path: document for document in self.store.documents()}
        assert set(documents) == set(self.model)
        live = self.store.live_passages(("passage_id", "content_id", "ordinal", "text")).to_pylist()
        texts: dict[str, list[str]] = {}
        for row in sorted(live, key=lambda row: row["ordinal"]):
            texts.setdefault(row["content_id"], []).append(row["text"])
        for path, text in self.model.items():
            broken = text.startswith("BROKEN")
            assert documents[path].state == ("failed" if broken else "ok")
            expected = [] if broken else [part for part in text.split("\n\n") if part]
            assert texts.get(documents[path].content_id, []) == expected
        ids = [row["passage_id"] for row in live]
        assert len(ids) == len(set(ids)) == self.store.tables.get("passages").count_rows()
        for space in self.store.spaces():
            assert space.done == space.total == len(ids)
        before = self.encoder.encoded
        report = self.indexer.sync()
        assert not (report.added or report.updated or report.moved or report.removed or report.vectors)
        assert report.unchanged == len(self.model) and self.encoder.encoded == before

    @invariant()
    def one_row_a_file(self) -> None:
        paths = [document.path for document in self.store.documents()]
        assert len(paths) == len(set(paths))


Folder.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestFolder = Folder.TestCase
