"""The header of a GGUF file, whole, cut and hostile."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter

from deepwell.errors import DeepwellError, ModelFileError
from deepwell.lm.weights.gguf.container import open_gguf
from deepwell.lm.weights.gguf.reading import read_network


def by_the_library(path: Path) -> None:
    """A file that the gguf package writes."""
    writer = GGUFWriter(path, "llama")
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("words", ["a", "", "é"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_bool("yes", True)
    writer.add_uint64("large", 1 << 40)
    writer.add_tensor("matrix", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("vector", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_fields_are_plain_values_and_shapes_are_torchs(tmp_path: Path) -> None:
    by_the_library(tmp_path / "a.gguf")
    file = open_gguf(tmp_path / "a.gguf")
    assert file.fields == {
        "general.architecture": "llama", "llama.attention.layer_norm_rms_epsilon": 1e-5, "words": ["a", "", "é"],
        "numbers": [1, -2, 3], "yes": True, "large": 1 << 40,
    }  # fmt: skip
    assert file.tensors["matrix"].shape == (2, 3)
    assert file.tensors["vector"].kind == "F16"
    assert file.rows("matrix").view(np.float32).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_file_that_is_none_says_what_it_begins_with(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelFileError, match=r"a\.gguf: not a GGUF file.*PK"):
        open_gguf(path)
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match="ends in its header"):
        open_gguf(path)
    path.write_bytes(b"")
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        open_gguf(path)
    with pytest.raises(ModelFileError, match=r"absent\.gguf"):
        open_gguf(tmp_path / "absent.gguf")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
        (struct.pack("<4sIQQ", b"GGUF", 9, 0, 0), "version 9"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 0), "counts of tensors"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", 1 << 62) + bytes(30), "damaged within a key"),
        (
            struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 1 << 60),
            "damaged within k",
        ),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q1sI", 1, b"k", 77), "k is of an unknown type"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q11sIH", 11, b"split.count", 2, 3), "one part of 3"),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(tmp_path: Path, header: bytes, words: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(header)
    with pytest.raises(ModelFileError, match=words):
        open_gguf(path)


def _one_tensor(kind: int, shape: tuple[int, ...], copies: int = 1) -> bytes:
    described = struct.pack(f"<Q1sI{len(shape)}QIQ", 1, b"t", len(shape), *shape, kind, 0)
    return struct.pack("<4sIQQ", b"GGUF", 3, copies, 0) + described * copies + bytes(1000)


def test_descriptions_of_tensors_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    for content, words in (
        (_one_tensor(999, (4,)), "tensor t holds numbers of kind 999"),
        (_one_tensor(8, (33,)), "tensor t has shape.*Q8_0 are blocks of 32"),
        (_one_tensor(0, (0,)), "tensor t has shape"),
        (_one_tensor(0, (1, 1, 1, 1, 1)), "5 dimensions"),
        (_one_tensor(0, (1 << 40, 1 << 20)), "cut off within tensor t"),
        (_one_tensor(0, (4,), copies=2), "tensor t is there twice"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=words):
            open_gguf(path)


def test_a_file_cut_anywhere_is_an_error_and_never_half_a_network(tmp_path: Path, latent_file: Path) -> None:
    content = latent_file.read_bytes()
    path = tmp_path / "cut.gguf"
    for share in (0.0, 0.0005, 0.01, 0.02, 0.05, 0.3, 0.7, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ModelFileError, match=r"cut\.gguf"):
            read_network(open_gguf(path), dtype=torch.float32)


def test_damage_in_the_header_never_ends_in_anything_but_our_errors(tmp_path: Path, grouped_file: Path) -> None:
    content = bytearray(grouped_file.read_bytes())
    draw = random.Random(7)
    header = 2500
    path = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(120):
        damaged = content.copy()
        damaged[draw.randrange(4, header)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            read_network(open_gguf(path), dtype=torch.float32)
        except DeepwellError:
            refused += 1
    assert refused > 60
