"""Small GGUF files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.gguf.writing import write_gguf

LATENT = {"num_nextn_predict_layers": 0}


@pytest.fixture
def latent_file(tmp_path: Path, network: Callable[..., Transformer]) -> Path:
    """A deepseek2 file with experts, in float32 and without a tokenizer."""
    path = tmp_path / "latent.gguf"
    write_gguf(network("latent", **LATENT), path, precision="f32")
    return path


@pytest.fixture
def grouped_file(tmp_path: Path, network: Callable[..., Transformer]) -> Path:
    """A llama file in float32, without a tokenizer."""
    path = tmp_path / "grouped.gguf"
    write_gguf(network("grouped"), path, precision="f32")
    return path
