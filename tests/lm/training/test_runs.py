"""Runs of a folder: which there are and how they stand."""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from filelock import FileLock

from deepwell.errors import UsageError
from deepwell.lm.training.journal import Journal
from deepwell.lm.training.records import Record
from deepwell.lm.training.runs import runs

from . import made_up


def put(folder: Path, records: Iterable[Record], when: float = 0) -> Path:
    told = Journal(folder / "journal.jsonl")
    for record in records:
        told(record)
    told.close()
    if when:
        os.utime(folder / "journal.jsonl", (when, when))
    return folder


def test_each_state(tmp_path: Path) -> None:
    put(tmp_path / "whole", made_up.run(steps=20), when=400)
    put(tmp_path / "halted", made_up.run(steps=20, until=7, look_every=0), when=300)
    put(tmp_path / "killed", itertools.islice(made_up.run(steps=20, look_every=0), 5), when=200)
    going = put(tmp_path / "going", itertools.islice(made_up.run(steps=20, look_every=0), 9), when=100)
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "killed" / ".lock").touch()
    with FileLock(going / ".lock"):
        found = runs(tmp_path)
    assert [(run.name, run.state, run.step) for run in found] == [
        ("whole", "finished", 20), ("halted", "stopped", 7), ("killed", "failed", 4), ("going", "running", 8)
    ]  # fmt: skip
    whole, halted, *_ = found
    assert whole.bits_per_byte is not None
    assert halted.bits_per_byte is None
    assert (whole.steps, whole.tokens, whole.when, whole.folder) == (20, 20 * 4096, 400, tmp_path / "whole")
    assert [run.state for run in runs(tmp_path)][-1] == "failed"


def test_a_run_that_has_no_step_yet(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "recipe.json").write_text("{}")
    with FileLock(tmp_path / "new" / ".lock"):
        (run,) = runs(tmp_path)
    assert (run.state, run.step, run.steps, run.loss) == ("running", 0, 0, None)


def test_the_folder_of_one_run(tmp_path: Path) -> None:
    put(tmp_path / "one", made_up.run(steps=3))
    assert [run.name for run in runs(tmp_path / "one")] == ["one"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        runs(tmp_path / "none")
    assert runs(tmp_path) == []
