"""A recipe that learns in a second, its texts, and a run of it."""

from pathlib import Path
from typing import Any

import torch

from deepwell.lm.training.recipe import (
    BatchSection,
    CheckpointSection,
    DataSection,
    LogSection,
    ModelSection,
    OptimizerSection,
    Recipe,
    SourceSection,
    TokenizerSection,
)
from deepwell.lm.training.run import Outcome, train

SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "q_lora_rank": 32, "kv_lora_rank": 32,
}  # fmt: skip
WORDS = "the well is deep and the water of the well is cold so we draw it with a long rope in the morning".split()


def write_texts(folder: Path) -> Path:
    """Texts in which the next word is often foreseen."""
    draw = torch.Generator().manual_seed(0)
    for number in range(40):
        starts = torch.randint(len(WORDS), (12,), generator=draw).tolist()
        lines = [" ".join(WORDS[start:] + WORDS[:start]) for start in starts]
        (folder / f"{number}.txt").write_text(f"Text {number}.\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


def recipe(texts: Path, **sections: Any) -> Recipe:
    plain: dict[str, Any] = {
        "model": ModelSection(named="debug-moe", config=SHAPE),
        "tokenizer": TokenizerSection(vocab_size=320),
        "data": DataSection(
            sources=(SourceSection(path=str(texts)),), sequence_length=32, validation=0.1, deduplicate=False
        ),
        "batch": BatchSection(steps=8, sequences=4, micro_sequences=2),
        "optimizer": OptimizerSection(lr=5e-3),
        "checkpoint": CheckpointSection(every=3),
        "log": LogSection(validate_every=4, validate_rows=4, sample_tokens=4, tensorboard=False, peak_tflops=1.0),
    }
    return Recipe(seed=1, threads=1, **plain | sections)


def run(recipe: Recipe, folder: Path, *, resume: bool = False, watchers: Any = ()) -> Outcome:
    return train(recipe, folder, base=folder.parent, name="test", resume=resume, watchers=watchers)
