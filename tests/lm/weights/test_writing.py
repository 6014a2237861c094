"""What is written is what other tools expect: kinds of numbers, shards, index and configs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from deepwell.errors import ModelFileError, ModelFormatError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.precision.fp8 import quantize_blocks
from deepwell.lm.weights import shards, writing
from deepwell.lm.weights.reading import read_checkpoint
from deepwell.lm.weights.writing import plan, write_checkpoint

Network = Callable[..., Transformer]

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16), ("f32", torch.float32)]
)
def test_each_precision(tmp_path: Path, network: Network, precision: str, dtype: torch.dtype) -> None:
    model = network("latent")
    write_checkpoint(model, tmp_path / "m", precision=precision)  # type: ignore[arg-type]
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    for name, tensor in tensors.items():
        # Trap 4: the router's bias stays float32 through export.
        assert tensor.dtype == (torch.float32 if name.endswith("e_score_correction_bias") else dtype)
    assert torch.equal(tensors[UP], model.state_dict()["layers.0.mlp.up_proj.weight"].to(dtype))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert "quantization_config" not in config


@pytest.mark.parametrize("power_of_two", [False, True])
def test_fp8_holds_the_matrices_of_linear_layers_and_nothing_else(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch, power_of_two: bool
) -> None:
    monkeypatch.setattr(writing, "BAND", 1)  # one row of blocks at a time
    model = network("latent", hidden_size=136, intermediate_size=300)
    write_checkpoint(model, tmp_path / "m", precision="fp8", power_of_two=power_of_two)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    q, scale_inv = quantize_blocks(model.state_dict()["layers.0.mlp.up_proj.weight"], power_of_two=power_of_two)
    assert q.shape == (300, 136)
    assert torch.equal(tensors[UP].view(torch.uint8), q.view(torch.uint8))
    assert torch.equal(tensors[f"{UP}_scale_inv"], scale_inv)
    kinds = {
        "e_score_correction_bias": torch.float32, "weight_scale_inv": torch.float32, "mlp.gate.weight": torch.bfloat16,
        "embed_tokens.weight": torch.bfloat16, "head.weight": torch.bfloat16, "norm.weight": torch.bfloat16,
        "eh_proj.weight": torch.bfloat16, "proj.weight": torch.float8_e4m3fn, "with_mqa.weight": torch.float8_e4m3fn,
    }  # fmt: skip
    for name, tensor in tensors.items():
        assert tensor.dtype == next(kind for end, kind in kinds.items() if name.endswith(end)), name
        assert (f"{name}_scale_inv" in tensors) == (tensor.dtype == torch.float8_e4m3fn)
    quantization = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert quantization.pop("scale_fmt", None) == ("ue8m0" if power_of_two else None)
    assert quantization == {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    }  # fmt: skip


def test_weights_that_were_fp8_are_written_as_fp8_without_loss(tmp_path: Path, network: Network) -> None:
    """With power-of-two scales, which is what makes the second rounding exact."""
    write_checkpoint(network("latent"), tmp_path / "1", precision="fp8", power_of_two=True)
    once = read_checkpoint(tmp_path / "1", dtype=torch.float32)
    write_checkpoint(once, tmp_path / "2", precision="fp8", power_of_two=True)
    twice = read_checkpoint(tmp_path / "2", dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, twice[name]) for name, tensor in once.state_dict().items())


def test_shards_hold_no_more_than_they_may_and_the_index_names_all(tmp_path: Path, network: Network) -> None:
    write_checkpoint(network("latent"), str(tmp_path / "m"), precision="fp8", shard_bytes=20_000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    assert len(files) > 3
    found, total = {}, 0
    for file in files:
        tensors = load_file(tmp_path / "m" / file)
        found |= dict.fromkeys(tensors, file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 20_000 + 1000  # a matrix's scales stay in its shard
        total += size
    assert index == {"metadata": {"total_size": total}, "weight_map": index["weight_map"]}
    assert index["weight_map"] == found
    for name in found:
        if name.endswith("_scale_inv"):
            assert found[name] == found[name.removesuffix("_scale_inv")]


def test_the_plan_is_what_is_written(tmp_path: Path, layout_name: str, network: Network) -> None:
    model = network(layout_name)
    write_checkpoint(model, tmp_path / "m", precision="fp8")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    planned = list(plan(Transformer(model.config, device="meta"), "fp8"))
    assert {tensor.name: (tensor.shape, tensor.size) for tensor in planned} == {
        name: (tuple(tensor.shape), tensor.nbytes) for name, tensor in tensors.items()
    }


def test_every_tensor_begins_at_a_multiple_of_its_width(tmp_path: Path, network: Network) -> None:
    """Readers that map the file cannot look at a float32 at an odd address. 97 x 49 leaves odd ends."""
    write_checkpoint(network("latent", hidden_size=49), tmp_path / "m", precision="fp8")
    header = shards.read_header(tmp_path / "m" / "model.safetensors")
    for tensor in header.values():
        assert tensor.begin % shards.DTYPES[tensor.kind].itemsize == 0
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_mtp_layer_carries_copies(tmp_path: Path, network: Network) -> None:
    write_checkpoint(network("latent"), tmp_path / "m", precision="f32")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    mtp = "model.layers.3"
    assert torch.equal(tensors[f"{mtp}.embed_tokens.weight"], tensors["model.embed_tokens.weight"])
    assert torch.equal(tensors[f"{mtp}.shared_head.head.weight"], tensors["lm_head.weight"])


def test_the_special_tokens_go_to_the_generation_config(tmp_path: Path, network: Network) -> None:
    for ends, written in (((1,), 1), ((1, 2), [1, 2]), ((), None)):
        write_checkpoint(network("latent", eos_token_id=ends), tmp_path / "m")
        config = json.loads((tmp_path / "m" / "generation_config.json").read_text())
        assert config["bos_token_id"] == 0
        assert config.get("eos_token_id") == written


@pytest.mark.parametrize(
    ("precision", "value", "told"),
    [("f16", 1e6, "float16"), ("f16", float("nan"), "float16"), ("fp8", float("inf"), "not finite")],
)
def test_a_weight_that_the_precision_cannot_hold_is_named_and_nothing_is_left(
    tmp_path: Path, network: Network, precision: str, value: float, told: str
) -> None:
    model = network("latent")
    model.state_dict()["layers.0.mlp.up_proj.weight"][3, 3] = value
    with pytest.raises(ModelFormatError, match=rf"{UP}.*{told}"):
        write_checkpoint(model, tmp_path / "m", precision=precision)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_leaves_the_old_model(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(network("latent"), tmp_path / "m", precision="f32")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_write_json", full)
    with pytest.raises(ModelFileError, match="No space left"):
        write_checkpoint(network("grouped"), tmp_path / "m")
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
