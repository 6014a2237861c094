"""The bytes of a file, read back by the gguf package."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from torch import Tensor

from deepwell.errors import ModelFileError, UsageError
from deepwell.lm.weights.gguf.composing import Planned, compose

PLAN = [Planned("a", (2, 3), "f32"), Planned("b", (5,), "f16"), Planned("c", (1, 2), "bf16")]
VALUES = [torch.arange(6.0).view(2, 3), torch.arange(5).half(), torch.tensor([[1.0, -2.0]]).bfloat16()]


def test_the_gguf_package_reads_what_is_written(tmp_path: Path) -> None:
    fields = {
        "general.architecture": "llama", "yes": True, "count": 7, "share": 0.5, "words": ["é", ""],
        "numbers": [1, -2], "scores": [0.5, -1.0],
    }  # fmt: skip
    compose(tmp_path / "deep" / "a.gguf", fields, PLAN, [[VALUES[0][:1], VALUES[0][1:]], [VALUES[1]], [VALUES[2]]])
    reader = GGUFReader(tmp_path / "deep" / "a.gguf")
    for key, value in fields.items():
        assert reader.fields[key].contents() == value
    a, b, c = reader.tensors
    assert [tensor.name for tensor in reader.tensors] == ["a", "b", "c"]
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)
    np.testing.assert_array_equal(a.data, VALUES[0].numpy())
    np.testing.assert_array_equal(b.data, VALUES[1].numpy())
    assert (c.tensor_type.name, list(c.shape)) == ("BF16", [2, 1])


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_text("before")

    def broken() -> Iterator[Tensor]:
        yield VALUES[0][:1]
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelFileError, match="No space left"):
        compose(path, {"general.architecture": "llama"}, PLAN[:1], [broken()])
    assert [file.name for file in tmp_path.iterdir()] == ["a.gguf"]
    assert path.read_text() == "before"
    with pytest.raises(UsageError, match="is a folder"):
        compose(tmp_path, {}, [], [])
