"""Random networks of every shape that the engine runs; tokenizers come from the folder above."""

from collections.abc import Callable

import pytest
import torch

from deepwell.lm.model.transformer import Transformer

from .networks import SHAPES


@pytest.fixture(scope="session")
def network() -> Callable[[str], Transformer]:
    """A network of one of ``SHAPES``; float64, so that a batch rounds no choice away."""
    made: dict[str, Transformer] = {}

    def make(name: str) -> Transformer:
        if name not in made:
            torch.manual_seed(0)
            made[name] = Transformer(SHAPES[name], dtype=torch.float64)
        return made[name]

    return make
