"""A model that is free to call is held to the format from the mark on, and only then."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from deepwell.lm.engine.grammar import Grammars
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.reply import begin
from deepwell.lm.engine.sampler import SamplerState, sample
from deepwell.lm.engine.tool_calls import ToolParser
from deepwell.lm.engine.tool_formats import format_of
from deepwell.lm.engine.tool_gate import CallGate
from deepwell.lm.weights.tokenizer import Tokenizer

from .tool_models import TOOLS, WRITERS, writer

MARKED = [name for name in WRITERS if name != "llama3"]


def _state(tokenizer: Tokenizer, prompt: str = "", seed: int = 0, **more: int) -> SamplerState:
    ids = tokenizer.encode(prompt, bos=False, specials=True)
    return begin(tokenizer, SamplingParams(seed=seed, **more), ids, Grammars(tokenizer), chat=True, tools=TOOLS)[0]  # type: ignore[arg-type]


def _put(state: SamplerState, tokenizer: Tokenizer, text: str) -> None:
    for token in tokenizer.encode(text, bos=False, specials=True):
        assert torch.isfinite(state.adjust(torch.zeros(tokenizer.vocab_size)))[token]
        state.accept(token)


def _free(state: SamplerState, tokenizer: Tokenizer) -> bool:
    return bool(torch.isfinite(state.adjust(torch.zeros(tokenizer.vocab_size))).all())


@pytest.mark.parametrize("name", MARKED)
def test_behind_the_mark_there_is_a_call_of_a_function_with_valid_arguments_and_then_freedom(
    name: str, tmp_path: Path
) -> None:
    tokenizer = writer(name, tmp_path)
    form = format_of(tokenizer)
    called = set()
    for seed in range(8):
        state = _state(tokenizer, seed=seed)
        _put(state, tokenizer, "Let me see.\n")
        assert _free(state, tokenizer)
        _put(state, tokenizer, form.opening)
        generator, made = torch.Generator().manual_seed(seed), []
        while not _free(state, tokenizer) and len(made) < 800:
            made.append(sample(torch.randn(1, tokenizer.vocab_size, generator=generator) * 2, [state])[0].token)
            state.accept(made[-1])
        assert not state.done
        parser = ToolParser(form, ["look", "no-arguments"])
        text = form.opening + tokenizer.decode(made, skip_specials=False)
        assert [part for part in parser.push(text) + parser.finish() if isinstance(part, str)] == []
        for call in parser.calls:
            assert json.loads(call.arguments).keys() == ({"at", "days"} if call.name == "look" else set())
            called.add(call.name)
        assert parser.calls
        # Another one may follow.
        _put(state, tokenizer, f"\n{form.opening}")
        assert not _free(state, tokenizer)
    assert called == {"look", "no-arguments"}


def test_what_must_come_is_known_inside_of_a_call_alone(tmp_path: Path) -> None:
    tokenizer = writer("hermes", tmp_path)
    state = _state(tokenizer)
    assert list(state.forced) == []
    _put(state, tokenizer, "<tool_call>")
    assert tokenizer.decode(list(state.forced)) == '\n{"name": "'


@pytest.mark.parametrize("name", ["deepseek", "qwen"])
def test_a_thought_may_speak_of_calls(name: str, tmp_path: Path) -> None:
    tokenizer = writer(name, tmp_path)
    mark = format_of(tokenizer).opening
    for prompt, said in (("<think>\n", f"I could {mark}"), ("", f"<think>\nI could {mark}")):
        state = _state(tokenizer, prompt)
        _put(state, tokenizer, said)
        assert _free(state, tokenizer)
        _put(state, tokenizer, "</think>\n\n")
        assert _free(state, tokenizer)
        _put(state, tokenizer, mark)
        assert not _free(state, tokenizer)


def test_the_budget_of_a_thought_holds_beside_it(tmp_path: Path) -> None:
    tokenizer = writer("deepseek", tmp_path)
    state = _state(tokenizer, "<think>\n", thinking_budget=2)
    for _ in range(2):
        state.accept(tokenizer.encode("a", bos=False)[0])
    assert tokenizer.decode(list(state.forced), skip_specials=False) == "\n</think>"


def test_a_schema_that_cannot_be_kept_leaves_the_arguments_free(tmp_path: Path) -> None:
    tokenizer = writer("hermes", tmp_path)
    tools = [{"function": {"name": "f", "parameters": {"type": "object", "not": {}}}}]
    state, _ = begin(tokenizer, SamplingParams(), (), Grammars(tokenizer), chat=True, tools=tools)
    _put(state, tokenizer, '<tool_call>\n{"name": "f", "arguments": {"any": [1]')


def test_outside_of_calls_the_other_constraint_is_asked() -> None:
    outside: list[int] = []
    inside: list[int] = []

    class Other:
        done, forced, seen = True, (7,), outside

        def restrict(self, logits: torch.Tensor) -> torch.Tensor:
            return logits - 1

        def accept(self, token: int) -> None:
            self.seen.append(token)

    class Letters:
        def token_bytes(self, token: int) -> bytes:
            return chr(token).encode()

    class Call(Other):
        done, seen = False, inside

        @property
        def forced(self) -> Sequence[int]:  # type: ignore[override]
            return (9,)

    gate = CallGate(Letters(), "<x>", Call, opened=False, outside=Other())  # type: ignore[arg-type]
    assert (gate.done, tuple(gate.forced), float(gate.restrict(torch.zeros(1)))) == (True, (7,), -1)
    for letter in "a<x>":
        gate.accept(ord(letter))
    assert (gate.done, tuple(gate.forced)) == (False, (9,))
    gate.accept(ord("b"))
    assert (outside, inside) == ([*b"a<x>"], [*b"b"])
