"""Answers of two hundred random schemas, written by the engine in one batch, satisfy them, behind thoughts too."""

import json
from datetime import date, time
from typing import Any

import jsonschema_rs
import pytest
import torch

from deepwell.errors import UsageError
from deepwell.lm import ModelConfig, SamplingParams, Tokenizer, Transformer
from deepwell.lm.engine.model import Model

from .random_schemas import schema

CHAT = [{"role": "user", "content": "Go on."}]


@pytest.fixture(scope="module", params=["deepseek", "chatml"])
def model(request: pytest.FixtureRequest) -> Model:
    tokenizer: Tokenizer = request.getfixturevalue(request.param)
    torch.manual_seed(0)
    shape = ModelConfig.named("debug").replace(vocab_size=tokenizer.vocab_size, initializer_range=0.15)
    shape = shape.replace(bos_token_id=None, eos_token_id=(), max_position_embeddings=2048)
    return Model(Transformer(shape, dtype=torch.float64), tokenizer, cache_bytes=2**24)


def _is_time(text: str) -> bool:
    """As in RFC 3339, where any minute may have a leap second; the validator's own check allows few of them."""
    time.fromisoformat(text.upper().replace(":60", ":59"))
    return True


def _is_moment(text: str) -> bool:
    date.fromisoformat(text[:10])
    return text[10] in "Tt" and _is_time(text[11:])


def _valid(text: str, wanted: dict[str, Any]) -> bool:
    formats = {"time": _is_time, "date-time": _is_moment}
    validator = jsonschema_rs.validator_for(wanted, validate_formats=True, formats=formats)
    return validator.is_valid(json.loads(text))


@pytest.mark.parametrize("thinking", [None, True])
def test_every_answer_satisfies_its_schema_also_behind_a_thought(model: Model, thinking: bool | None) -> None:
    wanted = [schema(seed) for seed in range(200)]
    begun = [
        model.begin(CHAT, SamplingParams(
            seed=seed, max_tokens=1500, json_schema=one, thinking=thinking, thinking_budget=6 if thinking else None
        ))
        for seed, one in enumerate(wanted)
    ]  # fmt: skip
    for request, one in zip(begun, wanted, strict=True):
        answer = request.result()
        assert answer.finish == "stop"
        assert _valid(answer.text, one), (one, answer.text)
        assert (answer.reasoning_tokens > 0) == bool(thinking)
    assert not model.engine.busy
    assert model.engine.allocator.in_use == 0


@pytest.mark.parametrize("thinking", [None, True])
def test_what_must_come_is_computed_together_and_changes_nothing(model: Model, thinking: bool | None) -> None:
    names = ["the first of the names", "the second of the names"]
    wanted = {
        "type": "object", "properties": {name: {"type": "boolean"} for name in names}, "required": names,
        "additionalProperties": False,
    }  # fmt: skip
    params = SamplingParams(
        seed=2, max_tokens=200, json_schema=wanted, thinking=thinking, thinking_budget=5 if thinking else None
    )
    plain = Model(model.network, model.tokenizer, cache_bytes=2**24, speculate=False).chat(CHAT, params)
    before = model.engine.counters.steps
    together = model.chat(CHAT, params)
    assert together.tokens == plain.tokens
    assert json.loads(together.text).keys() == set(names)
    assert model.engine.counters.steps - before < len(plain.tokens) / 2


def test_the_schemas_are_of_every_kind_and_the_check_can_fail() -> None:
    written = json.dumps([schema(seed) for seed in range(200)], ensure_ascii=False)
    for word in ("anyOf", "allOf", "prefixItems", "patternProperties", "pattern", "format", "enum", "const", "minItems",
                 "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "$ref", '"$ref": "#"', "größe",
                 "名前", "maxProperties", '"null"'):  # fmt: skip
        assert word in written, word
    wanted = {"type": "object", "properties": {"größe": {"type": "string", "format": "date"}}, "required": ["größe"]}
    assert _valid('{"größe": "2024-02-29"}', wanted)
    assert not _valid('{"größe": "2023-02-29"}', wanted)
    assert not _valid("{}", wanted)


@pytest.mark.parametrize("wanted", [
    {"enum": []}, {"type": "integer", "minimum": 3, "maximum": 2}, {"type": "array", "uniqueItems": True},
    {"type": "object", "properties": {"a": {"not": {}}}}, {"if": {}, "then": {}}, {"type": "integer", "multipleOf": 0},
    {"$ref": "#/$defs/missing"}, {"$ref": "http://localhost/s.json"}, {"type": "string", "pattern": "(?<=a)b"},
    {"allOf": [{"type": "string"}, {"type": "null"}]}, {"type": "array", "minItems": 2, "maxItems": 1}, {"type": 3},
])  # fmt: skip
def test_a_schema_that_cannot_be_kept_is_an_error_and_leaves_nothing_behind(
    model: Model, wanted: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="json_schema"):
        model.begin(CHAT, SamplingParams(json_schema=wanted))
    assert not model.engine.busy


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_keeps_two_hundred_schemas() -> None:
    model = Model.load("smollm2-135m-instruct", device="cpu")
    wanted = [schema(seed) for seed in range(200)]
    asked = [{"role": "user", "content": "Write an example of JSON."}]
    begun = [model.begin(asked, SamplingParams(seed=1, max_tokens=400, json_schema=one)) for one in wanted]
    for request, one in zip(begun, wanted, strict=True):
        answer = request.result()
        if answer.finish == "length":
            # Trees alone have no end, and a small model lets them grow up to any limit.
            assert '"#"' in json.dumps(one)
            continue
        assert _valid(answer.text, one), (one, answer.text)
