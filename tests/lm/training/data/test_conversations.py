"""What is learned of a chat is what the assistant says and the token that ends it, in every format."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepwell.errors import DataError
from deepwell.lm.training.data.conversations import Conversation, encode_conversation
from deepwell.lm.training.data.sources import Document
from deepwell.lm.weights.tokenizer import Tokenizer

_FILE = Path(__file__).parents[2] / "weights" / "tiny_tokenizers.py"
_spec = importlib.util.spec_from_file_location("tiny_tokenizers_for_chats", _FILE)
assert _spec is not None and _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = tiny
_spec.loader.exec_module(tiny)

ENDS = {
    "deepseek": "<｜end▁of▁sentence｜>", "chatml": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>",
    "llama2": "</s>",
}  # fmt: skip
CONTROLS = {
    "deepseek": tiny.DEEPSEEK, "chatml": tiny.CHATML, "llama3": tiny.LLAMA3, "mistral": tiny.MISTRAL,
    "llama2": tiny.LLAMA2,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        name: Tokenizer.from_folder(tiny.write_byte_level(folder / name, controls=controls))
        for name, controls in CONTROLS.items()
    }


def with_template(folder: Path, template: str, controls: Any = tiny.DEEPSEEK) -> Tokenizer:
    return Tokenizer.from_folder(tiny.write_byte_level(folder, controls=controls, template=template))


def chat(*turns: str, system: str = "") -> Document:
    roles = ["user", "assistant"] * len(turns)
    said = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    return Document("a.jsonl", "line 7", messages=(*([{"role": "system", "content": system}] if system else []), *said))


def learned_runs(tokenizer: Tokenizer, made: Conversation) -> list[str]:
    """The texts of the runs of tokens that are learned, control tokens shown."""
    runs: list[list[int]] = []
    before = False
    for token, learned in zip(made.tokens.tolist(), made.learned.tolist(), strict=True):
        if learned:
            if not before:
                runs.append([])
            runs[-1].append(token)
        before = learned
    return [tokenizer.decode(run, skip_specials=False) for run in runs]


@pytest.mark.parametrize("name", list(ENDS))
def test_the_answers_and_their_ends_are_learned(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    document = chat("wie tief?", "very deep 井戸", "and cold?", "yes\nvery 😀", system="be brief")
    made = encode_conversation(tokenizer, document)
    # Llama 2 and Mistral write a space before an answer, and Llama 2 one before its end.
    before, after = (" " if name in {"llama2", "mistral"} else ""), (" " if name == "llama2" else "")
    assert learned_runs(tokenizer, made) == [
        f"{before}very deep 井戸{after}{ENDS[name]}",
        f"{before}yes\nvery 😀{after}{ENDS[name]}",
    ]


@pytest.mark.parametrize("name", list(ENDS))
def test_the_tokens_before_an_answer_are_the_prompt(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    document = chat("wie tief?", "very deep", "and cold?", "yes")
    made = encode_conversation(tokenizer, document)
    ends = [place for place in range(1, len(made.learned)) if made.learned[place] and not made.learned[place - 1]]
    for count, end in zip((1, 3), ends, strict=True):
        assert made.tokens[:end].tolist() == tokenizer.chat(list(document.messages[:count]))


_TEXT = st.text(alphabet="ab é井😀<>|｜\n[/INST]think", max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.sampled_from(["deepseek", "chatml", "llama3"]), st.lists(_TEXT, min_size=2, max_size=6))
def test_learned_is_exactly_what_was_said(tokenizers: dict[str, Tokenizer], name: str, turns: list[str]) -> None:
    turns = turns[: len(turns) // 2 * 2]
    made = encode_conversation(tokenizers[name], chat(*turns))
    assert learned_runs(tokenizers[name], made) == [text + ENDS[name] for text in turns[1::2]]


def test_control_tokens_in_a_text_stay_letters(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["deepseek"]
    end = ENDS["deepseek"]
    made = encode_conversation(tokenizer, chat(f"a{end}<｜User｜>", f"b{end}<｜User｜>c"))
    assert made.tokens.tolist().count(tokenizer.token_id(end)) == 1
    assert made.tokens.tolist().count(tokenizer.token_id("<｜User｜>")) == 1
    assert learned_runs(tokenizer, made) == [f"b{end}<｜User｜>c{end}"]


def test_thoughts_belong_to_every_answer(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer, end = tokenizers["deepseek"], ENDS["deepseek"]
    document = chat("a?", "<think>\nhm</think>\n\n4", "b?", "5")
    document.messages[3]["reasoning_content"] = "so <think>"
    made = encode_conversation(tokenizer, document)
    assert learned_runs(tokenizer, made) == [
        f"<think>\nhm</think>\n\n4{end}",
        f"<think>\nso <think>\n</think>\n\n5{end}",
    ]
    thinks = made.tokens.tolist().count(tokenizer.token_id("<think>"))
    assert (thinks, made.tokens.tolist().count(tokenizer.token_id("</think>"))) == (2, 2)


def test_what_follows_the_last_answer_is_left_out(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        one, other = (encode_conversation(tokenizer, chat(*turns)) for turns in (("a", "b", "c"), ("a", "b")))
        assert one.tokens.tolist() == other.tokens.tolist()


def test_calls_of_tools_are_learned_and_what_tools_say_is_not(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["deepseek"]
    call = {"id": "1", "type": "function", "function": {"name": "depth", "arguments": '{"of": "well"}'}}
    messages = (
        {"role": "user", "content": "how deep?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "40 m", "tool_call_id": "1"},
        {"role": "assistant", "content": "Forty metres."},
    )
    runs = learned_runs(tokenizer, encode_conversation(tokenizer, Document("a", "line 1", messages=messages)))
    assert len(runs) == 2
    assert runs[0].startswith("<｜tool▁calls▁begin｜>")
    assert '"well"' in runs[0]
    assert "40 m" not in "".join(runs)
    assert runs[1] == f"Forty metres.{ENDS['deepseek']}"


def test_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    _, fields = tiny.sentencepiece_model()
    tokenizer = Tokenizer.from_gguf(fields)
    made = encode_conversation(tokenizer, chat("the well", "is deep 井戸", "isn't it", "cold"))
    whole = tokenizer.encode_pieces(
        [
            tokenizer.template.render(
                chat("the well", "is deep 井戸", "isn't it", "cold").messages, add_generation_prompt=False
            )
        ]
    )
    assert made.tokens.tolist() == whole[0]
    assert [one.strip() for one in learned_runs(tokenizer, made)] == ["is deep 井戸 </s>", "cold </s>"]


# ---- templates ----


def test_a_template_that_opens_a_thought(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% else %}<｜Assistant｜>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
    )
    tokenizer = with_template(tmp_path, template)
    made = encode_conversation(tokenizer, chat("a?", "<think>\nhm</think>b"))
    assert learned_runs(tokenizer, made) == [f"<think>\nhm</think>b{ENDS['deepseek']}"]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}Answer: {% endif %}",
            "opens an answer in another way than it writes one",
        ),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            "ends an answer with no token that ends one",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "writes an answer 0 times",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% if loop.last and loop.index is even %}{{ eos_token }}{% endif %}"
            "{% endfor %}",
            "writes an answer in another way once the conversation goes on",
        ),
    ],
)
def test_a_template_that_hides_the_answers(tmp_path: Path, template: str, problem: str) -> None:
    tokenizer = with_template(tmp_path, template)
    with pytest.raises(DataError, match=f"^a.jsonl, line 7: the chat template of .* {problem}"):
        encode_conversation(tokenizer, chat("a", "b", "c", "d"))


def test_a_chat_that_the_template_refuses(tokenizers: dict[str, Tokenizer]) -> None:
    messages = ({"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"})
    with pytest.raises(DataError, match=r"line 7: the .* refuses this chat"):
        encode_conversation(tokenizers["mistral"], Document("a.jsonl", "line 7", messages=messages))


def test_placeholders_in_a_text_do_no_harm(tokenizers: dict[str, Tokenizer]) -> None:
    said = "\ue0000.1\ue001 \ufdd0 and \U000f0000"
    made = encode_conversation(tokenizers["deepseek"], chat(said, said))
    assert learned_runs(tokenizers["deepseek"], made) == [said + ENDS["deepseek"]]
