"""A folder is understood from its headers, and refused by name when it is not whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepwell.errors import DeepwellError, ModelConfigError, ModelFileError, ModelFormatError
from deepwell.lm.weights.checkpoint import CONFIG, INDEX, SINGLE, open_checkpoint, read_json


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_knows_every_tensor_and_its_file(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.num_nextn_predict_layers == 1
    assert checkpoint.block == (128, 128)
    tensors = {name: tensor for path in _shards(folder) for name, tensor in load_file(path).items()}
    assert set(checkpoint.tensors) == set(tensors)
    assert all(checkpoint.tensors[name].shape == tuple(tensor.shape) for name, tensor in tensors.items())
    assert checkpoint.size == sum(tensor.nbytes for tensor in tensors.values())
    assert len({tensor.path for tensor in checkpoint.tensors.values()}) == len(_shards(folder)) > 1


def test_shards_without_an_index_are_found(folder: Path) -> None:
    whole = set(open_checkpoint(folder).tensors)
    (folder / INDEX).unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"of something else")
    assert set(open_checkpoint(folder).tensors) == whole


def test_one_file_needs_no_index(folder: Path) -> None:
    tensors = {name: tensor for path in _shards(folder) for name, tensor in load_file(path).items()}
    save_file(tensors, folder / SINGLE)
    (folder / INDEX).unlink()
    assert {tensor.path.name for tensor in open_checkpoint(folder).tensors.values()} == {SINGLE}


def _copy_a_tensor(folder: Path) -> None:
    first, second = _shards(folder)[:2]
    tensors = load_file(second)
    name, tensor = next(iter(load_file(first).items()))
    save_file(tensors | {name: tensor}, second)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: _shards(folder)[1].unlink(), "model-00002-of-.* is missing; .* tensors in it, model"),
        (
            lambda folder: ((folder / INDEX).unlink(), _shards(folder)[1].unlink()),
            "00002-of-.* is missing, and model-0",
        ),
        (_copy_a_tensor, "is in both .*00001-of.* and .*00002-of"),
        (lambda folder: save_file({}, _shards(folder)[0]), "index.json puts .* in model-00001.*, and it is in no file"),
        (lambda folder: (folder / CONFIG).unlink(), "config.json is missing"),
        (lambda folder: (folder / CONFIG).write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / CONFIG).write_text("[" * 100_000), "config.json is not JSON"),
        (lambda folder: (folder / CONFIG).write_text("[1]"), "config.json holds list"),
        (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe\0"), "config.json is not JSON"),
        (lambda folder: _edit(folder / INDEX, lambda index: index.pop("weight_map")), "no weight_map"),
        (lambda folder: _edit(folder / INDEX, lambda index: index.update(weight_map=[])), "no weight_map"),
        (
            lambda folder: _edit(folder / CONFIG, lambda config: config.update(quantization_config="fp8")),
            "'fp8', not a",
        ),
        (lambda folder: torch.save({}, _shards(folder)[0]), "00001-of.* is a pickle"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder: Path, damage: Callable[[Path], Any], told: str) -> None:
    damage(folder)
    with pytest.raises(ModelFileError, match=told):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x", "C:x", "..", "", "config.json", 3]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path, name: object) -> None:
    _edit(folder / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": name}))
    with pytest.raises(ModelFileError, match=r"puts model\.norm\.weight in .*no file of this folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], "no weights"),
        (["training_args.bin"], "no weights"),
        (["pytorch_model.bin", "pytorch_model.bin.index.json"], "pytorch_model.bin is a pickle"),
        (["consolidated.00.pth"], "consolidated.00.pth is a pickle"),
        (["adapter_model.safetensors"], "LoRA adapter"),
    ],
)
def test_a_folder_without_safetensors_says_what_is_there_instead(folder: Path, files: list[str], told: str) -> None:
    for path in [*_shards(folder), folder / INDEX]:
        path.unlink()
    for name in files:
        (folder / name).write_bytes(b"{}")
    with pytest.raises(ModelFileError, match=told):
        open_checkpoint(folder)


def test_an_index_of_pickles_is_refused(folder: Path) -> None:
    _edit(folder / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": "pytorch_model.bin"}))
    with pytest.raises(ModelFileError, match="is a pickle"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("quantization", "told"),
    [
        ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
        ({"quant_method": "awq"}, "'awq'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'"),
        ({}, "None"),
        ({"quant_method": "fp8"}, "weight_block_size None"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2"}, "e5m2"),
    ],
)
def test_other_ways_to_quantise_are_refused_by_name(folder: Path, quantization: object, told: str) -> None:
    _edit(folder / CONFIG, lambda config: config.update(quantization_config=quantization))
    with pytest.raises(DeepwellError, match=told) as caught:
        open_checkpoint(folder)
    assert isinstance(caught.value, ModelFormatError)
    assert CONFIG in str(caught.value)


def test_another_block_size_is_taken_from_the_config(folder: Path) -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [32, 64]}
    _edit(folder / CONFIG, lambda config: config.update(quantization_config=fp8))
    assert open_checkpoint(folder).block == (32, 64)


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    _edit(folder / CONFIG, lambda config: config.update(model_type="bert"))
    with pytest.raises(ModelConfigError, match="bert"):
        open_checkpoint(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_json(tmp_path)
