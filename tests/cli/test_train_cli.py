"""``deepwell train`` and ``deepwell runs``, on a training that only says what it was asked for."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from filelock import FileLock

import deepwell.lm.training
from deepwell.cli.main import cli
from deepwell.errors import TrainingError
from deepwell.lm.training import reading
from deepwell.lm.training.journal import Journal
from deepwell.lm.training.records import Ended, Started, Stepped, Validated

Call = Callable[..., Any]


@dataclass
class FakeTraining:
    """Takes the place of ``deepwell.lm.training.run``."""

    calls: list[SimpleNamespace] = field(default_factory=list)
    finished: bool = True
    loss: float = 2.5
    bits_per_byte: float | None = 0.75
    raises: BaseException | None = None

    def train(self, recipe: Any, folder: Path, **more: Any) -> SimpleNamespace:
        self.calls.append(SimpleNamespace(recipe=recipe, folder=folder, **more))
        if self.raises:
            raise self.raises
        if more["on_prepare"]:
            more["on_prepare"]("reading", 1, 2)
        folder.mkdir(parents=True, exist_ok=True)
        for record in _records(self.finished):
            for watcher in more["watchers"]:
                watcher(record)
        model = folder / "model" if self.finished else None
        return SimpleNamespace(
            step=3, finished=self.finished, model=model, report=folder / "report.html", loss=self.loss,
            bits_per_byte=self.bits_per_byte,
        )  # fmt: skip


def _records(finished: bool = True) -> Iterator[Any]:
    yield Started(
        name="mine", step=0, steps=4, parameters=1000, active_parameters=1000, trained_parameters=1000, train_tokens=64,
        validation_tokens=8, flops_per_token=6000.0, peak_flops=1e12, processes=1, device="cpu", precision="bf16",
        recipe={"kind": "pretrain"},
    )  # fmt: skip
    for step in range(1, 4):
        yield Stepped(
            step=step, tokens=step * 64, loss=3.0 - step, mtp=(), balance=0.0, lr=1e-3, grad_norm=1.0, sequences=2,
            seconds=0.1, tokens_per_second=640.0, share_of_peak=0.0, memory_mb=50.0, loads=(),
        )  # fmt: skip
    yield Validated(step=3, loss=2.0, bits_per_byte=0.75, predictions=9)
    yield Ended(step=3, tokens=192, seconds=0.3, flops=1e6, finished=finished, model="")


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTraining:
    fake = FakeTraining()
    module = ModuleType("deepwell.lm.training.run")
    module.train = fake.train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepwell.lm.training.run", module)
    monkeypatch.setattr(deepwell.lm.training, "run", module, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "mine.toml").write_text(
        'about = "letters"\n[model]\nnamed = "debug"\n[[data.sources]]\npath = "text.txt"\n[batch]\nsteps = 4\n'
    )
    return fake


def saved(folder: Path) -> None:
    """What a run notes of its recipe in its folder."""
    read = reading.read(Path("mine.toml"))
    content = {"name": read.name, "base": str(read.base), "recipe": reading.to_dict(read.recipe)}
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(content))
    (folder / "journal.jsonl").touch()


def test_a_recipe_is_carried_out_in_a_folder_of_its_name(
    deepwell: Call, training: FakeTraining, tmp_path: Path
) -> None:
    ran = deepwell("train", "mine.toml", "--set", "batch.steps=7", "--set", "seed=3")
    (call,) = training.calls
    assert (call.recipe.batch.steps, call.recipe.seed, call.recipe.about) == (7, 3, "letters")
    assert (call.folder, call.base, call.name, call.resume) == (Path("runs/mine"), tmp_path, "mine", False)
    assert ran.code == 0
    assert ran.out == (
        "done: step 3, loss 2.500, 0.750 bits per byte\n"
        "model: runs/mine/model\nreport: runs/mine/report.html\ntalk to it: deepwell chat runs/mine/model\n"
    )
    assert "step 3  validation loss 2.000" in ran.err
    assert call.on_prepare is None  # nobody watches


def test_a_recipe_that_comes_with_deepwell(deepwell: Call, training: FakeTraining) -> None:
    name, about = next(one for one in reading.shipped() if one[0] == "pretrain-debug")
    assert deepwell("train", name, "--out", "here", "--quiet").err == ""
    assert (training.calls[0].name, training.calls[0].folder) == (name, Path("here"))
    listed = deepwell("train", "--list")
    assert f"{name}\t{about}" in listed.out.splitlines()
    assert {"name": name, "about": about} in json.loads(deepwell("train", "--list", "--json").out)["recipes"]


def test_a_stopped_run_says_how_it_goes_on(deepwell: Call, training: FakeTraining) -> None:
    training.finished, training.bits_per_byte = False, None
    ran = deepwell("train", "mine.toml", "--out", "x")
    assert ran.code == 130
    assert ran.out.startswith("stopped: step 3, loss 2.500\n")
    assert ran.out.endswith("go on: deepwell train --resume --out x\n")


def test_one_object_at_the_end(deepwell: Call, training: FakeTraining) -> None:
    training.loss = float("nan")
    ran = deepwell("train", "mine.toml", "--json")
    assert json.loads(ran.out) == {
        "folder": "runs/mine", "step": 3, "finished": True, "loss": None, "bits_per_byte": 0.75,
        "model": "runs/mine/model", "report": "runs/mine/report.html",
    }  # fmt: skip


@pytest.mark.parametrize("words", [("--resume", "--out", "old"), ("old", "--resume")])
def test_a_run_goes_on_with_the_recipe_of_its_folder(
    deepwell: Call, training: FakeTraining, tmp_path: Path, words: tuple[str, ...]
) -> None:
    saved(tmp_path / "old")
    (tmp_path / "mine.toml").unlink()
    assert deepwell("train", *words, "--set", "checkpoint.every=5").code == 0
    (call,) = training.calls
    assert (call.folder, call.base, call.name, call.resume) == (Path("old"), tmp_path, "mine", True)
    assert (call.recipe.checkpoint.every, call.recipe.batch.steps) == (5, 4)


def test_a_run_goes_on_with_its_recipe_named(deepwell: Call, training: FakeTraining, tmp_path: Path) -> None:
    saved(tmp_path / "runs" / "mine")
    assert deepwell("train", "mine.toml", "--resume").code == 0
    assert training.calls[0].resume


@pytest.mark.parametrize(
    ("content", "told"), [(None, "holds no run to go on with"), ("{", "is damaged"), ('{"name": "x"}', "is damaged")]
)
def test_a_folder_without_a_recipe_cannot_be_gone_on_with(
    deepwell: Call, training: FakeTraining, tmp_path: Path, content: str | None, told: str
) -> None:
    (tmp_path / "old").mkdir()
    if content:
        (tmp_path / "old" / "recipe.json").write_text(content)
    ran = deepwell("train", "--resume", "--out", "old")
    assert ran.code == 2
    assert told in ran.err
    assert not training.calls


def test_a_folder_with_a_run_is_not_begun_in_again(deepwell: Call, training: FakeTraining, tmp_path: Path) -> None:
    saved(tmp_path / "runs" / "mine")
    ran = deepwell("train", "mine.toml")
    assert ran.code == 2
    for part in ("holds a run already", "deepwell train --resume --out runs/mine", "with --out", "--force"):
        assert part in ran.err
    assert not training.calls


def test_force_deletes_the_run_and_nothing_else(deepwell: Call, training: FakeTraining, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    saved(folder)
    (folder / "checkpoints" / "step-4").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "notes.txt").write_text("mine")
    assert deepwell("train", "mine.toml", "--force").code == 0
    assert {path.name for path in folder.iterdir()} - {".lock"} == {"data", "notes.txt"}
    assert not training.calls[0].resume


def test_force_leaves_a_run_that_goes_on_alone(deepwell: Call, training: FakeTraining, tmp_path: Path) -> None:
    saved(tmp_path / "runs" / "mine")
    with FileLock(tmp_path / "runs" / "mine" / ".lock"):
        ran = deepwell("train", "mine.toml", "--force")
    assert ran.code == 2
    assert "is going on" in ran.err
    assert (tmp_path / "runs" / "mine" / "journal.jsonl").exists()
    assert not training.calls


def test_a_folder_of_other_files_is_not_written_into(deepwell: Call, training: FakeTraining, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    for more in ((), ("--force",)):
        ran = deepwell("train", "mine.toml", "--out", "photos", *more)
        assert (ran.code, "not a run's" in ran.err) == (2, True)
    assert not training.calls


def test_a_run_that_failed_before_its_first_step_can_be_begun_again(
    deepwell: Call, training: FakeTraining, tmp_path: Path
) -> None:
    saved(tmp_path / "runs" / "mine")
    (tmp_path / "runs" / "mine" / "journal.jsonl").unlink()
    (tmp_path / "runs" / "mine" / "data").mkdir()
    assert deepwell("train", "mine.toml").code == 0
    assert len(training.calls) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train",), "no recipe is named"),
        (("train", "--resume"), "no recipe is named"),
        (("train", "mine.toml", "--resume", "--force"), "give one of them"),
        (("train", "pretrain-debugg"), "pretrain-debug"),
        (("train", "mine.toml", "--set", "batch.stepz=3"), "batch.stepz=3"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    deepwell: Call, training: FakeTraining, words: tuple[str, ...], told: str
) -> None:
    ran = deepwell(*words)
    assert ran.code == 2
    assert told in ran.err
    assert not training.calls


def test_an_error_of_training_is_a_message(deepwell: Call, training: FakeTraining) -> None:
    training.raises = TrainingError("losses were not finite", hint="lower optimizer.lr")
    ran = deepwell("train", "mine.toml")
    assert (ran.code, ran.out) == (1, "")
    assert "losses were not finite" in ran.err
    assert "lower optimizer.lr" in ran.err
    assert json.loads(deepwell("train", "mine.toml", "--json").out)["error"]["code"] == "training"


def test_ctrl_c_before_the_first_step(deepwell: Call, training: FakeTraining) -> None:
    training.raises = KeyboardInterrupt()
    assert deepwell("train", "mine.toml").code == 130


def test_of_many_processes_only_the_first_speaks_and_looks_at_the_folder(
    deepwell: Call, training: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "runs" / "mine")  # as the first process may have done by then
    monkeypatch.setenv("RANK", "1")
    ran = deepwell("train", "mine.toml")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert len(training.calls) == 1


@pytest.mark.parametrize("words", [("train", "mine.toml", "--set", "batch.stepz=3"), ("train", "--no-such-option")])
def test_of_many_processes_only_the_first_of_a_machine_tells_of_what_all_find_wrong(
    deepwell: Call, training: FakeTraining, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert deepwell(*words).err  # not torchrun's: alone after all
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    ran = deepwell(*words)
    assert (ran.code, ran.out, ran.err) == (2, "", "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert deepwell(*words).err
    monkeypatch.setenv("LOCAL_RANK", "1")
    training.raises = TrainingError("the disk of this machine is full")
    assert "disk of this machine" in deepwell("train", "mine.toml").err


def test_a_dry_run_tells_what_a_run_would_take(deepwell: Call, training: FakeTraining, tmp_path: Path) -> None:
    facts = json.loads(deepwell("train", "mine.toml", "--dry-run", "--json").out)
    assert (facts["name"], facts["steps"]) == ("mine", 4)
    told = dict(line.split("\t") for line in deepwell("train", "mine.toml", "--dry-run").out.splitlines())
    assert told["parameters"] == f"{facts['parameters']:,}"
    assert told["tokens a step"] == f"{facts['tokens_per_step']:,}"
    assert {"steps", "tokens", "operations", "memory of the state"} <= set(told)
    by_data = deepwell("train", "mine.toml", "--dry-run", "--set", "batch.epochs=1").out
    assert "as many as the data gives" in by_data
    assert not training.calls
    assert not (tmp_path / "runs").exists()


def test_the_shell_completes_recipes_and_else_files(training: FakeTraining) -> None:
    complete = ShellComplete(cli, {}, "deepwell", "_DEEPWELL_COMPLETE")
    found = {item.value: item.help for item in complete.get_completions(["train"], "pretrain-d")}
    assert found == {"pretrain-debug": dict(reading.shipped())["pretrain-debug"]}
    (file,) = complete.get_completions(["train"], "my-recip")
    assert file.type == "file"


# ---- runs ----


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, finished in (("whole", True), ("halted", False)):
        told = Journal(tmp_path / "runs" / name / "journal.jsonl")
        for record in _records(finished):
            told(record)
        told.close()
    return tmp_path / "runs"


def test_runs_are_listed_with_how_they_stand(deepwell: Call, trained: Path) -> None:
    header, *rows = (line.split("\t") for line in deepwell("runs").out.splitlines())
    assert header == ["run", "state", "steps", "tokens", "loss", "bits per byte", "last sign"]
    assert sorted(rows) == [
        ["halted", "stopped", "3 of 4", "192", "0.000", "0.750", "now"],
        ["whole", "finished", "3 of 4", "192", "0.000", "0.750", "now"],
    ]
    found = json.loads(deepwell("runs", str(trained), "--json").out)["runs"]
    assert {run["name"]: (run["state"], run["tokens"], run["bits_per_byte"]) for run in found} == {
        "halted": ("stopped", 192, 0.75), "whole": ("finished", 192, 0.75)
    }  # fmt: skip


def test_runs_are_a_table_on_a_terminal(deepwell: Call, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (trained / "broken").mkdir()
    (trained / "broken" / "recipe.json").write_text("{}")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = deepwell("runs").out.splitlines()
    assert lines[0].split()[:3] == ["run", "state", "steps"]
    assert any("broken" in line and "failed" in line and "–" in line for line in lines)


def test_where_nothing_was_trained(deepwell: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "No runs in runs" in deepwell("runs").out
    assert json.loads(deepwell("runs", "--json").out) == {"runs": []}
    assert deepwell("runs", "elsewhere").code == 2
    assert "holds no run" in deepwell("runs", ".", "--report").err


def test_reports_are_written_anew(deepwell: Call, trained: Path) -> None:
    (trained / "broken").mkdir()
    (trained / "broken" / "recipe.json").write_text("{}")
    assert deepwell("runs", "runs/whole", "--report").out == "written: runs/whole/report.html\n"
    assert "<html" in (trained / "whole" / "report.html").read_text()
    assert len(json.loads(deepwell("runs", "--report", "--json").out)["reports"]) == 2
