"""Which format a model writes calls in, what counts as a function, and grammars that leave no other answer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deepwell.errors import UsageError
from deepwell.lm.engine.grammar import Grammars
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.sampler import SamplerState, sample
from deepwell.lm.engine.tool_calls import ToolParser
from deepwell.lm.engine.tool_formats import CALLS_BEGIN, Function, ToolFormat, format_of, functions_of
from deepwell.lm.weights.tokenizer import Tokenizer

from .tool_models import TOOLS, WRITERS, writer


@pytest.mark.parametrize(("name", "wanted"), [
    ("deepseek", ToolFormat("deepseek", (CALLS_BEGIN,), fenced=True)), ("deepseek-v3.1", ToolFormat("deepseek", ())),
    ("hermes", ToolFormat("tagged", ())), ("qwen", ToolFormat("tagged", ())), ("smollm2", ToolFormat("tagged", ())),
    ("listed", ToolFormat("tagged", (), listed=True)), ("llama3", ToolFormat("bare", (), arguments="parameters")),
])  # fmt: skip
def test_the_format_is_the_one_of_the_template_that_shows_tools(name: str, wanted: ToolFormat, tmp_path: Path) -> None:
    found = format_of(writer(name, tmp_path))
    assert (found.kind, found.fenced, found.listed) == (wanted.kind, wanted.fenced, wanted.listed)
    assert found.arguments == wanted.arguments


def test_a_template_without_a_place_for_tools_is_replaced_or_an_error(tmp_path: Path) -> None:
    prompt = writer("smollm2", tmp_path / "1").chat_text([{"role": "user", "content": "Hi"}], tools=TOOLS)
    assert '"look"' in prompt
    for number, template in enumerate(("{{ messages[0].content }}", "{{ tools }}[TOOL_CALLS]")):
        tokenizer = writer("llama2", tmp_path / f"t{number}", template=template)
        with pytest.raises(UsageError, match=r"no place for tools|not known here"):
            format_of(tokenizer)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("most", [1, 3])
def test_an_answer_under_the_grammar_is_calls_of_the_functions_with_valid_arguments(
    name: str, most: int, tmp_path: Path
) -> None:
    tokenizer = writer(name, tmp_path)
    functions = functions_of(TOOLS)
    form = format_of(tokenizer)
    grammars = Grammars(tokenizer)
    called = set()
    for seed in range(12 // most + 2):
        params = SamplingParams(seed=seed, grammar=form.grammar(tokenizer, functions, most=most))
        state = SamplerState(params, (), tokenizer.vocab_size, constraint=grammars.begin(params))
        generator = torch.Generator().manual_seed(seed)
        made: list[int] = []
        while not state.done:
            token = sample(torch.randn(1, tokenizer.vocab_size, generator=generator) * 2, [state])[0].token
            state.accept(token)
            if token not in tokenizer.eos_token_ids:
                made.append(token)
        parser = ToolParser(form, [one.name for one in functions])
        text = tokenizer.decode(made, skip_specials=False)
        assert not [one for one in parser.push(text) + parser.finish() if isinstance(one, str)], text
        assert 1 <= len(parser.calls) <= most
        for call in parser.calls:
            value = json.loads(call.arguments)
            assert value.keys() == ({"at", "days"} if call.name == "look" else set())
            assert call.name != "look" or (isinstance(value["at"], str) and value["days"] in range(1, 8))
            called.add(call.name)
        steering = {mark for mark in form.marks if tokenizer.token_id(mark) is not None}
        assert {tokenizer.decode([one], skip_specials=False) for one in made if tokenizer.is_control(one)} <= steering
    assert called == {"look", "no-arguments"}


def test_functions_are_read_from_tools() -> None:
    found = functions_of([*TOOLS, {"function": {"name": "x", "parameters": {"properties": {}}}}])
    assert [one.name for one in found] == ["look", "no-arguments", "x"]
    assert found[2] == Function("x", {"type": "object", "properties": {}})


@pytest.mark.parametrize(("tools", "message"), [
    ([{"type": "code"}], r"tools\[0\] is not a function"), (["f"], r"tools\[0\] is not a function"),
    ([{"function": {"name": "a b"}}], "'a b'"), ([{"function": {}}], "None"),
    ([{"function": {"name": "f"}}] * 2, r"tools\[1\].*'f', as that of a tool before it"),
    ([{"function": {"name": "f", "parameters": {"type": "string"}}}], "schema of an object"),
    ([{"function": {"name": "f", "parameters": 3}}], "schema of an object"),
])  # fmt: skip
def test_tools_that_are_none_are_errors_that_say_which(tools: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        functions_of(tools)


@pytest.mark.parametrize("part", [{"not": {}}, {"enum": []}, {"type": "string", "minLength": 3, "maxLength": 1}])
def test_a_schema_that_cannot_be_kept_is_an_error_that_names_the_tool(part: dict[str, Any], chatml: Tokenizer) -> None:
    function = Function("bad-one", {"type": "object", "properties": {"a": part}, "required": ["a"]})
    with pytest.raises(UsageError, match="bad-one"):
        format_of(chatml).grammar(chatml, [function])
