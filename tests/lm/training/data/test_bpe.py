"""A trained tokenizer is a whole one: it saves, loads, chats, and has a name in GGUF."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.errors import DataError
from deepwell.lm.training.data.bpe import BOS, CONTROL_TOKENS, EOS, PAD, train_tokenizer
from deepwell.lm.weights.tokenizer import Tokenizer

TEXTS = ["the well is deep and the water cold, 井戸は深い 12345\n\n  def f(x): return x" * 3, "naïve café 😀 " * 9]
TRICKY = "I'LL go, naïve 12345 井戸は深い。\r\n\tx += 1;  😀👩‍👩‍👧 \u00a0end  "


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(TEXTS, 400)


def test_the_control_tokens_come_first(trained: Tokenizer) -> None:
    assert [trained.token_id(text) for text in CONTROL_TOKENS] == list(range(len(CONTROL_TOKENS)))
    assert all(trained.is_control(number) for number in range(len(CONTROL_TOKENS)))
    assert (trained.bos_token_id, trained.eos_token_ids, trained.pad_token_id) == (0, (1,), 2)
    assert CONTROL_TOKENS[:3] == (BOS, EOS, PAD)
    assert trained.vocab_size <= 400
    assert trained.encode("the well")[0] == 0


@given(st.text())
def test_any_text_comes_back(trained: Tokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text, bos=False)) == text.encode("utf-8", "replace").decode()
    assert trained.encode_batch([text, "x"])[0] == trained.encode(text, bos=False)


def test_it_survives_a_folder_and_gguf(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    fields = trained.to_gguf()
    assert fields["tokenizer.ggml.pre"] == "deepseek-v3"
    assert fields["tokenizer.ggml.bos_token_id"] == 0
    for again in (Tokenizer.from_folder(tmp_path), Tokenizer.from_gguf(fields)):
        for text in (*TEXTS, TRICKY):
            assert again.encode(text) == trained.encode(text)
        assert again.eos_token_ids == trained.eos_token_ids
        assert again.pad_token_id == trained.pad_token_id
        messages = [{"role": "user", "content": "hi <｜User｜>"}]
        assert again.chat(messages) == trained.chat(messages)
    # A tokenizer from a folder is told its name in GGUF by what it does.
    assert Tokenizer.from_folder(tmp_path).to_gguf()["tokenizer.ggml.pre"] == "deepseek-v3"


def test_it_chats_as_deepseek_does(trained: Tokenizer) -> None:
    text = trained.chat_text([{"role": "user", "content": "hi"}])
    assert text == f"{BOS}<｜User｜>hi<｜Assistant｜>"


def test_the_same_texts_give_the_same_tokenizer_in_any_process() -> None:
    program = (
        "import hashlib; from deepwell.lm.training.data.bpe import train_tokenizer;"
        f"print(hashlib.sha256(train_tokenizer({TEXTS!r}, 400).parts.description.encode()).hexdigest())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_no_text() -> None:
    with pytest.raises(DataError, match="no text to train a tokenizer"):
        train_tokenizer([], 400)
