"""Prompts for a text's middle, in every format, and never with marks that somebody wrote."""

from pathlib import Path
from types import ModuleType

import pytest

from deepwell.errors import UsageError
from deepwell.lm.engine.infill import FORMATS, infill_prompt
from deepwell.lm.weights.tokenizer import Tokenizer

from ..conftest import tiny

tiny: ModuleType


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: next(one for one in form if isinstance(one, str)))
def test_before_and_behind_stand_between_their_marks(form: tuple[object, ...], tmp_path: Path) -> None:
    marks = tuple(one for one in form if isinstance(one, str))
    tokenizer = Tokenizer.from_folder(tiny.write_byte_level(tmp_path, controls=(*tiny.CHATML, *marks)))
    before, behind = "def f(x):\n    y = ", f"\n    return y  # {marks[0]}"
    tokens = infill_prompt(tokenizer, before, behind)
    assert [token for token in tokens if tokenizer.is_control(token)] == [tokenizer.token_id(mark) for mark in marks]
    first = "[SUFFIX]" not in marks
    texts = [before, behind] if first else [behind, before]
    assert tokenizer.decode(tokens, skip_specials=True) == "".join(texts)


def test_a_vocabulary_without_marks_is_told(chatml: Tokenizer) -> None:
    with pytest.raises(UsageError, match="no tokens for it"):
        infill_prompt(chatml, "a", "b")


def test_a_text_begins_as_the_model_expects_it(sentencepiece: Tokenizer, deepseek: Tokenizer) -> None:
    for tokenizer in (sentencepiece, deepseek):
        with pytest.raises(UsageError):
            infill_prompt(tokenizer, "a", "b")
