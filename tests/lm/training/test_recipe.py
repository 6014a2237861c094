"""The record of a recipe refuses what cannot be carried out, with the dotted key first."""

from typing import Any

import pytest

from deepwell.errors import RecipeError
from deepwell.lm.training.recipe import (
    BalanceSection,
    BatchSection,
    CheckpointSection,
    DataSection,
    EsftSection,
    GuardSection,
    LogSection,
    LoraSection,
    MemorySection,
    ModelSection,
    MtpSection,
    OptimizerSection,
    ParallelSection,
    PrecisionSection,
    Recipe,
    ScheduleSection,
    SourceSection,
    TokenizerSection,
    value_at,
)

TEXT = SourceSection(path="a.txt")
CHAT = SourceSection(path="a.jsonl", messages="messages")


def recipe(**changes: Any) -> Recipe:
    sections: dict[str, Any] = {
        "model": ModelSection(named="debug"),
        "data": DataSection(sources=(TEXT,)),
        "batch": BatchSection(steps=3),
    }
    return Recipe(**(sections | changes))


@pytest.mark.parametrize(
    ("section", "fields", "key"),
    [
        (LoraSection, {"rank": 0}, "model.lora.rank"),
        (LoraSection, {"dropout": 1.0}, "model.lora.dropout"),
        (LoraSection, {"targets": ()}, "model.lora.targets"),
        (EsftSection, {"by": "luck"}, "model.esft.by"),
        (EsftSection, {"share": 0.0}, "model.esft.share"),
        (EsftSection, {"sample_tokens": 0}, "model.esft.sample_tokens"),
        (ModelSection, {}, "model"),
        (ModelSection, {"start": "a", "named": "debug"}, "model.named"),
        (ModelSection, {"start": "a", "config": {"vocab_size": 3}}, "model.config"),
        (ModelSection, {"named": "debug", "tune": "lora"}, "model.tune"),
        (ModelSection, {"start": "a", "tune": "half"}, "model.tune"),
        (TokenizerSection, {"vocab_size": 299}, "tokenizer.vocab_size"),
        (TokenizerSection, {"sample_mb": 0.0}, "tokenizer.sample_mb"),
        (SourceSection, {}, "data.sources.path"),
        (SourceSection, {"path": "a", "format": "xml"}, "data.sources.format"),
        (SourceSection, {"path": "a", "prompt": "q"}, "data.sources.answer"),
        (SourceSection, {"path": "a", "prompt": "q", "answer": "a", "messages": "m"}, "data.sources.messages"),
        (SourceSection, {"path": "a", "epochs": 0.0}, "data.sources.epochs"),
        (DataSection, {}, "data.sources"),
        (DataSection, {"sources": (TEXT,), "sequence_length": 7}, "data.sequence_length"),
        (DataSection, {"sources": (TEXT,), "fim_rate": 1.1}, "data.fim_rate"),
        (DataSection, {"sources": (TEXT,), "validation": 1.0}, "data.validation"),
        (DataSection, {"sources": (TEXT,), "max_documents": -1}, "data.max_documents"),
        (BatchSection, {}, "batch"),
        (BatchSection, {"steps": 1, "epochs": 1.0}, "batch"),
        (BatchSection, {"tokens": -1}, "batch.tokens"),
        (BatchSection, {"steps": 1, "sequences": 0}, "batch.sequences"),
        (BatchSection, {"steps": 1, "micro_sequences": -1}, "batch.micro_sequences"),
        (BatchSection, {"steps": 1, "ramp": ((0.1, 4.0),)}, "batch.ramp"),
        (BatchSection, {"steps": 1, "ramp": ((0.0, 0.0),)}, "batch.ramp"),
        (BatchSection, {"steps": 1, "ramp": ((0.0, 4.0), (0.5, 8.0), (0.2, 16.0))}, "batch.ramp"),
        (BatchSection, {"steps": 1, "sequences": 8, "ramp": ((0.0, 2.0), (0.5, 4.0))}, "batch.ramp"),
        (OptimizerSection, {"name": "sgd"}, "optimizer.name"),
        (OptimizerSection, {"lr": 0.0}, "optimizer.lr"),
        (OptimizerSection, {"eps": -1e-8}, "optimizer.eps"),
        (OptimizerSection, {"betas": (0.9, 1.0)}, "optimizer.betas"),
        (OptimizerSection, {"muon_momentum": 1.0}, "optimizer.muon_momentum"),
        (OptimizerSection, {"weight_decay": -0.1}, "optimizer.weight_decay"),
        (OptimizerSection, {"clip": -1.0}, "optimizer.clip"),
        (OptimizerSection, {"moments": "f16"}, "optimizer.moments"),
        (ScheduleSection, {"kind": "wave"}, "schedule.kind"),
        (ScheduleSection, {"warmup": -1.0}, "schedule.warmup"),
        (ScheduleSection, {"hold": 0.9, "until": 0.8}, "schedule.hold"),
        (ScheduleSection, {"final": 1.5}, "schedule.final"),
        (ScheduleSection, {"kind": "steps"}, "schedule.steps"),
        (ScheduleSection, {"steps": ((0.9, 0.1), (0.8, 0.3))}, "schedule.steps"),
        (ScheduleSection, {"steps": ((0.9, 0.1), (1.0, 0.3))}, "schedule.steps"),
        (ScheduleSection, {"kind": "steps", "steps": ((0.0, -1.0),)}, "schedule.steps"),
        (BalanceSection, {"speed": ()}, "balance.speed"),
        (BalanceSection, {"speed": ((0.0, -0.1),)}, "balance.speed"),
        (BalanceSection, {"speed": ((0.0, 0.1), (1.0, 0.0))}, "balance.speed"),
        (BalanceSection, {"alpha": -1.0}, "balance.alpha"),
        (MtpSection, {"weight": ((0.0, -0.3),)}, "mtp.weight"),
        (PrecisionSection, {"compute": "f16"}, "precision.compute"),
        (PrecisionSection, {"scaling": "row"}, "precision.scaling"),
        (PrecisionSection, {"scales": "log"}, "precision.scales"),
        (PrecisionSection, {"keep": "f32"}, "precision.keep"),
        (MemorySection, {"recompute": "all"}, "memory.recompute"),
        (GuardSection, {"patience": 0}, "guard.patience"),
        (GuardSection, {"rollbacks": -1}, "guard.rollbacks"),
        (CheckpointSection, {"every": -1}, "checkpoint.every"),
        (CheckpointSection, {"keep": 0}, "checkpoint.keep"),
        (CheckpointSection, {"precision": "int8"}, "checkpoint.precision"),
        (LogSection, {"validate_rows": -1}, "log.validate_rows"),
        (ParallelSection, {"data": "split"}, "parallel.data"),
        (ParallelSection, {"experts": 0}, "parallel.experts"),
    ],
)
def test_a_section_refuses_and_names_the_key(section: type, fields: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        section(**fields)
    assert caught.value.message.split(" ")[0] == key


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"kind": "rl"}, "kind"),
        ({"threads": -1}, "threads"),
        ({"seed": -1}, "seed"),
        ({"data": DataSection(sources=(CHAT,))}, "data.sources.messages"),
        ({"kind": "sft"}, "data.sources.messages"),
        ({"kind": "sft", "data": DataSection(sources=(CHAT,), fim_rate=0.1)}, "data.fim_rate"),
        ({"batch": BatchSection(steps=1, sequences=2, micro_sequences=3)}, "batch.micro_sequences"),
    ],
)
def test_sections_that_disagree_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**changes)
    assert caught.value.message.split(" ")[0] == key


def test_replace_checks_again() -> None:
    good = recipe()
    assert good.replace(seed=4).seed == 4
    assert good.seed == 0
    with pytest.raises(RecipeError, match="threads"):
        good.replace(threads=-2)


def test_defaults_are_those_of_the_v3_report() -> None:
    optimizer = recipe().optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay, optimizer.clip) == (2.2e-4, (0.9, 0.95), 0.1, 1.0)
    assert recipe().balance.alpha == 1e-4


def test_value_at_takes_the_newest_pair() -> None:
    steps = ((0.0, 3.0), (0.5, 2.0), (0.75, 1.0))
    assert [value_at(steps, share) for share in (0, 0.49, 0.5, 0.74, 0.75, 1.0)] == [3, 3, 2, 2, 1, 1]
