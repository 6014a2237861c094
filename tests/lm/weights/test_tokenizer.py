"""Tokenizers from folders: ids as transformers gives them, and no text that spells a control token."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.errors import ModelFileError, UsageError
from deepwell.lm.weights.tokenizer import Tokenizer

_spec = importlib.util.spec_from_file_location("tiny_tokenizers", Path(__file__).with_name("tiny_tokenizers.py"))
assert _spec is not None and _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*tiny.WORDS[:3], *tiny.DEEPSEEK, "<", "｜", " ", "\n\n", "    ", "<thi", "nk>"]),
        st.text(max_size=12),
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_byte_level(
        tmp_path_factory.mktemp("deepseek"), controls=tiny.DEEPSEEK, pre="deepseek-v3", plain=("        ",)
    )


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=150)
@given(text=TEXTS)
def test_ids_are_those_of_transformers_when_control_tokens_may_pass(
    text: str, tokenizer: Tokenizer, reference: Any
) -> None:
    assert tokenizer.encode(text, specials=True) == reference(text, add_special_tokens=False).input_ids


@settings(max_examples=150)
@given(text=TEXTS)
def test_no_text_becomes_a_control_token_and_all_of_it_comes_back(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert not [one for one in ids if tokenizer.is_control(one)]
    assert tokenizer.decode(ids) == text


@settings(max_examples=100)
@given(text=st.text(alphabet=st.characters(exclude_characters="<[", exclude_categories=["Cs"])))
def test_text_without_markup_has_the_ids_of_the_original_either_way(
    text: str, tokenizer: Tokenizer, reference: Any
) -> None:
    assert tokenizer.encode(text) == reference(text, add_special_tokens=False).input_ids


def test_an_added_run_of_spaces_is_a_word_and_not_a_control_token(tokenizer: Tokenizer) -> None:
    number = tokenizer.token_id(" " * 8)
    assert number is not None
    assert number in tokenizer.encode("x" + " " * 8 + "y")
    assert not tokenizer.is_control(number)


def test_half_a_surrogate_pair_becomes_a_question_mark(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud83d")) == "a?"
    assert tokenizer.decode(tokenizer.chat([{"role": "user", "content": "\ud83d"}])).endswith("?<｜Assistant｜>")


@pytest.mark.parametrize("ignore_merges_pre", ["llama-bpe", "qwen2"])
def test_a_control_token_of_letters_is_not_spelled_by_letters(ignore_merges_pre: str, tmp_path: Path) -> None:
    """With ignore_merges a word that is in the vocabulary is taken whole, and merges may spell one as well."""
    tiny.write_byte_level(tmp_path, controls=("begin", "end", "the", "well"), pre=ignore_merges_pre)
    tokenizer = Tokenizer.from_folder(tmp_path)
    for text in ("the", "well", "the well", "begin the end"):
        assert not {one for one in tokenizer.encode(text) if tokenizer.is_control(one)}, text
        assert {one for one in tokenizer.encode(text, specials=True) if tokenizer.is_control(one)}, text
        assert tokenizer.decode(tokenizer.encode(text)) == text


# ---- beginning and end ----


@pytest.mark.parametrize(("setting", "adds"), [(True, True), (False, False), (None, False)])
def test_the_files_say_whether_a_text_gets_a_beginning(setting: bool | None, adds: bool, tmp_path: Path) -> None:
    config = {} if setting is None else {"add_bos_token": setting}
    tokenizer = Tokenizer.from_folder(tiny.write_byte_level(tmp_path, controls=tiny.LLAMA3, config=config))
    plain = tokenizer.encode("a well", bos=False)
    assert tokenizer.encode("a well", bos=True) == [tokenizer.bos_token_id, *plain]
    assert tokenizer.encode("a well") == ([tokenizer.bos_token_id, *plain] if adds else plain)
    assert tokenizer.adds_bos is adds


def test_a_post_processor_says_it_too_and_a_prompt_never_begins_twice(tmp_path: Path) -> None:
    tiny.write_byte_level(tmp_path, controls=tiny.LLAMA3, config={"add_bos_token": True})
    Tokenizer.from_folder(tmp_path).save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    del config["add_bos_token"]
    (tmp_path / "saved" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path / "saved")
    assert tokenizer.adds_bos
    assert tokenizer.encode("<|begin_of_text|>a", specials=True).count(tokenizer.bos_token_id or -1) == 1


def test_without_a_beginning_asking_for_one_is_an_error(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny.write_byte_level(tmp_path, config={"bos_token": None}))
    assert tokenizer.bos_token_id is None
    with pytest.raises(UsageError, match="no token that begins"):
        tokenizer.encode("a", bos=True)


def test_every_token_that_ends_an_answer_is_known(tmp_path: Path) -> None:
    tiny.write_byte_level(tmp_path, controls=(*tiny.LLAMA3, "<|eom_id|>"))
    number = Tokenizer.from_folder(tmp_path).token_id("<|start_header_id|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [number]}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    names = [tokenizer.decode([one], skip_specials=False) for one in tokenizer.eos_token_ids]
    assert names == ["<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>", "<|eom_id|>"]


# ---- files ----


def test_what_is_saved_reads_back_the_same_here_and_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tiny.write_byte_level(
        tmp_path, controls=tiny.LLAMA3, pre="llama-bpe", config={"add_bos_token": True}, template="{{ bos_token }}hi"
    )
    first = Tokenizer.from_folder(tmp_path)
    first.save(tmp_path / "saved")
    second, other = Tokenizer.from_folder(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in tiny.WORDS[:3]:
        assert first.encode(text) == second.encode(text) == other(text).input_ids
    assert (second.bos_token_id, second.eos_token_ids) == (first.bos_token_id, first.eos_token_ids)
    assert other.eos_token_id == first.eos_token_ids[0]
    assert other.chat_template == "{{ bos_token }}hi"
    assert second.vocab_size == first.vocab_size == len(other)


def test_templates_by_name_and_in_files_of_their_own(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two {{ tools[0].name }}"}]
    tokenizer = Tokenizer.from_folder(tiny.write_byte_level(tmp_path, template=named))
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer.chat_text(messages) == "one"
    assert tokenizer.chat_text(messages, tools=[{"name": "f"}]) == "two f"
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.from_folder(tmp_path / "saved").parts.templates == {
        "default": "one",
        "tool_use": "two {{ tools[0].name }}",
    }
    (tmp_path / "chat_template.jinja").write_text("three")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("four")
    again = Tokenizer.from_folder(tmp_path)
    assert (again.chat_text(messages), again.chat_text(messages, tools=[{"name": "f"}])) == ("three", "four")


def test_tokens_that_only_the_configuration_names_are_added(tmp_path: Path) -> None:
    tiny.write_byte_level(tmp_path)
    size = Tokenizer.from_folder(tmp_path).vocab_size
    more = {str(size): {"content": "<|extra|>", "special": True, "normalized": False}}
    tiny.write_byte_level(tmp_path, config={"added_tokens_decoder": more})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("<|extra|>", specials=True) == [size]
    assert size not in tokenizer.encode("<|extra|>")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", ""), ("tokenizer.json", "[]"), ("tokenizer.json", "{}"), ("tokenizer.json", '{"model": 3}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []},"decoder": {"type": "Fuse"}}'),
        ("tokenizer.json", '{"added_tokens": [1], "model": {}, "decoder": {"type": "Fuse"}}'),
        ("tokenizer.json", '{"added_tokens": 7, "model": {}}'), ("tokenizer.json", '{"added_tokens": [{}]}'),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "decoder": {"type": "CTC"}}'),
        ("tokenizer_config.json", "{"), ("tokenizer_config.json", "7"), ("special_tokens_map.json", "no"),
        ("generation_config.json", "\x00"), ("chat_template.json", "[1]"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(name: str, content: str, tmp_path: Path) -> None:
    tiny.write_byte_level(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelFileError, match=name):
        Tokenizer.from_folder(tmp_path)


def test_ids_are_the_vocabularys_whatever_the_list_of_added_tokens_says(tmp_path: Path) -> None:
    """As the tokenizers library has it; a wild id in that list must not become a token of its own."""
    tiny.write_byte_level(tmp_path)
    right = Tokenizer.from_folder(tmp_path).control_tokens
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"][-1]["id"] = 10**8
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.from_folder(tmp_path).control_tokens == right
    content["model"]["vocab"]["a"] = 10**9
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match="id 1000000000"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("decoder", [{"x": 1}, {"7": 3}, [1], {"-1": {"content": "<a>"}}, {"9": {"content": 5}}])
def test_nonsense_among_the_configurations_tokens_is_passed_over(decoder: Any, tmp_path: Path) -> None:
    tiny.write_byte_level(tmp_path, config={"added_tokens_decoder": decoder})
    assert Tokenizer.from_folder(tmp_path).encode("well") == Tokenizer.from_folder(
        tiny.write_byte_level(tmp_path)
    ).encode("well")


def test_a_file_cut_short_anywhere_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    whole = (tiny.write_byte_level(tmp_path) / "tokenizer.json").read_text()
    for part in range(1, 20):
        (tmp_path / "tokenizer.json").write_text(whole[: len(whole) * part // 20])
        with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
            Tokenizer.from_folder(tmp_path)


def test_a_missing_tokenizer_says_what_is_there_instead(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(ModelFileError, match=r"tokenizer\.model alone"):
        Tokenizer.from_folder(tmp_path)


def test_a_token_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    tiny.write_byte_level(tmp_path, config={"eos_token": "<|nowhere|>"})
    with pytest.raises(ModelFileError, match="eos token"):
        Tokenizer.from_folder(tmp_path)
    tiny.write_byte_level(tmp_path)
    with pytest.raises(UsageError, match="no token 99999"):
        Tokenizer.from_folder(tmp_path).decode([99999])


@given(texts=st.lists(TEXTS, max_size=4))
def test_many_texts_at_once_have_the_ids_of_each(texts: list[str], tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text, bos=False) for text in texts]


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_pieces_of_a_chat_put_together_are_the_chat(kind: str, tokenizer: Tokenizer) -> None:
    from deepwell.lm.weights.chat import Rendered

    used = tokenizer if kind == "byte-level" else Tokenizer.from_gguf(tiny.sentencepiece_model()[1])
    rendered = used.template.render([{"role": "user", "content": "the well 井戸"}])
    head, opening, tail = rendered.marked.partition("the")
    pieces = [Rendered(head, rendered.mark), Rendered(opening + tail, rendered.mark)]
    made = used.encode_pieces(pieces)
    assert len(made) == 2
    assert made[0] + made[1] == used.chat([{"role": "user", "content": "the well 井戸"}])
    assert "well" in used.decode(made[1])
    assert "well" not in used.decode(made[0])
