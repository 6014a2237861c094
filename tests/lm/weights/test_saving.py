"""``save`` finds the right writer and refuses what no writer can do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import deepwell.lm
from deepwell.errors import ModelFormatError, UsageError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.reading import read_checkpoint
from deepwell.lm.weights.saving import PRECISIONS, save

Network = Callable[..., Transformer]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_writes_a_checkpoint(tmp_path: Path, network: Network, precision: str) -> None:
    save(network("latent"), str(tmp_path / "m"), precision=precision)  # type: ignore[arg-type]
    model = read_checkpoint(tmp_path / "m", dtype=torch.float32)
    assert model.config == network("latent").config


def test_it_is_the_public_save() -> None:
    assert deepwell.lm.save is save


@pytest.mark.parametrize(
    ("wrong", "told", "kind"),
    [
        ({"format": "onnx"}, "no format 'onnx'", UsageError),
        ({"precision": "int4"}, "no precision 'int4'", UsageError),
        ({"format": "gguf", "precision": "fp8"}, "no FP8", ModelFormatError),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, network: Network, wrong: dict[str, str], told: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=told):
        save(network("latent"), tmp_path / "m", **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
