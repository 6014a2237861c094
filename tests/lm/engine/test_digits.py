"""Digits in a row are counted outside of strings, and a number in JSON ends whatever the model wants."""

import json
import re

import pytest
import torch

from deepwell.lm.engine.digits import MOST_DIGITS, DigitCount, leading_digits
from deepwell.lm.engine.grammar import Grammars
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.weights.tokenizer import Tokenizer


@pytest.mark.parametrize(("text", "run"), [
    ("", 0), ("12", 2), ("[1, 23", 2), ("-0.125", 3), ('"12', 0), ('{"a1": 7', 1), (r'"\"12', 0), ('"é" 3', 1),
    (r'"\\"12', 2), ("12 ", 0), ('"1e', 0), ("[true, 5", 1),
])  # fmt: skip
def test_digits_are_counted_outside_of_strings(text: str, run: int) -> None:
    for size in (1, 3, 99):
        count, data = DigitCount(), text.encode()
        for start in range(0, len(data), size):
            count.push(data[start : start + size])
        assert count.run == run
        assert count.left == MOST_DIGITS - run


@pytest.mark.parametrize(("text", "left"), [("1e", 2), ("1.5E-3", 1), ("1e+12", 0), ("2e5, 1", MOST_DIGITS - 1)])
def test_an_exponent_has_two_digits(text: str, left: int) -> None:
    count = DigitCount()
    count.push(text.encode())
    assert count.left == left


def test_leading_digits_are_those_of_a_token() -> None:
    assert [leading_digits(piece) for piece in (b"", b"a1", b"12a3", b"007", b" 1")] == [0, 0, 2, 3, 0]


@pytest.mark.parametrize("form", [
    {"json_schema": {"type": "number"}}, {"json_schema": {"type": "integer"}},
    {"json_schema": {"type": "number", "minimum": 0.25, "maximum": 1}}, {"grammar": 'start: %json {"type": "number"}'},
])  # fmt: skip
def test_a_model_that_wants_digits_for_ever_gets_a_number(form: dict[str, object], deepseek: Tokenizer) -> None:
    grammar = Grammars(deepseek).begin(SamplingParams(**form))  # type: ignore[arg-type]
    assert grammar is not None
    wants = torch.tensor([float(deepseek.token_bytes(one)[:1].isdigit()) for one in range(deepseek.vocab_size)])
    made: list[int] = []
    while not grammar.done and len(made) < 200:
        token = int(grammar.restrict(wants).argmax())
        grammar.accept(token)
        if token not in deepseek.eos_token_ids:
            made.append(token)
    text = deepseek.decode(made)
    assert isinstance(json.loads(text), int | float)
    assert max(map(len, re.split("[-+.eE]", text))) <= MOST_DIGITS


def test_digits_in_strings_and_in_other_forms_are_not_counted(deepseek: Tokenizer) -> None:
    digits = "1" * 60
    for form, text in (({"regex": "[0-9]+"}, digits), ({"json_schema": {"type": "string"}}, f'"{digits}')):
        grammar = Grammars(deepseek).begin(SamplingParams(**form))  # type: ignore[arg-type]
        assert grammar is not None
        for token in deepseek.encode(text, bos=False):
            assert torch.isfinite(grammar.restrict(torch.zeros(deepseek.vocab_size)))[token]
            grammar.accept(token)
