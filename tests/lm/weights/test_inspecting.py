"""Looking into models: files and shapes, and what a header tells."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepwell.errors import ModelConfigError, ModelFileError, UsageError
from deepwell.lm.model.accounting import Account
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.gguf.writing import write_gguf
from deepwell.lm.weights.inspecting import inspect_model
from deepwell.lm.weights.writing import write_checkpoint


def write(folder: Path, name: str, precision: str = "bf16") -> Path:
    with torch.random.fork_rng():
        write_checkpoint(Transformer(ModelConfig.named(name)), folder, precision=precision)  # type: ignore[arg-type]
    return folder


def test_a_shape_needs_no_file() -> None:
    found = inspect_model("deepseek-v3", context=1)
    assert (found.source, found.path, found.stored, found.tokenizer) == ("shape", None, (), None)
    assert found.bytes_by_part == found.account.bytes_by_part
    assert sum(found.bytes_by_layer.values()) == 2 * sum(layer.parameters for layer in found.account.layers)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_bytes_are_those_of_the_file(tmp_path: Path, precision: str) -> None:
    folder = write(tmp_path / "model", "debug-moe", precision)
    found = inspect_model(str(folder))
    config = found.config
    assert found.source == "safetensors" and config == ModelConfig.named("debug-moe")
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert sum(found.bytes_by_part.values()) == sum(one.nbytes for one in tensors.values())
    assert "other" not in found.bytes_by_part
    experts = [one.nbytes for name, one in tensors.items() if ".experts." in name and ".layers.4." not in name]
    assert found.bytes_by_part["routed experts"] == sum(experts)
    prediction = sum(one.nbytes for name, one in tensors.items() if ".layers.4." in name)
    assert found.bytes_by_layer[4] == found.bytes_by_part["multi-token prediction"] == prediction
    assert set(found.bytes_by_kind) == ({"BF16", "F32"} if precision == "bf16" else {"BF16", "F32", "F8_E4M3"})


def test_the_llama_layout_is_understood(tmp_path: Path) -> None:
    config = ModelConfig.named("smollm2-135m").replace(
        vocab_size=64, hidden_size=18, intermediate_size=32, num_hidden_layers=2, kv_lora_rank=6, qk_rope_head_dim=2,
        v_head_dim=2,
    )  # fmt: skip
    write_checkpoint(Transformer(config), tmp_path / "model")
    found = inspect_model(str(tmp_path / "model"))
    assert found.bytes_by_part == {part: 2 * count for part, count in found.account.by_part.items()}


def test_a_missing_tokenizer_is_told_and_hides_nothing(tmp_path: Path) -> None:
    found = inspect_model(str(write(tmp_path / "model", "debug")))
    assert found.tokenizer is not None and "tokenizer" in found.tokenizer.problem
    assert found.account.parameters == 561_920


def test_a_tensor_without_a_place_is_other(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "debug")
    save_file({"surplus": torch.zeros(3)}, folder / "more.safetensors")
    (file,) = folder.glob("model*.safetensors")
    tensors = load_file(file) | {"surplus": torch.zeros(3)}
    save_file(tensors, file)
    (folder / "more.safetensors").unlink()
    for index in folder.glob("*.index.json"):
        content = json.loads(index.read_text())
        content["weight_map"]["surplus"] = file.name
        index.write_text(json.dumps(content))
    assert inspect_model(str(folder)).bytes_by_part["other"] == 12


def test_no_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepwell.lm.weights.shards import ShardReader

    folder = write(tmp_path / "model", "debug")
    monkeypatch.setattr(ShardReader, "read", None)
    assert inspect_model(str(folder)).account.parameters == 561_920


def test_bad_names_and_files_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model named 'nonsense'") as unknown:
        inspect_model("nonsense")
    assert "debug-moe" in unknown.value.hint
    with pytest.raises(UsageError, match="context of 0"):
        inspect_model("debug", context=0)
    with pytest.raises(ModelFileError, match="holds no model"):
        inspect_model(str(tmp_path))
    folder = write(tmp_path / "model", "debug")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelConfigError, match=r"config\.json: model_type is 'gpt2'"):
        inspect_model(str(folder))


@pytest.mark.parametrize("name", ["debug-moe", "smollm2-135m"])
def test_a_gguf_file_is_looked_into_without_its_weights(tmp_path: Path, name: str) -> None:
    config = ModelConfig.named(name).replace(
        vocab_size=64, num_hidden_layers=2, num_nextn_predict_layers=0, hidden_size=96, intermediate_size=64
    )  # fmt: skip
    write_gguf(Transformer(config), tmp_path / "x.gguf", precision="f16")
    found = inspect_model(str(tmp_path / "x.gguf"))
    assert found.source == "gguf"
    assert found.account.parameters == Account.of(config).parameters
    assert found.bytes_by_part.keys() == found.account.by_part.keys()
    # Norms and router are float32 there, the rest two bytes a value; a latent's up-projection is split, not grown.
    for part, count in found.account.by_part.items():
        if part in {"norms", "router"}:
            assert found.bytes_by_part[part] in {4 * count, 4 * count + 4 * 16}  # with the balancing bias
        else:
            assert found.bytes_by_part[part] == 2 * count
    assert set(found.bytes_by_kind) == {"F16", "F32"}
    (tmp_path / "y.gguf").write_bytes((tmp_path / "x.gguf").read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match=r"y\.gguf: cut off within tensor"):
        inspect_model(str(tmp_path / "y.gguf"))


@pytest.mark.models
def test_the_starter_model_is_a_gguf_file() -> None:
    found = inspect_model("smollm2-135m-instruct")
    assert found.source == "gguf" and found.path is not None
    assert found.config.to_hf()["model_type"] == "llama"
    assert found.account.parameters == 134_515_008
    header = found.path.stat().st_size - sum(found.bytes_by_part.values())
    assert 0 < header < 3_000_000
    assert found.bytes_by_part.keys() == {"embedding", "attention", "feed-forward", "norms"}
    assert found.tokenizer is not None
    assert (found.tokenizer.vocab_size, found.tokenizer.chat_template) == (49152, "own")
