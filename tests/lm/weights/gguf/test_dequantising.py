"""Quantised numbers, slab by slab."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quants

from deepwell.errors import ModelFileError
from deepwell.lm.weights.gguf.container import open_gguf
from deepwell.lm.weights.gguf.dequantising import slabs, whole

KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS",
         "IQ3_S", "TQ1_0", "MXFP4"]  # fmt: skip


def write(path: Path, rows: np.ndarray, kind: GGMLQuantizationType) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("t", rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", KINDS)
def test_every_usual_kind_is_read_as_the_library_reads_it(tmp_path: Path, name: str) -> None:
    kind = GGMLQuantizationType[name]
    values, size = GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(1).integers(0, 200, (7, 512 // values * size), dtype=np.uint8)
    write(tmp_path / "a.gguf", rows, kind)
    file = open_gguf(tmp_path / "a.gguf")
    with np.errstate(all="ignore"):
        wanted = quants.dequantize(rows, kind)
    assert file.tensors["t"].shape == (7, 512)
    parts = list(slabs(file, "t", values=2 * 512))
    assert [first for first, _ in parts] == [0, 2, 4, 6]
    np.testing.assert_array_equal(torch.cat([part for _, part in parts]).numpy(), wanted)
    np.testing.assert_array_equal(whole(file, "t").numpy(), wanted)


def test_a_slab_holds_whole_heads(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", np.zeros((12, 4), dtype=np.float32), GGMLQuantizationType.F32)
    file = open_gguf(tmp_path / "a.gguf")
    assert [(first, len(part)) for first, part in slabs(file, "t", multiple=5, values=16)] == [(0, 5), (5, 5), (10, 2)]


def test_plain_kinds_keep_their_dtype_and_their_bits(tmp_path: Path) -> None:
    half = np.array([[1.5, -2.25, 6e-8]], dtype=np.float16)
    write(tmp_path / "half.gguf", half, GGMLQuantizationType.F16)
    read = whole(open_gguf(tmp_path / "half.gguf"), "t")
    assert read.dtype == torch.float16
    np.testing.assert_array_equal(read.numpy(), half)
    brain = torch.tensor([[1.5, -3.0]], dtype=torch.bfloat16)
    write(tmp_path / "brain.gguf", brain.view(torch.uint8).numpy(), GGMLQuantizationType.BF16)
    assert torch.equal(whole(open_gguf(tmp_path / "brain.gguf"), "t"), brain)


def test_a_kind_that_cannot_be_read_names_the_tensor(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_K
    values, size = GGML_QUANT_SIZES[kind]
    write(tmp_path / "a.gguf", np.zeros((1, size), dtype=np.uint8), kind)
    assert values == 256
    with pytest.raises(ModelFileError, match=r"a\.gguf: tensor t holds Q8_K"):
        whole(open_gguf(tmp_path / "a.gguf"), "t")
