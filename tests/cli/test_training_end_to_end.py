"""A real training from the command line: a few steps on a few lines, its report, and on again from a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepwell.lm.training.journal import read
from deepwell.lm.training.records import Ended, Sampled, Stepped, Validated
from deepwell.lm.weights.opening import load

Call = Callable[..., Any]

RECIPE = """
[model]
named = "debug"
config = {num_hidden_layers = 1}
[tokenizer]
vocab_size = 300
[[data.sources]]
path = "tales/*.txt"
[data]
sequence_length = 32
validation = 0.2
[batch]
steps = 3
sequences = 2
[checkpoint]
every = 1
[log]
sample_tokens = 4
peak_tflops = 0.1
"""


@pytest.mark.slow
def test_train_look_and_go_on(deepwell: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tales").mkdir()
    for number in range(40):
        words = f"Tale {number}: the bucket went {number * 7} yards down on a rope of {number + 80}, and came up cold. "
        (tmp_path / "tales" / f"{number}.txt").write_text(words * (1 + number % 3))
    (tmp_path / "well.toml").write_text(RECIPE)

    ran = deepwell("train", "well.toml", "--json")
    assert ran.code == 0, ran.out
    told = json.loads(ran.out)
    assert (told["step"], told["finished"]) == (3, True)
    folder = tmp_path / "runs" / "well"
    records = read(folder / "journal.jsonl")
    assert [one.step for one in records if isinstance(one, Stepped)] == [1, 2, 3]
    assert {Validated, Sampled, Ended} <= {type(one) for one in records}
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")
    model, tokenizer = load(str(folder / "model"))
    assert model.config.num_hidden_layers == 1
    assert tokenizer.decode(tokenizer.encode("the bucket")) == "the bucket"

    assert deepwell("train", "well.toml").code == 2
    again = deepwell("train", "--resume", "--out", "runs/well")
    assert again.code == 0, again.err
    assert [one.step for one in read(folder / "journal.jsonl") if isinstance(one, Stepped)] == [1, 2, 3]
    (run,) = json.loads(deepwell("runs", "--json").out)["runs"]
    assert (run["name"], run["state"], run["step"]) == ("well", "finished", 3)
