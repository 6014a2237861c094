"""Calls come out of streamed text alike however it is cut; whatever is no call of a given function stays text."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from deepwell.errors import UsageError
from deepwell.lm import ModelConfig, Transformer
from deepwell.lm.engine.model import Model
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.tool_calls import ToolCall, ToolDelta, ToolParser
from deepwell.lm.engine.tool_formats import ToolFormat

from .tool_models import TOOLS, WRITERS, writer

DEEPSEEK = ToolFormat("deepseek", ())
TAGGED = ToolFormat("tagged", ())
BARE = ToolFormat("bare", ())
FORMATS = {"deepseek": DEEPSEEK, "tagged": TAGGED, "bare": BARE}
A = '{"at": "<}\\"`", "n": [1]}'

_V3 = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n{A}\n```<｜tool▁call▁end｜>"
_V31 = f"<｜tool▁call▁begin｜>look<｜tool▁sep｜>{A}<｜tool▁call▁end｜>"
_EMPTY = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>none\n```json\n```<｜tool▁call▁end｜>"
_TAG = f'{{"name": "look", "arguments": {A}}}'
CASES: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("deepseek", f"Let me see.\n<｜tool▁calls▁begin｜>{_V3}\n{_EMPTY}<｜tool▁calls▁end｜>", "Let me see.",
     [("look", A), ("none", "{}")]),
    ("deepseek", f"<｜tool▁calls▁begin｜>{_V31}{_V31}<｜tool▁calls▁end｜> done", " done", [("look", A), ("look", A)]),
    ("deepseek", f"<｜tool▁calls▁begin｜>{_V31}", "", [("look", A)]),
    ("tagged", f"Yes:\n\n<tool_call>\n{_TAG}\n</tool_call>\n<tool_call>\n{_TAG}\n</tool_call>\n", "Yes:",
     [("look", A), ("look", A)]),
    ("tagged", f'<tool_call>[{_TAG}, {{"name": "none"}}]</tool_call>', "", [("look", A), ("none", "{}")]),
    ("tagged", f"<tool_call>{_TAG}}}</tool_call> and", " and", [("look", A)]),  # a brace too many
    ("tagged", f"<tool_call>{_TAG}\n", "", [("look", A)]),
    ("tagged", '<tool_call>{"arguments": {}, "name": "none"}</tool_call>', "", [("none", "{}")]),
    ("bare", f'\n{{"name": "look", "parameters": {A}}}', "", [("look", A)]),
    ("bare", f'<|python_tag|>{{"name": "look", "parameters": {A}}}; {{"name": "none", "parameters": {{}}}}', "",
     [("look", A), ("none", "{}")]),
    ("bare", '{"name": "none", "parameters": {}}\nThat is it.', "That is it.", [("none", "{}")]),
]  # fmt: skip


def _parse(form: str, text: str, cuts: list[int]) -> tuple[str, list[tuple[str, str]], list[Any]]:
    parser = ToolParser(FORMATS[form], ["look", "none"])
    parts: list[Any] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        parts += parser.push(text[start:end])
    parts += parser.finish()
    said = "".join(part for part in parts if isinstance(part, str))
    return said, [(call.name, call.arguments) for call in parser.calls], parts


@pytest.mark.parametrize(("form", "text", "said", "calls"), CASES)
def test_calls_and_text_are_the_same_however_a_reply_is_cut(
    form: str, text: str, said: str, calls: list[tuple[str, str]]
) -> None:
    rng = random.Random(0)
    every = list(range(1, len(text)))
    for cuts in ([], every, *(sorted(rng.sample(every, rng.randrange(len(every)))) for _ in range(20))):
        assert _parse(form, text, cuts)[:2] == (said, calls)


@pytest.mark.parametrize(("form", "text", "said", "calls"), CASES)
def test_deltas_put_together_are_the_calls(form: str, text: str, said: str, calls: list[tuple[str, str]]) -> None:
    deltas = [part for part in _parse(form, text, list(range(1, len(text))))[2] if isinstance(part, ToolDelta)]
    for index, (name, arguments) in enumerate(calls):
        first, *rest = [delta for delta in deltas if delta.index == index]
        assert (first.name, first.arguments) == (name, "")
        assert first.id is not None and first.id.startswith("call_")
        assert all(delta.id is None and delta.name is None and delta.arguments for delta in rest)
        assert "".join(delta.arguments for delta in rest) == arguments
        assert len(rest) > 3 or len(arguments) < 4
    assert [delta.index for delta in deltas] == sorted(delta.index for delta in deltas)
    assert len({delta.id for delta in deltas if delta.id}) == len(calls)


NO_CALLS = [
    ("deepseek", "The mark <｜tool▁calls▁begin｜> begins calls."), ("deepseek", "a < b and <｜tool▁calls"),
    ("deepseek", "<｜tool▁calls▁begin｜>" + _EMPTY.replace("none", "other")),
    ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>lo"),
    ("tagged", "plain  text \n"), ("tagged", "<tool_call> is how a call begins, </tool_call> how it ends"),
    ("tagged", '<tool_call>{"name": "other", "arguments": {}}</tool_call>'), ("tagged", "<tool_call></tool_call>"),
    ("tagged", '<tool_call>{"na'), ("tagged", '<tool_call>{"arguments": {}}</tool_call>'), ("tagged", "<tool_"),
    ("bare", '{"answer": 3}'), ("bare", '{"name": "Ann", "age": 3}'), ("bare", '{"name": ["look"]}'),
    ("bare", f'The call {{"name": "look", "parameters": {A}}}'), ("bare", "{ I"), ("bare", "\n "), ("bare", ""),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text"), NO_CALLS)
def test_what_is_no_call_stays_text_letter_for_letter(form: str, text: str) -> None:
    for cuts in ([], list(range(1, len(text)))):
        said, calls, _ = _parse(form, text, cuts)
        assert (said, calls) == (text, [])


def test_text_of_any_kind_is_passed_on_whole() -> None:
    rng = random.Random(1)
    words = ["<", "tool_call", ">", "</", "{", "}", '"name"', ":", "look", '"', "[", "]", " ", "\n", "é", "<tool_call>"]
    for _ in range(400):
        text = "".join(rng.choice(words) for _ in range(rng.randrange(12)))
        said, calls, _ = _parse(
            "tagged", text, sorted({rng.randrange(1, 30) for _ in range(4)} & set(range(len(text))))
        )
        assert calls or said == text


def test_a_call_that_is_cut_off_stays_as_far_as_it_came() -> None:
    said, calls, _ = _parse("tagged", '<tool_call>{"name": "look", "arguments": {"at": "Kö', [])
    assert (said, calls) == ("", [("look", '{"at": "Kö')])


def test_text_comes_at_once_where_no_call_can_begin() -> None:
    parser = ToolParser(TAGGED, ["look"])
    assert parser.push("Deep wells") == ["Deep wells"]
    assert parser.push(" are <") == [" are"]
    assert parser.push("3 m") == [" <3 m"]
    assert parser.push("<tool_call>") == []
    first, second = parser.push(f'{{"name": "look", "arguments": {A[:5]}')
    assert isinstance(first, ToolDelta) and isinstance(second, ToolDelta)
    assert (first.name, second.arguments) == ("look", A[:5])
    assert parser.calls == [ToolCall(first.id or "", "look", A[:5])]


def test_a_choice_decides_whether_and_which_grammar_there_is(tmp_path: Path) -> None:
    tokenizer = writer("hermes", tmp_path)
    assert ToolParser.of(tokenizer, None) is None
    assert ToolParser.of(tokenizer, [], "auto") is None
    assert ToolParser.of(tokenizer, TOOLS, "none") is None
    for choice in (None, "auto"):
        free = ToolParser.of(tokenizer, TOOLS, choice)
        assert free is not None and free.grammar is None
    many = ToolParser.of(tokenizer, TOOLS, "required")
    one = ToolParser.of(tokenizer, TOOLS, "required", parallel=False)
    named = ToolParser.of(tokenizer, TOOLS, {"type": "function", "function": {"name": "no-arguments"}})
    assert many is not None and one is not None and named is not None
    assert many.grammar is not None and one.grammar is not None and named.grammar is not None
    assert len(many.grammar) > len(one.grammar) > len(named.grammar)
    assert "look" not in named.grammar


@pytest.mark.parametrize(("tools", "choice", "message"), [
    (TOOLS, "always", "tool_choice is 'always'"), (TOOLS, {"function": {"name": "fly"}}, "'fly', which is none"),
    (TOOLS, {}, "none of the tools"), ([], "required", "there are no tools"), (TOOLS, 3, "tool_choice is '3'"),
])  # fmt: skip
def test_a_wrong_choice_is_an_error(tools: Any, choice: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        ToolParser.of(writer("hermes", tmp_path), tools, choice)


@pytest.mark.parametrize("name", WRITERS)
def test_a_model_that_is_asked_for_a_call_makes_one_also_behind_a_thought(name: str, tmp_path: Path) -> None:
    tokenizer = writer(name, tmp_path)
    torch.manual_seed(0)
    shape = ModelConfig.named("debug").replace(vocab_size=tokenizer.vocab_size, initializer_range=0.15)
    network = Transformer(
        shape.replace(bos_token_id=None, eos_token_id=(), max_position_embeddings=1024), dtype=torch.float64
    )
    model = Model(network, tokenizer, cache_bytes=2**21)
    for seed, thinking in ((0, None), (1, True), (2, None)):
        parser = ToolParser.of(tokenizer, TOOLS, "required", parallel=False)
        assert parser is not None
        params = SamplingParams(
            seed=seed, max_tokens=200, grammar=parser.grammar, thinking=thinking, thinking_budget=thinking and 9
        )
        asked = [{"role": "user", "content": "Weather?"}]
        thought = ""
        for piece in model.stream(asked, params, tools=TOOLS):
            assert not [part for part in parser.push(piece.text) if isinstance(part, str)]
            thought += piece.reasoning
        assert not parser.finish()
        ((call),) = parser.calls
        assert isinstance(json.loads(call.arguments), dict)
        assert bool(thought) == (thinking is True)
