"""What "auto" means on this machine."""

from collections import namedtuple
from pathlib import Path

import pytest
import torch

from deepwell.errors import UsageError
from deepwell.lm import Model
from deepwell.lm.engine import memory
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.gguf.container import Container, TensorPlace

_Memory = namedtuple("_Memory", "available")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "model.gguf").write_bytes(bytes(1000))
    return tmp_path


@pytest.mark.parametrize(
    ("free", "of_folder", "of_file"), [(4001, "f32", "bf16"), (16001, "f32", "f32"), (4000, "bf16", "bf16")]
)
def test_weights_are_widened_where_bf16_is_slow_and_there_is_memory(
    free: int, of_folder: str, of_file: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "library", lambda: None)
    monkeypatch.setattr(memory, "cpu_multiplies", lambda dtype: False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: _Memory(free))
    assert memory.precision_for(folder, "cpu") == of_folder
    assert memory.precision_for(folder / "model.gguf", "cpu") == of_file
    assert memory.precision_for(folder, "cuda") == "bf16"
    monkeypatch.setattr(memory, "cpu_multiplies", lambda dtype: True)
    assert memory.precision_for(folder, "cpu") == "bf16"


@pytest.mark.parametrize(("kind", "expected"), [("Q4_1", "int4"), ("Q8_0", "int8"), ("F16", "int8")])
def test_compiled_code_runs_in_8_bits_and_in_4_what_has_no_more(
    kind: str, expected: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"a": TensorPlace("a", (2, 32), kind, 0, 600), "norm": TensorPlace("norm", (32,), "F32", 600, 128)}
    monkeypatch.setattr(memory, "library", object)
    monkeypatch.setattr("deepwell.lm.weights.gguf.container.open_gguf", lambda path: Container(path, {}, places))
    assert memory.precision_for(folder, "cpu") == "int8"
    assert memory.precision_for(folder / "model.gguf", "cpu") == expected


def test_weights_that_will_be_rounded_are_read_as_they_are_where_there_is_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: _Memory(4001))
    assert memory.dtype_for("int8", folder, "cpu") == "f32"
    assert memory.dtype_for("int8", folder / "model.gguf", "cpu") == "bf16"
    assert memory.dtype_for("f16", folder, "cpu") == "f16"


def test_a_network_for_fp8_is_read_into_the_hosts_memory(folder: Path) -> None:
    assert memory.dtype_for("fp8", folder, "cuda") == "bf16"
    assert memory.read_to("fp8", "cuda") == "cpu"
    assert memory.read_to("bf16", "cuda") == "cuda"


def test_a_word_that_is_no_precision_is_answered_with_those_there_are(folder: Path) -> None:
    with pytest.raises(UsageError, match="no precision 'int5'") as caught:
        Model.load(folder, precision="int5")
    assert caught.value.hint is not None
    assert all(word in caught.value.hint for word in ("int8", "int4", "fp8", "bf16"))


def test_the_device_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert memory.device_for("auto") == "cuda"
    assert memory.device_for("cpu") == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert memory.device_for("auto") == "cpu"


def test_the_cache_is_no_more_than_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Transformer(ModelConfig.named("debug"), dtype=torch.float32)
    wanted = 8 * 512 * network.config.cache_bytes_per_token(4)
    monkeypatch.setattr("psutil.virtual_memory", lambda: _Memory(10**12))
    assert memory.cache_bytes_for(network) == wanted
    monkeypatch.setattr("psutil.virtual_memory", lambda: _Memory(10**6))
    assert memory.cache_bytes_for(network) == 250_000
