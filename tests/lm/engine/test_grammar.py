"""Whatever the logits say, an answer has the form that was asked for; one that cannot be kept is an error."""

import json
import random
import re
import sys
from typing import Any

import pytest
import torch

from deepwell.errors import DeepwellError, MissingExtraError, UsageError
from deepwell.lm.engine.grammar import Grammar, Grammars
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.sampler import SamplerState, sample
from deepwell.lm.weights.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def grammars(deepseek: Tokenizer) -> Grammars:
    return Grammars(deepseek)


def write(tokenizer: Tokenizer, grammars: Grammars, seed: int, **form: Any) -> str:
    """An answer from random logits; the grammar alone gives it its form."""
    params = SamplingParams(seed=seed, **form)
    state = SamplerState(params, (), tokenizer.vocab_size, constraint=grammars.begin(params))
    generator = torch.Generator().manual_seed(seed)
    made: list[int] = []
    while len(made) < 600:
        # The network's vocabulary may be padded; the padding is never a part of an answer.
        logits = torch.randn(1, tokenizer.vocab_size + 5, generator=generator) * 2
        token = sample(logits, [state])[0].token
        state.accept(token)
        if token in tokenizer.eos_token_ids:
            break
        made.append(token)
        if state.done:
            break
    else:
        raise AssertionError(f"no end: {tokenizer.decode(made)!r}")
    return tokenizer.decode(made, skip_specials=False)


@pytest.mark.parametrize("pattern", [r"[a-c]{3}x", r"(yes|no)\.", r"[0-9]{4}-[0-9]{2}", r"é+😀", r"\n?ab"])
def test_an_answer_matches_the_expression(pattern: str, deepseek: Tokenizer, grammars: Grammars) -> None:
    for seed in range(12):
        text = write(deepseek, grammars, seed, regex=pattern)
        assert re.fullmatch(pattern, text), text


def test_an_answer_is_one_of_the_texts_whatever_letters_they_have(deepseek: Tokenizer, grammars: Grammars) -> None:
    texts = ["yes", "yes, but", 'a "b" \\ /c|d.*', "\x01\n\t", "é😀漢", "e\u0301", "a b"]
    seen = {write(deepseek, grammars, seed, choice=texts) for seed in range(60)}
    assert seen <= set(texts)
    assert len(seen) > 4


def _schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const"]
    kind = rng.choice([*kinds, *(["object", "object", "array", "anyOf", "ref"] if depth < 3 else [])])
    if kind == "object":
        names = rng.sample(["name", "größe", "x y", 'quo"te', "n", "_id"], rng.randint(0, 4))
        return {
            "type": "object", "properties": {name: _schema(rng, depth + 1) for name in names},
            "required": rng.sample(names, rng.randint(0, len(names))), "additionalProperties": False,
        }  # fmt: skip
    if kind == "array":
        least = rng.randint(0, 2)
        return {"type": "array", "items": _schema(rng, depth + 1), "minItems": least, "maxItems": least + 2}
    if kind == "anyOf":
        return {"anyOf": [_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    if kind == "ref" and depth == 0:
        return {"$defs": {"part": _schema(rng, 2)}, "type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2}
    if kind == "string":
        if rng.random() < 0.3:
            return {"type": "string", "pattern": "^[a-z]{2,5}[0-9]$"}
        least = rng.randint(0, 3)
        return {"type": "string", "minLength": least, "maxLength": least + 4}
    if kind == "integer":
        least = rng.randint(-50, 50)
        return {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 300)}
    if kind == "number":
        return {"type": "number", "minimum": -2.5, "exclusiveMaximum": 7}
    if kind == "enum":
        return {"enum": rng.sample(["red", "", 3, None, True, 2.5, ["a", 1], {"k": "v"}], rng.randint(1, 4))}
    if kind == "const":
        return {"const": rng.choice(["only", 7, None, False])}
    return {"type": kind if kind in ("boolean", "null") else "boolean"}


def valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a value satisfies a schema; our own reading of JSON Schema, for the keywords that ``_schema`` uses."""
    if "$ref" in schema:
        return valid(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "anyOf" in schema:
        return any(valid(value, one, root) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        wanted = schema.get("enum", [schema.get("const")])
        return any(type(value) is type(one) and value == one for one in wanted)
    kind = schema["type"]
    if kind == "object":
        known = schema["properties"]
        whole = isinstance(value, dict) and set(schema["required"]) <= set(value) <= set(known)
        return whole and all(valid(one, known[name], root) for name, one in value.items())
    if kind == "array":
        fits = isinstance(value, list) and schema.get("minItems", 0) <= len(value) <= schema["maxItems"]
        return fits and all(valid(one, schema["items"], root) for one in value)
    if kind == "string":
        long = isinstance(value, str) and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 99)
        return long and bool(re.search(schema.get("pattern", ""), value))
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    if kind == "number":
        return type(value) in (int, float) and schema["minimum"] <= value < schema["exclusiveMaximum"]
    return value is None if kind == "null" else isinstance(value, bool)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_json_is_valid_for_two_hundred_random_schemas(first: int, deepseek: Tokenizer, grammars: Grammars) -> None:
    for seed in range(first, first + 50):
        schema = _schema(random.Random(seed))
        text = write(deepseek, grammars, seed, json_schema=schema)
        assert valid(json.loads(text), schema, schema), (schema, text)
        assert "\n" not in text


def test_the_check_of_this_test_can_fail() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False}
    assert valid({"a": None}, schema, schema)
    for wrong in ({}, {"a": 1}, {"a": None, "b": 1}, [], None):
        assert not valid(wrong, schema, schema)


IMPOSSIBLE: list[dict[str, Any]] = [
    {"json_schema": {"type": "string", "minLength": 5, "maxLength": 2}}, {"json_schema": {"enum": []}},
    {"json_schema": {"type": "foo"}}, {"json_schema": {"$ref": "#/nowhere"}}, {"json_schema": {"not": {}}},
    {"json_schema": {"$ref": "https://a.invalid/schema"}}, {"json_schema": {"type": "array", "uniqueItems": True}},
    {"json_schema": {"type": "string", "pattern": "("}}, {"json_schema": {"type": "string", "format": "no-such"}},
    {"regex": "("}, {"regex": "(?=a)b"}, {"regex": r"\bword"}, {"regex": "[z-a]"},
]  # fmt: skip


@pytest.mark.parametrize("form", IMPOSSIBLE, ids=str)
def test_a_form_that_cannot_be_kept_is_an_error_before_the_first_token(
    form: dict[str, Any], grammars: Grammars
) -> None:
    with pytest.raises(UsageError, match=next(iter(form))):
        grammars.begin(SamplingParams(**form))


def test_one_answer_does_not_move_another_with_the_same_grammar(deepseek: Tokenizer, grammars: Grammars) -> None:
    params = SamplingParams(regex="abc")
    first, second = grammars.begin(params), grammars.begin(params)
    assert isinstance(first, Grammar)
    assert isinstance(second, Grammar)
    zeros = torch.zeros(deepseek.vocab_size)
    before = second.restrict(zeros)
    for token in deepseek.encode("abc", bos=False):
        first.accept(token)
    assert first.done
    assert not second.done
    assert torch.equal(second.restrict(zeros), before)
    # Behind the whole answer only its end may come.
    last = torch.isfinite(first.restrict(zeros)).nonzero()[:, 0].tolist()
    assert last == list(deepseek.eos_token_ids)
    first.accept(last[0])
    assert first.done


def test_a_token_outside_of_the_grammar_is_an_error(deepseek: Tokenizer, grammars: Grammars) -> None:
    grammar = grammars.begin(SamplingParams(regex="abc"))
    assert grammar is not None
    with pytest.raises(DeepwellError, match="grammar"):
        grammar.accept(deepseek.encode("x", bos=False)[0])


def test_control_tokens_are_no_letters_of_an_answer(deepseek: Tokenizer, grammars: Grammars) -> None:
    grammar = grammars.begin(SamplingParams(regex="(?s:.)*"))
    assert grammar is not None
    open_to = torch.isfinite(grammar.restrict(torch.zeros(deepseek.vocab_size))).nonzero()[:, 0].tolist()
    assert {token for token in open_to if deepseek.is_control(token)} == set(deepseek.eos_token_ids)
    assert len(open_to) > 200


def test_a_text_that_spells_a_control_token_is_written_in_letters(deepseek: Tokenizer, grammars: Grammars) -> None:
    params = SamplingParams(choice=["a <think> b"])
    state = SamplerState(params, (), deepseek.vocab_size, constraint=grammars.begin(params))
    made: list[int] = []
    while not state.done:
        made.append(sample(torch.zeros(1, deepseek.vocab_size), [state])[0].token)
        state.accept(made[-1])
    assert deepseek.decode(made) == "a <think> b"
    assert not [token for token in made if deepseek.is_control(token)]


def test_any_form_needs_no_grammar_and_no_package(deepseek: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert Grammars(deepseek).begin(SamplingParams()) is None
    with pytest.raises(MissingExtraError, match="llguidance"):
        Grammars(deepseek).begin(SamplingParams(regex="a"))


def test_where_one_text_alone_may_follow_its_tokens_are_the_ones_that_the_model_knows(chatml: Tokenizer) -> None:
    text = "hesay"  # taking the longest token each time gives others than the encoder does
    ids = chatml.encode(text, bos=False)
    grammar = Grammars(chatml).begin(SamplingParams(choice=[text]))
    assert grammar is not None
    for token in ids:
        assert torch.isfinite(grammar.restrict(torch.zeros(chatml.vocab_size))).nonzero()[:, 0].tolist() == [token]
        grammar.accept(token)
    assert grammar.done


def test_only_so_many_grammars_are_kept(grammars: Grammars) -> None:
    for number in range(40):
        grammars.begin(SamplingParams(regex=f"a{{{number + 1}}}"))
    assert len(grammars._made) <= 32


def test_what_a_grammar_leaves_no_choice_about_is_known_before_it_comes(
    deepseek: Tokenizer, grammars: Grammars
) -> None:
    schema = {
        "type": "object", "properties": {"größe": {"type": "boolean"}}, "required": ["größe"],
        "additionalProperties": False,
    }  # fmt: skip
    grammar = grammars.begin(SamplingParams(json_schema=schema))
    assert grammar is not None
    forced = grammar.forced
    assert deepseek.decode(forced).startswith('{"größe":')
    for token in forced:
        assert torch.isfinite(grammar.restrict(torch.zeros(deepseek.vocab_size))).nonzero()[:, 0].tolist() == [token]
        grammar.accept(token)
    assert grammar.forced == []
    for token in deepseek.encode(" true}", bos=False):
        grammar.accept(token)
    assert grammar.done
    assert grammar.forced == []
