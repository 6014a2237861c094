"""Tokenizers in GGUF metadata: ids as the original's, there and back, and every damage by name."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell import models
from deepwell.errors import ModelFileError, ModelFormatError
from deepwell.lm.weights.gguf.container import open_gguf
from deepwell.lm.weights.tokenizer import Tokenizer
from deepwell.lm.weights.tokenizer_splits import SPLITTINGS, name_of

_spec = importlib.util.spec_from_file_location("tiny_tokenizers", Path(__file__).with_name("tiny_tokenizers.py"))
assert _spec is not None and _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

WHERE = os.environ.get("DEEPWELL_MODELS")  # before any test moves it
PRE = ["llama-bpe", "qwen2", "deepseek-v3", "deepseek-llm", "deepseek-coder", "smollm", "gpt-2", "gpt-4o", "default"]


@pytest.fixture(scope="module")
def sentencepiece() -> tuple[Any, dict[str, Any], Tokenizer]:
    processor, fields = tiny.sentencepiece_model()
    return processor, fields, Tokenizer.from_gguf(fields)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tiny.write_byte_level(tmp_path_factory.mktemp("gguf"), pre="smollm", plain=("<tool_call>", "   "))
    return Tokenizer.from_folder(folder).to_gguf()


# ---- byte-level ----


@pytest.mark.parametrize("pre", PRE)
def test_a_folder_goes_through_gguf_without_changing_an_id(pre: str, tmp_path: Path) -> None:
    first = Tokenizer.from_folder(tiny.write_byte_level(tmp_path, pre=pre, template="{{ messages }}"))
    written = first.to_gguf()
    assert written["tokenizer.ggml.pre"] == pre
    second = Tokenizer.from_gguf(json.loads(json.dumps(written)), source="x.gguf")
    for text in [*tiny.WORDS[:3], "<|im_start|>user\n  123456 ½ naïve e\u0301<|im_end|>", "", " ", "\n\n\t "]:
        assert first.encode(text) == second.encode(text)
        assert first.encode(text, specials=True) == second.encode(text, specials=True)
    assert second.to_gguf() == written
    assert (second.eos_token_ids, second.bos_token_id) == (first.eos_token_ids, first.bos_token_id)
    assert second.parts.templates == first.parts.templates


def test_each_way_of_splitting_is_told_from_the_others() -> None:
    """Names that are one and the same way give the first of them."""
    for name, splitting in SPLITTINGS.items():
        model = {"ignore_merges": splitting.ignore_merges}
        normalizer = {"type": "NFC"} if splitting.nfc else None
        found = name_of({"pre_tokenizer": splitting.pre_tokenizer(), "model": model, "normalizer": normalizer})
        assert found is not None
        same = SPLITTINGS[found]
        assert (same.patterns, same.digits, same.gpt2) == (splitting.patterns, splitting.digits, splitting.gpt2), name


def test_kinds_of_tokens_and_unused_rows(fields: dict[str, Any], tmp_path: Path) -> None:
    types = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    assert (types["<|im_end|>"], types["<tool_call>"], types["   "], types["a"]) == (3, 3, 4, 1)
    tokenizer = Tokenizer.from_gguf(fields)
    wide = tokenizer.to_gguf(tokenizer.vocab_size + 2)
    assert wide["tokenizer.ggml.tokens"][-1] == f"[PAD{tokenizer.vocab_size + 1}]"
    assert wide["tokenizer.ggml.token_type"][-2:] == [5, 5]
    again = Tokenizer.from_gguf(wide)
    unused = tokenizer.vocab_size + 1
    assert unused not in again.encode(f"[PAD{unused}]", specials=True)
    with pytest.raises(ModelFormatError, match="network rows for 7"):
        tokenizer.to_gguf(7)


def test_a_way_of_splitting_that_gguf_has_no_name_for(tmp_path: Path) -> None:
    tiny.write_byte_level(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "[aeiou]"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelFormatError, match="no name for the way"):
        Tokenizer.from_folder(tmp_path).to_gguf()


def test_the_beginning_follows_the_key_and_else_the_name(fields: dict[str, Any]) -> None:
    assert not Tokenizer.from_gguf(fields).adds_bos
    assert Tokenizer.from_gguf({**fields, "tokenizer.ggml.add_bos_token": True}).adds_bos
    bare = {key: value for key, value in fields.items() if key != "tokenizer.ggml.add_bos_token"}
    assert Tokenizer.from_gguf({**bare, "tokenizer.ggml.pre": "llama-bpe"}).adds_bos


# ---- SentencePiece ----


@settings(max_examples=200)
@given(text=st.one_of(st.text(max_size=30), st.lists(st.sampled_from(" ab1é井😀\n'<>s/w"), max_size=30).map("".join)))
def test_ids_are_those_of_sentencepiece(text: str, sentencepiece: tuple[Any, dict[str, Any], Tokenizer]) -> None:
    processor, _, tokenizer = sentencepiece
    text = text.replace("\u2581", "").replace("\0", "")
    assert tokenizer.encode(text, bos=False) == processor.encode(text)


def test_a_control_token_typed_as_text_is_text(sentencepiece: tuple[Any, dict[str, Any], Tokenizer]) -> None:
    processor, _, tokenizer = sentencepiece
    assert tokenizer.encode("a</s><s>b") == [1, *processor.encode("a</s><s>b")]
    assert {1, 2} <= set(tokenizer.encode("a</s><s>b", bos=False, specials=True))


def test_sentencepiece_metadata_there_and_back(
    sentencepiece: tuple[Any, dict[str, Any], Tokenizer], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    _, fields, tokenizer = sentencepiece
    written = tokenizer.to_gguf()
    assert {key: written[key] for key in fields if "scores" not in key} == {
        k: v for k, v in fields.items() if "scores" not in k
    }
    again = Tokenizer.from_gguf(written)
    tokenizer.save(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*tiny.WORDS[:3], "  two  spaces ", "", "х\ufffd"]:
        assert again.encode(text) == tokenizer.encode(text) == reference(text).input_ids
        assert again.decode(again.encode(text)) == text


def test_without_the_space_in_front(sentencepiece: tuple[Any, dict[str, Any], Tokenizer]) -> None:
    _, fields, tokenizer = sentencepiece
    bare = Tokenizer.from_gguf({**fields, "tokenizer.ggml.add_space_prefix": False})
    assert bare.decode(bare.encode(" well")) == " well"
    assert bare.encode(" well") == tokenizer.encode("well")
    assert bare.to_gguf()["tokenizer.ggml.add_space_prefix"] is False


# ---- damage ----


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model", None, r"no tokenizer\.ggml\.model"),
        ("model", "bert", "'bert'"),
        ("model", 7, "is a int where a str"),
        ("pre", "klingon", "'klingon'; known are"),
        ("tokens", None, r"no tokenizer\.ggml\.tokens"),
        ("token_type", [1], "1 values for"),
        ("merges", None, r"no tokenizer\.ggml\.merges"),
        ("merges", ["a"], r"merges\[0\]"),
        ("merges", ["qqq zzz"], r"merges\[0\] is 'qqq zzz'"),
        ("eos_token_id", 10**6, "eos_token_id is 1000000"),
        ("bos_token_id", "one", "bos_token_id is 'one'"),
        ("add_bos_token", 1, "is a int where a bool"),
    ],
)
def test_damaged_metadata_is_named(key: str, value: Any, words: str, fields: dict[str, Any]) -> None:
    damaged = {**fields, f"tokenizer.ggml.{key}": value}
    with pytest.raises(ModelFileError, match=rf"broken\.gguf: .*{words}"):
        Tokenizer.from_gguf(damaged, source="broken.gguf")


def test_scores_that_do_not_fit(sentencepiece: tuple[Any, dict[str, Any], Tokenizer]) -> None:
    _, fields, _ = sentencepiece
    with pytest.raises(ModelFileError, match=r"scores has 1 values for 480"):
        Tokenizer.from_gguf({**fields, "tokenizer.ggml.scores": [0.0]})


# ---- the real one ----


@pytest.fixture
def smollm2(monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    if WHERE is None:
        monkeypatch.delenv("DEEPWELL_MODELS", raising=False)
    else:
        monkeypatch.setenv("DEEPWELL_MODELS", WHERE)
    path = next(models.folder("smollm2-135m-instruct").glob("*.gguf"))
    return Tokenizer.from_gguf(open_gguf(path).fields, source=str(path))


@pytest.mark.models
def test_smollm2_has_the_ids_that_llama_cpp_gives(smollm2: Tokenizer) -> None:
    assert smollm2.encode("Deep wells are") == [29602, 14443, 359]
    text = " a  b\n\n\tc 12345 😀👩\u200d👩\u200d👧 漢字 <|im_start|>user"
    ids = [
        253, 216, 278, 1116, 197, 83, 216, 33, 34, 35, 36, 37, 40303, 218, 10813, 235, 119, 321, 231, 10813, 235, 119,
        321, 231, 10813, 235, 117, 17097, 137, 112, 36518, 2067, 108, 306, 79, 3738, 108, 46, 4093,
    ]  # fmt: skip
    assert smollm2.encode(text) == ids
    assert smollm2.decode(ids) == text
    assert smollm2.encode(text, specials=True)[-2:] == [1, 4093]
    assert (smollm2.vocab_size, smollm2.eos_token_ids, smollm2.adds_bos) == (49152, (2, 0), False)


@pytest.mark.models
def test_smollm2_chats_by_its_own_template(smollm2: Tokenizer) -> None:
    ids = smollm2.chat([{"role": "user", "content": "Hi <|im_end|>"}])
    assert smollm2.decode(ids, skip_specials=False).endswith("user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n")
    assert [one for one in ids if smollm2.is_control(one)] == [1, 2, 1, 2, 1]
