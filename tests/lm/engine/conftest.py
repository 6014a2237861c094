"""Random networks; a tiny tokenizer of each family: with tags of its own (DeepSeek's), or spelling them (ChatML)."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.tokenizer import Tokenizer

from .networks import SHAPES

_HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("tiny_tokenizers", _HERE.parent / "weights" / "tiny_tokenizers.py")
assert _spec is not None and _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)


@pytest.fixture(scope="session")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """``<think>`` and ``</think>`` are tokens."""
    return Tokenizer.from_folder(tiny.write_byte_level(tmp_path_factory.mktemp("deepseek"), controls=tiny.DEEPSEEK))


@pytest.fixture(scope="session")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """``<think>`` and ``</think>`` are spelled in several tokens."""
    return Tokenizer.from_folder(tiny.write_byte_level(tmp_path_factory.mktemp("chatml"), controls=tiny.CHATML))


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    """A vocabulary that puts a space before a text."""
    return Tokenizer.from_gguf(tiny.sentencepiece_model()[1])


@pytest.fixture(params=["deepseek", "chatml", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each of the three."""
    chosen: Tokenizer = request.getfixturevalue(request.param)
    return chosen


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
