"""Texts made up from a seed, recipes over them, and tokenizers trained on the spot."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepwell.lm.training.data.bpe import train_tokenizer
from deepwell.lm.training.data.store import Documents, SideWriter, open_side
from deepwell.lm.training.recipe import BatchSection, DataSection, ModelSection, Recipe, SourceSection
from deepwell.lm.weights.tokenizer import Tokenizer

_SYLLABLES = "ba ce di fo gu la me ni po ru sa te vi wo xu é ß ж 井 😀 qui stra".split()


def words(seed: int, count: int) -> str:
    """So many words, other ones for each seed."""
    dice = random.Random(seed)
    return " ".join("".join(dice.choices(_SYLLABLES, k=dice.randint(1, 4))) for _ in range(count))


@pytest.fixture(scope="session")
def make_words() -> Callable[[int, int], str]:
    return words


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([words(seed, 200) for seed in range(20)], 600)


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    def make(path: str = "*.jsonl", *, kind: Any = "pretrain", source: Any = None, **data: Any) -> Recipe:
        section = SourceSection(path=path, **(source or {}))
        return Recipe(
            kind=kind,
            model=ModelSection(named="debug"),
            data=DataSection(sources=(section,), **{"sequence_length": 16, **data}),
            batch=BatchSection(steps=1),
        )

    return make


@pytest.fixture
def write_side(tmp_path: Path) -> Callable[..., Documents]:
    """A side of a corpus with these documents: lists of ids, or pairs of ids and what is learned."""

    def write(documents: list[Any], *, times: Any = None, chats: bool = False, side: str = "train") -> Documents:
        import numpy as np

        with SideWriter(tmp_path, side, vocab_size=60_000, chats=chats) as writer:
            for number, one in enumerate(documents):
                ids, learned = one if chats else (one, None)
                said = None if learned is None else np.array(learned, dtype=np.bool_)
                writer.add(ids, size=len(ids), times=times[number] if times else 1, learned=said)
            writer.finish()
        return open_side(tmp_path, side, vocab_size=60_000, chats=chats)

    return write
