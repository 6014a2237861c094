"""Conversions from the command line, on a tiny network whose tokens are letters."""

import io
import json
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from deepwell.cli import conversions
from deepwell.cli.conversions import counting_bar
from deepwell.cli.main import run
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.conversions import compress, split
from deepwell.lm.weights.conversions.default_text import default_text
from deepwell.lm.weights.opening import load
from deepwell.lm.weights.saving import save


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (compress, split):
        monkeypatch.setattr(module, "WINDOW", 64)
        monkeypatch.setattr(module, "WINDOWS", 4)
    monkeypatch.setenv("DEEPWELL_MODELS", str(tmp_path / "shelf"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Llama of two layers whose 256 tokens are the bytes."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        rope_key_heads=2, qk_rope_head_dim=8, v_head_dim=8, kv_lora_rank=16, qk_nope_head_dim=0, kv_up_proj=False,
        latent_norm=False, initializer_range=0.15, max_position_embeddings=128,
    )  # fmt: skip
    folder = tmp_path / "model"
    save(Transformer(config), folder, precision="f32")
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("The well is deep and the water cold; we went down to it at night. " * 20)
    return file


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_convert_exactly(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mla"
    arguments = ["models", "convert", "--exact", str(model), str(target), "--precision", "f32", "--json"]
    assert run(arguments) == 0
    found = printed(capsys)
    assert found["cache_bytes_per_token"] == {"before": 128, "after": 128}
    old, _ = load(model, dtype="f32")
    new, tokenizer = load(target, dtype="f32")
    tokens = torch.tensor([tokenizer.encode("down we go")])
    assert new.config.kv_up_proj
    torch.testing.assert_close(new(tokens), old(tokens), rtol=0, atol=1e-5)


def test_compress_prints_what_is_lost(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small"
    arguments = ["models", "compress", str(model), str(target), "--kv-rank", "6", "--rope-dims", "4"]
    arguments += ["--calibration", str(text), "--window", "64", "--tokens", "128", "--precision", "f32"]
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in lines if "\t" in line}
    assert rows["cache, B a token in bf16"] == ["128", "40"]
    before, after = map(float, rows["perplexity"])
    assert before > 1 and after > 1
    assert any("measured on 126 tokens in windows of 64" in line for line in lines)
    assert lines[-1] == f"written: {target}"
    assert load(target)[0].config.latent_width == 10


def test_split_measures_on_another_text(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Stars are not seen from the well by day. " * 10)
    arguments = [
        "models",
        "split",
        str(model),
        str(tmp_path / "moe"),
        "--experts",
        "6",
        "--top-k",
        "6",
        "--shared",
        "1",
    ]
    arguments += ["--calibration", str(text), "--evaluate", str(other), "--window", "64", "--tokens", "64", "--json"]
    assert run(arguments) == 0
    found = printed(capsys)
    assert found["measured_on"] == {"tokens": 63, "window": 64}
    assert isinstance(found["kl"], float) and found["kl"] < 1e-4
    assert isinstance(found["tokens_per_second"], dict) and found["tokens_per_second"]["after"] > 0
    assert load(tmp_path / "moe")[0].config.n_routed_experts == 5


def test_upcycle_and_export(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed, file = tmp_path / "mixed", tmp_path / "model.gguf"
    assert run(["models", "upcycle", str(model), str(mixed), "--experts", "3", "--top-k", "2", "--json"]) == 0
    found = printed(capsys)["parameters"]
    assert isinstance(found, dict) and found["after"] > found["before"]
    assert load(mixed)[0].config.num_experts_per_tok == 2
    again = tmp_path / "again"
    assert run(["models", "export", str(mixed), str(again), "--precision", "f32"]) == 0
    assert load(again)[0].config == load(mixed)[0].config
    assert run(["models", "export", str(model), str(file), "--format", "gguf", "--precision", "fp8"]) == 1
    assert "GGUF has no FP8" in capsys.readouterr().err
    assert not file.exists()


def test_what_a_gguf_file_lacks_is_said(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, file = tmp_path / "small", tmp_path / "small.gguf"
    shape = ["--kv-rank", "12", "--rope-dims", "8", "--calibration", str(text), "--window", "64", "--tokens", "64"]
    assert run(["models", "compress", str(model), str(small), *shape]) == 0
    assert run(["models", "export", str(small), str(file), "--format", "gguf", "--precision", "f16"]) == 0
    assert "note: The latents of this network are not normalised" in capsys.readouterr().err
    assert load(file)[0].config.kv_lora_rank == 12


def test_without_a_text_deepwells_own_is_taken_with_a_word(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["models", "compress", str(model), str(tmp_path / "small"), "--kv-rank", "6", "--rope-dims", "4"]
    assert run([*arguments, "--window", "64", "--tokens", "64"]) == 0
    assert "a text of your own is better" in capsys.readouterr().err
    assert "docstrings of all modules" in default_text()


def test_nothing_is_overwritten(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "there"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    for place in (target, target / "mine.txt"):
        assert run(["models", "convert", "--exact", str(model), str(place)]) == 2
        assert "is there already" in capsys.readouterr().err
    assert (target / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--kv-rank", "0", "--rope-dims", "4"], 2, "kv_rank is 0"),
        (["--kv-rank", "6", "--rope-dims", "4", "--window", "1"], 2, "--window is 1"),
        (["--kv-rank", "6", "--rope-dims", "4", "--window", "1000"], 2, "last fifth"),
        (["--kv-rank", "6"], 2, "rope-dims"),
    ],
)
def test_bad_numbers_end_with_a_message_and_no_file(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, said: str
) -> None:
    target = tmp_path / "small"
    default = [] if "--window" in more else ["--window", "64"]
    arguments = ["models", "compress", str(model), str(target), "--calibration", str(text), *default, *more]
    assert run(arguments) == code
    assert said in capsys.readouterr().err
    assert not target.exists()


def test_a_text_that_is_none_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "picture.txt"
    file.write_bytes(b"abc\xff\xfe")
    arguments = ["models", "split", str(model), str(tmp_path / "x"), "--experts", "4", "--top-k", "2"]
    assert run([*arguments, "--calibration", str(file)]) == 2
    assert "is not UTF-8 text (byte 3)" in capsys.readouterr().err


def test_a_missing_model_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "convert", "--exact", str(tmp_path / "none"), str(tmp_path / "x")]) == 1
    assert "there is no model at" in capsys.readouterr().err


def test_a_bar_is_drawn_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with counting_bar("waiting") as quiet:
        assert quiet is None
    terminal = Terminal()
    monkeypatch.setattr(conversions.sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with counting_bar("measuring") as progress:
        assert progress is not None
        progress(1, 2)
    assert "measuring" in terminal.getvalue()
