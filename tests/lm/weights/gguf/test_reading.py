"""Files as other tools write them, and files that are wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from deepwell.errors import DeepwellError, ModelConfigError, ModelFileError
from deepwell.lm.model.config import RopeScaling
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.gguf.container import open_gguf
from deepwell.lm.weights.gguf.reading import read_network
from deepwell.lm.weights.gguf.writing import write_gguf

Make = Callable[..., Transformer]
Tensors = dict[str, np.ndarray]
Fields = dict[str, Any]
TOKENS = torch.arange(30).view(2, 15) * 3


def rewrite(path: Path, change: Callable[[Fields, Tensors], None], quantise: str | None = None) -> Path:
    """The file again, by the gguf package, after ``change`` on its fields and tensors."""
    reader = GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    change(fields, tensors)
    target = path.with_name("changed.gguf")
    writer = GGUFWriter(target, fields.pop("general.architecture"))
    for key, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value)
    for name, values in tensors.items():
        if quantise and values.ndim > 1 and values.shape[-1] % 32 == 0:
            kind = GGMLQuantizationType[quantise]
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def logits(path: Path) -> torch.Tensor:
    with torch.inference_mode():
        return read_network(open_gguf(path), dtype=torch.float32).eval()(TOKENS)


def test_a_file_by_the_gguf_package_is_the_same_network(latent_file: Path) -> None:
    assert torch.equal(logits(rewrite(latent_file, lambda fields, tensors: None)), logits(latent_file))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "BF16"])
def test_quantised_experts_and_heads_land_where_whole_ones_do(tmp_path: Path, network: Make, kind: str) -> None:
    model = network("latent", hidden_size=64, moe_intermediate_size=32, num_nextn_predict_layers=0)
    write_gguf(model, tmp_path / "a.gguf", precision="f32")

    def rounded(fields: Fields, tensors: Tensors) -> None:
        for name, values in tensors.items():
            if values.ndim > 1 and values.shape[-1] % 32 == 0:
                number = GGMLQuantizationType[kind]
                tensors[name] = quants.dequantize(quants.quantize(values, number), number)

    wanted = logits(rewrite(tmp_path / "a.gguf", rounded))
    read = logits(rewrite(tmp_path / "a.gguf", lambda fields, tensors: None, quantise=kind))
    assert torch.equal(read, wanted)
    assert not torch.equal(read, logits(tmp_path / "a.gguf"))


def test_files_from_before_absorption_hold_the_up_projection_whole(latent_file: Path) -> None:
    """Until 2025 converters wrote ``attn_kv_b`` and the widths of unabsorbed heads."""

    def older(fields: Fields, tensors: Tensors) -> None:
        for layer in range(3):
            key = tensors.pop(f"blk.{layer}.attn_k_b.weight").transpose(0, 2, 1)
            value = tensors.pop(f"blk.{layer}.attn_v_b.weight")
            joined = np.concatenate([key, value], axis=1)
            tensors[f"blk.{layer}.attn_kv_b.weight"] = np.ascontiguousarray(joined.reshape(-1, joined.shape[-1]))
        fields["deepseek2.attention.head_count_kv"] = 4
        fields["deepseek2.attention.key_length"] = fields.pop("deepseek2.attention.key_length_mla")
        fields["deepseek2.attention.value_length"] = fields.pop("deepseek2.attention.value_length_mla")

    assert torch.equal(logits(rewrite(latent_file, older)), logits(latent_file))


def test_newer_files_may_join_the_first_two_matrices_of_experts(latent_file: Path) -> None:
    def newer(fields: Fields, tensors: Tensors) -> None:
        for layer in (1, 2):
            pair = [tensors.pop(f"blk.{layer}.ffn_{name}_exps.weight") for name in ("gate", "up")]
            tensors[f"blk.{layer}.ffn_gate_up_exps.weight"] = np.concatenate(pair, axis=1)

    assert torch.equal(logits(rewrite(latent_file, newer)), logits(latent_file))


def test_prediction_modules_of_other_writers_are_passed_over(latent_file: Path) -> None:
    def more(fields: Fields, tensors: Tensors) -> None:
        tensors["blk.3.nextn.eh_proj.weight"] = np.zeros((48, 96), dtype=np.float32)
        fields["deepseek2.block_count"] = 4
        fields["deepseek2.nextn_predict_layers"] = 1

    assert torch.equal(logits(rewrite(latent_file, more)), logits(latent_file))


def _drop(name: str) -> Callable[[Fields, Tensors], None]:
    return lambda fields, tensors: tensors.__delitem__(name)


def _set(key: str, value: Any) -> Callable[[Fields, Tensors], None]:
    return lambda fields, tensors: fields.update({key: value})


def _shape(name: str, *shape: int) -> Callable[[Fields, Tensors], None]:
    return lambda fields, tensors: tensors.update({name: np.zeros(shape, dtype=np.float32)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("general.architecture", "gemma3"), "architecture 'gemma3'"),
        (_drop("blk.1.ffn_up_exps.weight"), r"tensor blk\.1\.ffn_up_exps\.weight is missing"),
        (_drop("blk.2.attn_kv_a_norm.weight"), r"tensor blk\.2\.attn_kv_a_norm\.weight is missing"),
        (_drop("token_embd.weight"), r"token_embd\.weight is missing"),
        (_shape("blk.0.attn_output.weight", 48, 79), r"blk\.0\.attn_output\.weight has shape \[48, 79\]"),
        (_shape("blk.1.attn_k_b.weight", 4, 16, 32), r"attn_k_b\.weight has shape \[4, 16, 32\]; .* \[4, 32, 16\]"),
        (_shape("blk.1.ffn_down_exps.weight", 8, 48, 39), r"ffn_down_exps\.weight has shape"),
        (_shape("blk.0.attn_q_norm.weight", 48), r"attn_q_norm\.weight has no place"),
        (_set("deepseek2.attention.head_count", [4, 4, 2]), "differs from layer to layer"),
        (_set("deepseek2.expert_gating_func", 7), "expert_gating_func is 7"),
        (_set("deepseek2.block_count", 100_000), "block_count is 100000"),
        (_set("deepseek2.embedding_length", "wide"), "embedding_length is 'wide'"),
    ],
)
def test_a_file_that_does_not_fit_names_itself_and_the_tensor(
    latent_file: Path, change: Callable[[Fields, Tensors], None], words: str
) -> None:
    path = rewrite(latent_file, change)
    with pytest.raises(ModelFileError, match=words) as raised:
        read_network(open_gguf(path), dtype=torch.float32)
    assert "changed.gguf" in str(raised.value)


def test_metadata_that_contradict_each_other_name_file_and_fields(latent_file: Path) -> None:
    path = rewrite(latent_file, _set("deepseek2.expert_used_count", 99))
    with pytest.raises(ModelConfigError, match=r"changed\.gguf: num_experts_per_tok \(99\)"):
        read_network(open_gguf(path), dtype=torch.float32)


def test_a_rotary_part_of_a_llama_key_is_refused(grouped_file: Path) -> None:
    path = rewrite(grouped_file, _set("llama.rope.dimension_count", 6))
    with pytest.raises(ModelFileError, match=r"rope\.dimension_count \(6\)"):
        read_network(open_gguf(path), dtype=torch.float32)


def test_ends_of_a_turn_are_ends(grouped_file: Path) -> None:
    path = rewrite(
        grouped_file,
        lambda fields, tensors: fields.update({"tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.eot_token_id": 7}),
    )
    assert read_network(open_gguf(path), dtype=torch.float32).config.eos_token_id == (5, 7)


@pytest.mark.parametrize("value", ["word", 0, 0.5, 4_000_000_000, [1, 2]])
def test_strange_values_of_any_key_never_end_in_anything_but_our_errors(
    tmp_path: Path, network: Make, value: Any
) -> None:
    scaling = RopeScaling(kind="yarn", factor=8.0, mscale=1.0, mscale_all_dim=1.0)
    write_gguf(network("latent", rope_scaling=scaling), tmp_path / "a.gguf", precision="f32")
    keys = [key for key in open_gguf(tmp_path / "a.gguf").fields if not key.startswith("general.")]
    refused = 0
    for key in [*keys, "split.count", "deepseek2.attention.sliding_window", "deepseek2.nextn_predict_layers"]:
        path = rewrite(tmp_path / "a.gguf", _set(key, value))
        try:
            read_network(open_gguf(path), dtype=torch.float32)
        except DeepwellError:
            refused += 1
    assert refused > len(keys) / 3


@pytest.mark.parametrize("factors", [np.ones(5), np.zeros(6), np.full(6, np.nan)])
def test_factors_of_rope_that_cannot_be_right_name_their_tensor(grouped_file: Path, factors: np.ndarray) -> None:
    def change(fields: Fields, tensors: Tensors) -> None:
        tensors["rope_freqs.weight"] = factors.astype(np.float32)

    with pytest.raises(ModelFileError, match=r"rope_freqs\.weight is not 6 factors"):
        read_network(open_gguf(rewrite(grouped_file, change)), dtype=torch.float32)
