"""Whole runs on a tiny network: learn, stop, go on to the bit, survive bad losses, write what others open."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from deepwell import Model
from deepwell.errors import RecipeError, TrainingError, UsageError
from deepwell.lm import load
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.training import reading
from deepwell.lm.training.checkpoint import Checkpoints
from deepwell.lm.training.describing import describe
from deepwell.lm.training.journal import comparable, read
from deepwell.lm.training.loop import Loop
from deepwell.lm.training.recipe import (
    DataSection,
    GuardSection,
    MemorySection,
    ModelSection,
    OptimizerSection,
    PrecisionSection,
    SourceSection,
)
from deepwell.lm.training.records import Ended, Noted, Record, Sampled, Started, Stepped, Validated
from deepwell.lm.training.run import Outcome

from .small_runs import recipe, run, write_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def finished(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, list[Record]]:
    """A run that was never stopped."""
    folder, told = tmp_path_factory.mktemp("runs") / "whole", list[Record]()
    return folder, run(recipe(texts), folder, watchers=[told.append]), told


def test_a_run_learns_and_tells(finished: tuple[Path, Outcome, list[Record]]) -> None:
    folder, outcome, told = finished
    steps = [record for record in told if isinstance(record, Stepped)]
    assert [record.step for record in steps] == list(range(1, 9))
    assert steps[-1].loss < steps[0].loss - 0.3
    assert all(len(layer) == 8 and abs(sum(layer) - 1) < 1e-4 for record in steps for layer in record.loads)
    assert len(steps[0].loads) == 2  # one layer of experts, and that of the MTP module
    assert steps[-1].tokens == 8 * 4 * 32
    looks = [record for record in told if isinstance(record, Validated)]
    assert [look.step for look in looks] == [4, 8]
    assert looks[-1].bits_per_byte == outcome.bits_per_byte < looks[0].bits_per_byte
    assert sum(isinstance(record, Sampled) for record in told) == 1
    (begun,) = [record for record in told if isinstance(record, Started)]
    assert begun.parameters == begun.trained_parameters > begun.active_parameters > 0
    (ended,) = [record for record in told if isinstance(record, Ended)]
    assert ended.finished and outcome.finished and outcome.step == 8
    assert comparable(read(folder / "journal.jsonl")) == comparable(told)
    assert outcome.report is not None and "<svg" in outcome.report.read_text(encoding="utf-8")


def test_the_engine_opens_what_was_trained(finished: tuple[Path, Outcome, list[Record]]) -> None:
    _, outcome, _ = finished
    assert outcome.model is not None
    (text,) = Model.load(outcome.model).generate(["the well"], SamplingParams(temperature=0, max_tokens=4))
    assert text.text


def tensors(folder: Path) -> dict[str, bytes]:
    loaded = Checkpoints(folder / "checkpoints", keep=2).load()
    return {name: value.contiguous().view(torch.uint8).numpy().tobytes() for name, value in loaded.tensors.items()}


@pytest.mark.parametrize("stop", [2, 5])
def test_a_stopped_run_goes_on_to_the_bit(
    texts: Path, tmp_path: Path, finished: tuple[Path, Outcome, list[Record]], stop: int
) -> None:
    whole, outcome, told = finished

    def watch(record: Record) -> None:
        if isinstance(record, Stepped) and record.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    halted = run(recipe(texts), tmp_path / "run", watchers=[watch])
    assert not halted.finished and halted.step == stop and halted.model is None
    torch.manual_seed(99)  # a new process has another state
    again = run(recipe(texts), tmp_path / "run", resume=True)
    assert again.finished and (again.loss, again.bits_per_byte) == (outcome.loss, outcome.bits_per_byte)
    mine, theirs = tensors(tmp_path / "run"), tensors(whole)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] != theirs[name]] == []
    kept = [r for r in comparable(read(tmp_path / "run" / "journal.jsonl")) if isinstance(r, Stepped)]
    assert kept == [r for r in comparable(told) if isinstance(r, Stepped)]
    assert again.model is not None and outcome.model is not None
    for file in outcome.model.glob("*.safetensors"):
        assert (again.model / file.name).read_bytes() == file.read_bytes()


def test_a_folder_is_one_runs(texts: Path, tmp_path: Path, finished: tuple[Path, Outcome, list[Record]]) -> None:
    whole, _, _ = finished
    with pytest.raises(UsageError, match="holds a run of test already"):
        run(recipe(texts), whole)
    with pytest.raises(UsageError, match="optimizer differ"):
        run(recipe(texts, optimizer=OptimizerSection(lr=1e-3)), whole, resume=True)
    again = run(recipe(texts), whole, resume=True)  # there is nothing left to do, and nothing breaks
    assert (again.step, again.loss) == (8, finished[1].loss)


def test_a_damaged_checkpoint_is_passed_over_and_the_journal_begins_again_behind_the_one_before(
    texts: Path, tmp_path: Path, finished: tuple[Path, Outcome, list[Record]]
) -> None:
    def watch(record: Record) -> None:
        if isinstance(record, Stepped) and record.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "run"
    run(recipe(texts), folder, watchers=[watch])
    (piece, *_) = (folder / "checkpoints" / "step-00000007").glob("*.safetensors")
    piece.write_bytes(piece.read_bytes()[:-1])
    told: list[Record] = []
    assert run(recipe(texts), folder, resume=True, watchers=[told.append]).loss == finished[1].loss
    assert isinstance(told[0], Started) and told[0].step == 6
    assert any("step 7 is passed over" in record.message for record in told if isinstance(record, Noted))
    steps = [record for record in comparable(read(folder / "journal.jsonl")) if isinstance(record, Stepped)]
    assert steps == [record for record in comparable(finished[2]) if isinstance(record, Stepped)]


def test_rows_fit_the_network_that_is_gone_on_from(
    texts: Path, tmp_path: Path, finished: tuple[Path, Outcome, list[Record]]
) -> None:
    data = DataSection(sources=(SourceSection(path=str(texts)),), sequence_length=1024)
    with pytest.raises(RecipeError, match=r"data.sequence_length is 1024, and .* knows 512 positions"):
        run(recipe(texts, model=ModelSection(start=str(finished[1].model)), data=data), tmp_path / "run")


def _spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the gradients of these steps infinite, whenever they are computed."""
    plain = Loop._gradients

    def spoilt(self: Loop, first: int, count: int, mtp_weight: float) -> Any:
        parts = plain(self, first, count, mtp_weight)
        if self.progress.step + 1 in steps:
            self.model.norm.weight.grad.fill_(float("inf"))
        return parts

    monkeypatch.setattr(Loop, "_gradients", spoilt)


def test_one_bad_step_is_skipped(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _spoil(monkeypatch, {5})
    told: list[Record] = []
    assert run(recipe(texts), tmp_path / "run", watchers=[told.append]).finished
    assert [record.step for record in told if isinstance(record, Stepped) and record.skipped] == [5]
    assert any("step 5 was skipped" in record.message for record in told if isinstance(record, Noted))


def test_three_bad_steps_lead_back_and_are_passed_over(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(monkeypatch, {4, 5, 6})
    told: list[Record] = []
    outcome = run(recipe(texts), tmp_path / "run", watchers=[told.append])
    assert outcome.finished and outcome.step == 8
    done = [record.step for record in told if isinstance(record, Stepped)]
    assert done == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]
    assert any("went back from step 6 to step 3" in record.message for record in told if isinstance(record, Noted))


def test_losses_that_stay_bad_end_the_run_and_leave_the_checkpoint(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(monkeypatch, {4, 5, 6, 7, 8})
    once = recipe(texts, guard=GuardSection(rollbacks=0))
    with pytest.raises(TrainingError, match=r"training stopped at step 6.*rows 12 to 15"):
        run(once, tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints", keep=2).steps() == [3]


@pytest.mark.parametrize(
    "sections",
    [
        {"precision": PrecisionSection(compute="fp8")},
        {"precision": PrecisionSection(compute="f32"), "memory": MemorySection(recompute="blocks")},
        {"optimizer": OptimizerSection(name="muon", lr=5e-3)},
        {"model": ModelSection(named="debug", config={"hidden_size": 64, "intermediate_size": 128})},
    ],
    ids=["fp8", "f32-blocks", "muon", "dense"],
)
def test_other_recipes_learn_too(texts: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    told: list[Record] = []
    assert run(recipe(texts, **sections), tmp_path / "run", watchers=[told.append]).finished
    steps = [record for record in told if isinstance(record, Stepped)]
    assert steps[-1].loss < steps[0].loss - 0.2


def biases(folder: Path | None) -> list[list[float]]:
    assert folder is not None
    return [gate.e_score_correction_bias.tolist() for gate in load(folder, dtype="f32")[0].gates()]


def test_lora_learns_a_chat_and_leaves_its_base(
    texts: Path, tmp_path: Path, finished: tuple[Path, Outcome, list[Record]]
) -> None:
    base = finished[1].model
    rows = [{"question": f"How deep is well {n}?", "answer": "the well is deep"} for n in range(30)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = SourceSection(path="chats.jsonl", prompt="question", answer="answer")
    chats = recipe(
        texts,
        kind="sft",
        model=ModelSection(start=str(base), tune="lora"),
        data=DataSection(sources=(source,), sequence_length=64, mask_documents=True, validation=0.1, deduplicate=False),
    )
    told: list[Record] = []
    outcome = run(chats, tmp_path / "run", watchers=[told.append])
    assert biases(outcome.model) == biases(base)  # the adapter's file could not carry them
    steps = [record for record in told if isinstance(record, Stepped)]
    assert steps[-1].loss < steps[0].loss - 0.2
    (begun,) = [record for record in told if isinstance(record, Started)]
    assert 0 < begun.trained_parameters < begun.parameters / 2
    assert outcome.model is not None and (tmp_path / "run" / "adapter" / "adapter_config.json").exists()
    assert Model.load(outcome.model).chat([{"role": "user", "content": "How deep?"}], SamplingParams(max_tokens=3)).text


def test_esft_moves_the_chosen_experts_alone(
    texts: Path, tmp_path: Path, finished: tuple[Path, Outcome, list[Record]]
) -> None:
    base = finished[1].model
    assert base is not None
    (tmp_path / "run").mkdir()  # of a run that failed before its first checkpoint, by another recipe perhaps
    (tmp_path / "run" / "experts.json").write_text(json.dumps({0: [0, 1, 2, 3, 4, 5, 6, 7], 1: []}))
    told: list[Record] = []
    section = ModelSection(start=str(base), tune="esft")
    outcome = run(recipe(texts, model=section), tmp_path / "run", watchers=[told.append])
    chosen = {int(k): v for k, v in json.loads((tmp_path / "run" / "experts.json").read_text()).items()}
    assert all(0 < len(experts) < 8 for experts in chosen.values())
    (begun,) = [record for record in told if isinstance(record, Started)]
    assert begun.trained_parameters == sum(map(len, chosen.values())) * 3 * 64 * 32
    assert describe(recipe(texts, model=section))["trained_parameters"] == 2 * 8 * 3 * 64 * 32
    assert biases(outcome.model) == biases(base)
    assert outcome.model is not None
    before, after = load(base, dtype="f32")[0], load(outcome.model, dtype="f32")[0]
    moved = {
        name
        for (name, a), (_, b) in zip(before.named_parameters(), after.named_parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert moved and all(".mlp.experts." in name for name in moved)


def test_a_recipe_is_described_without_its_data(texts: Path) -> None:
    told = describe(recipe(texts))
    assert told["steps"] == 8 and told["tokens_per_step"] == 128
    assert told["state_bytes"] == told["parameters"] * 12  # weights and gradients in float32, two moments in bf16


def test_the_recipe_stands_in_the_folder(texts: Path, finished: tuple[Path, Outcome, list[Record]]) -> None:
    content = json.loads((finished[0] / "recipe.json").read_text(encoding="utf-8"))
    assert reading.from_dict(content["recipe"], "recipe.json") == recipe(texts)
