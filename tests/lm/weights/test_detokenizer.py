"""Streams of ids: no broken characters, and together exactly what decoding all at once gives."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.errors import ModelFileError
from deepwell.lm.weights.detokenizer import Detokenizer, Spelling, byte_alphabet
from deepwell.lm.weights.tokenizer import Tokenizer

_spec = importlib.util.spec_from_file_location("tiny_tokenizers", Path(__file__).with_name("tiny_tokenizers.py"))
assert _spec is not None and _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

SENTENCEPIECE = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    from tokenizers import Tokenizer as Rust

    folder = tiny.write_byte_level(tmp_path_factory.mktemp("bytes"), controls=tiny.DEEPSEEK, pre="deepseek-v3")
    return Tokenizer.from_folder(folder), Rust.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def pieces() -> tuple[Tokenizer, Any]:
    processor, fields = tiny.sentencepiece_model()
    return Tokenizer.from_gguf(fields), processor


def _streamed(tokenizer: Tokenizer, ids: list[int], skip: bool) -> tuple[list[str], str]:
    stream = tokenizer.stream(skip_specials=skip)
    return [stream.push(one) for one in ids], stream.finish()


@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, 600), max_size=40), skip=st.booleans())
def test_any_bytes_come_out_as_the_rust_library_decodes_them(
    ids: list[int], skip: bool, byte_level: tuple[Tokenizer, Any]
) -> None:
    tokenizer, rust = byte_level
    ids = [one for one in ids if one < tokenizer.vocab_size]
    shown, rest = _streamed(tokenizer, ids, skip)
    assert (
        "".join(shown) + rest == tokenizer.decode(ids, skip_specials=skip) == rust.decode(ids, skip_special_tokens=skip)
    )


@settings(max_examples=200)
@given(text=st.text(max_size=30), cut=st.integers(0, 60))
def test_what_was_said_is_never_taken_back(text: str, cut: int, byte_level: tuple[Tokenizer, Any]) -> None:
    """A piece holds no replacement character that the text does not, and is a beginning of the whole text."""
    tokenizer, _ = byte_level
    shown, rest = _streamed(tokenizer, tokenizer.encode(text), True)
    assert text.startswith("".join(shown[:cut]))
    assert rest == ""


@settings(max_examples=100)
@given(text=st.text(max_size=30))
def test_sentencepiece_text_comes_back_with_its_spaces(text: str, pieces: tuple[Tokenizer, Any]) -> None:
    tokenizer, processor = pieces
    text = text.replace("\u2581", "")
    ids = tokenizer.encode(text, bos=False)
    assert "".join(_streamed(tokenizer, ids, True)[0]) == text == processor.decode(ids)


@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 479), max_size=30), skip=st.booleans())
def test_any_sentencepiece_ids_stream_as_they_decode(ids: list[int], skip: bool, pieces: tuple[Tokenizer, Any]) -> None:
    tokenizer, _ = pieces
    shown, rest = _streamed(tokenizer, ids, skip)
    assert "".join(shown) + rest == tokenizer.decode(ids, skip_specials=skip)


def test_an_emoji_waits_for_its_last_byte(byte_level: tuple[Tokenizer, Any]) -> None:
    tokenizer, _ = byte_level
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    ids = [tokenizer.token_id(letters[byte]) for byte in "a😀".encode()]
    shown, rest = _streamed(tokenizer, [one for one in ids if one is not None], True)
    assert shown == ["a", "", "", "", "😀"]
    assert rest == ""
    cut, end = _streamed(tokenizer, [one for one in ids[:3] if one is not None], True)
    assert (cut, end) == (["a", "", ""], "�")


def test_thoughts_are_shown_and_special_tokens_only_on_request(byte_level: tuple[Tokenizer, Any]) -> None:
    tokenizer, _ = byte_level
    ids = tokenizer.encode("<think>a</think>b<｜end▁of▁sentence｜>", specials=True)
    assert tokenizer.decode(ids) == "<think>a</think>b"
    assert tokenizer.decode(ids, skip_specials=False) == "<think>a</think>b<｜end▁of▁sentence｜>"


def test_a_token_costs_the_same_however_long_the_text_is() -> None:
    """Counted, not timed: each push asks for the bytes of its own token and of no other."""
    asked: list[int] = []
    stream = Detokenizer(lambda token: asked.append(token) or b"\xf0", Spelling(byte_level=True))
    for token in range(500):
        stream.push(token)
    assert asked == list(range(500))


@pytest.mark.parametrize(
    ("decoder", "tokens", "text"),
    [
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}, ["▁a", "▁b"], "a b"),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}, ["▁a", "▁b"], " a b"),
        (
            SENTENCEPIECE,
            ["▁▁a", "<0xC3>", "<0xA9>", "▁b"],
            " aé b",
        ),
        (SENTENCEPIECE, ["a", "▁b"], "a b"),
    ],
)
def test_each_kind_of_decoder_writes_as_the_library_does(decoder: dict[str, Any], tokens: list[str], text: str) -> None:
    import json

    from tokenizers import Tokenizer as Rust

    spelling = Spelling.of(decoder, "x")
    stream = Detokenizer(lambda token: spelling.bytes_of(tokens[token]), spelling)
    assert "".join(stream.push(number) for number in range(len(tokens))) + stream.finish() == text
    model = {"type": "BPE", "vocab": {token: number for number, token in enumerate(tokens)}, "merges": []}
    rust = Rust.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model, "decoder": decoder}))
    assert rust.decode(list(range(len(tokens)))) == text


@pytest.mark.parametrize(
    "decoder", [None, {"type": "WordPiece"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]
)
def test_a_decoder_that_no_language_model_here_uses(decoder: dict[str, Any] | None) -> None:
    with pytest.raises(ModelFileError, match=r"x\.json"):
        Spelling.of(decoder, "x.json")
