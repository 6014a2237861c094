"""Prefix, suffix, middle: nothing lost, always the same, and equally many in each epoch."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.errors import RecipeError
from deepwell.lm.training.data.bpe import FIM_BEGIN, FIM_END, FIM_HOLE
from deepwell.lm.training.data.fim import EXTRA, FimTokens, chosen, rearranged
from deepwell.lm.weights.tokenizer import Tokenizer

FIM = FimTokens(1001, 1002, 1003)


@given(st.integers(0, 60), st.integers(0, 1000), st.integers(0, 3), st.integers(0, 50))
def test_the_parts_put_back_are_the_document(count: int, seed: int, epoch: int, document: int) -> None:
    tokens = np.arange(count, dtype=np.uint16)
    made = rearranged(tokens, FIM, seed=seed, epoch=epoch, document=document).tolist()
    assert made[0] == FIM.begin
    hole, end = made.index(FIM.hole), made.index(FIM.end)
    prefix, suffix, middle = made[1:hole], made[hole + 1 : end], made[end + 1 :]
    assert prefix + middle + suffix == tokens.tolist()
    assert len(made) == count + EXTRA
    assert made == rearranged(tokens, FIM, seed=seed, epoch=epoch, document=document).tolist()


def test_cuts_differ_from_document_to_document_and_epoch_to_epoch() -> None:
    tokens = np.arange(500)
    made = {
        tuple(rearranged(tokens, FIM, seed=seed, epoch=epoch, document=document))
        for seed in (0, 1)
        for epoch in (0, 1)
        for document in (0, 1)
    }
    assert len(made) == 8


@given(st.integers(0, 200), st.floats(0, 1), st.integers(0, 9))
def test_each_epoch_has_equally_many(count: int, rate: float, epoch: int) -> None:
    assert chosen(count, rate, 5, epoch).sum() == round(rate * count)


def test_epochs_and_seeds_choose_others() -> None:
    picks = [chosen(1000, 0.1, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all((one != other).any() for one, other in ((picks[0], picks[1]), (picks[0], picks[2])))
    assert (picks[0] == chosen(1000, 0.1, 0, 0)).all()


def test_the_tokens_of_a_tokenizer(tokenizer: Tokenizer) -> None:
    fim = FimTokens.of(tokenizer)
    assert [fim.begin, fim.hole, fim.end] == [tokenizer.token_id(text) for text in (FIM_BEGIN, FIM_HOLE, FIM_END)]


def test_a_tokenizer_without_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<｜fim▁hole｜>", "<｜other｜>"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"^data\.fim_rate is above 0, and the tokenizer of .* has no tokens"):
        FimTokens.of(Tokenizer.from_folder(tmp_path))
