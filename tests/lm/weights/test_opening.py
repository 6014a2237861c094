"""``load`` finds a model by name, folder or file, and says what to do when there is none."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import deepwell.lm
from deepwell.errors import (
    MissingModelError,
    ModelConfigError,
    ModelFileError,
    UsageError,
)
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.opening import DTYPES, load, locate
from deepwell.lm.weights.saving import save

Network = Callable[..., Transformer]

TOKENIZER = """{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "ByteLevel",
"add_prefix_space": false, "trim_offsets": true, "use_regex": true}, "post_processor": null, "decoder":
{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}, "truncation": null,
"padding": null, "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
"end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": {"a": 0, "b": 1, "ab": 2},
"merges": [["a", "b"]]}}"""


@pytest.fixture
def model(tmp_path: Path, network: Network) -> Path:
    folder = tmp_path / "model"
    save(network("grouped"), folder, precision="f32")
    (folder / "tokenizer.json").write_text(TOKENIZER)
    return folder


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of models."""
    monkeypatch.setenv("DEEPWELL_MODELS", str(tmp_path / "shelf"))
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


def test_it_is_the_public_load() -> None:
    assert deepwell.lm.load is load


def test_a_folder_by_path(model: Path, network: Network) -> None:
    steps: list[tuple[int, int]] = []
    read, tokenizer = load(model, dtype="f32", on_progress=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1] > 0
    tokens = torch.tensor([tokenizer.encode("abba")])
    assert tokens.tolist() == [[2, 1, 0]]
    assert torch.equal(read(tokens), network("grouped")(tokens))


@pytest.mark.parametrize("word", DTYPES)
def test_dtype_words(model: Path, word: str) -> None:
    assert load(str(model), dtype=word)[0].dtype == getattr(torch, DTYPES[word])


def test_bf16_is_the_default(model: Path) -> None:
    assert load(model)[0].dtype == torch.bfloat16


def test_a_name_on_the_shelf_and_a_folder_where_one_is(
    model: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, shelf / "mine")
    assert locate("mine") == shelf / "mine"
    monkeypatch.chdir(model.parent)
    assert locate("model") == Path("model")
    assert locate("./model") == Path("model")


def test_a_gguf_file_and_a_folder_with_one(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    file = tmp_path / "m" / "x.gguf"
    file.write_bytes(b"GGUF but no more")
    assert locate(file) == locate(str(file)) == locate(tmp_path / "m") == file
    with pytest.raises(ModelFileError, match=r"x\.gguf"):
        load(file)
    shutil.copy(file, tmp_path / "m" / "y.gguf")
    with pytest.raises(ModelFileError, match=r"several GGUF files: x\.gguf, y\.gguf"):
        locate(tmp_path / "m")


def test_a_model_that_is_not_here_says_what_to_run(shelf: Path) -> None:
    with pytest.raises(MissingModelError, match=r"models pull smollm2-135m-instruct"):
        load("smollm2-135m-instruct")
    with pytest.raises(UsageError, match="smollm2"):
        load("smollm2-135m-instrukt")
    with pytest.raises(MissingModelError, match="check the path"):
        load("./nowhere")


def test_files_that_are_no_model(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match=r"model\.pt is a pickle"):
        load(tmp_path / "model.pt")
    (tmp_path / "model.safetensors").write_bytes(b"anything")
    with pytest.raises(ModelFileError, match="give a GGUF file, or the folder"):
        load(tmp_path / "model.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match="empty holds no model"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"dtype": "int4"}, "no dtype 'int4'"), ({"device": "cuda:99"}, "cuda:99"), ({"device": "abacus"}, "abacus")],
)
def test_a_dtype_or_device_that_is_none(model: Path, wrong: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        load(model, **wrong)  # type: ignore[arg-type]


def test_a_folder_without_a_tokenizer_or_with_another_architecture(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load(model)
    (model / "tokenizer.json").write_text(TOKENIZER)
    (model / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelConfigError, match="bert"):
        load(model)


def test_what_load_gave_is_saved_and_loaded_again(model: Path, tmp_path: Path) -> None:
    read, tokenizer = load(model, dtype="f32")
    deepwell.lm.save(read, tmp_path / "again", precision="f32", tokenizer=tokenizer)
    again, words = deepwell.lm.load(tmp_path / "again", dtype="f32")
    assert words.encode("abab") == tokenizer.encode("abab")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in read.state_dict().items())
    deepwell.lm.save(again, tmp_path / "again", precision="bf16", tokenizer=words)
    assert deepwell.lm.load(tmp_path / "again")[0].config == read.config
