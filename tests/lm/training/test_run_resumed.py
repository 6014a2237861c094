"""What a run goes on with: the same text, the same network under it, and any number of processes."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepwell.errors import TrainingError
from deepwell.lm import load
from deepwell.lm.training import reading
from deepwell.lm.training.journal import read
from deepwell.lm.training.recipe import BatchSection, LogSection, ModelSection, ParallelSection, PrecisionSection
from deepwell.lm.training.records import Sampled, Stepped, Validated
from deepwell.lm.weights.saving import save

from .small_runs import recipe, run, write_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


def test_a_run_does_not_go_on_with_other_text(texts: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(texts, tmp_path / "texts")
    short = recipe(mine, batch=BatchSection(steps=1, sequences=4))
    run(short, tmp_path / "run")
    (mine / "0.txt").touch()  # the same text, read anew
    assert run(short, tmp_path / "run", resume=True).finished
    (mine / "0.txt").write_text("The rope of the well is long.\n", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"the text or its tokenizer is another.*\n.*put the files"):
        run(short, tmp_path / "run", resume=True)


def test_an_adapter_does_not_go_on_over_another_network(texts: Path, tmp_path: Path) -> None:
    base = run(recipe(texts, batch=BatchSection(steps=1, sequences=4)), tmp_path / "first").model
    assert base is not None
    shutil.copytree(base, tmp_path / "base")
    section = ModelSection(start=str(tmp_path / "base"), tune="lora")
    short = recipe(texts, model=section, batch=BatchSection(steps=1, sequences=4))
    run(short, tmp_path / "run")
    assert run(short, tmp_path / "run", resume=True).finished
    network, tokenizer = load(base)
    with torch.no_grad():
        network.norm.weight += 1
    save(network, tmp_path / "base", tokenizer=tokenizer)
    with pytest.raises(TrainingError, match=r"the network that the adapter .* is another.*\n.*model.start"):
        run(short, tmp_path / "run", resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parallel", [ParallelSection(), ParallelSection(data="copy", experts=2)], ids=["shard", "copy"]
)
def test_two_processes_are_one_run_that_one_goes_on_with(
    texts: Path, tmp_path: Path, parallel: ParallelSection
) -> None:
    plain = recipe(
        texts,
        precision=PrecisionSection(compute="f32"),
        log=LogSection(validate_every=4, validate_rows=4, sample_every=3, sample_tokens=4, tensorboard=False),
    )
    alone = run(plain, tmp_path / "alone")
    (tmp_path / "recipe.toml").write_text(reading.to_toml(plain.replace(parallel=parallel)), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "deepwell", "train", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "two")]
    started = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=100)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)
    records = {name: read(tmp_path / name / "journal.jsonl") for name in ("alone", "two")}
    for kind, least in ((Stepped, 8), (Validated, 2), (Sampled, 3)):
        assert [r.step for r in records["two"] if isinstance(r, kind)] == [
            r.step for r in records["alone"] if isinstance(r, kind)
        ]
        assert sum(isinstance(r, kind) for r in records["two"]) == least
    losses = {name: [r.loss for r in told if isinstance(r, Stepped)] for name, told in records.items()}
    assert losses["two"] == pytest.approx(losses["alone"], rel=1e-3)
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-00000008")
    again = run(plain, tmp_path / "two", resume=True)
    assert again.loss == pytest.approx(alone.loss, rel=1e-3)
    assert again.bits_per_byte == pytest.approx(alone.bits_per_byte, rel=1e-3)
