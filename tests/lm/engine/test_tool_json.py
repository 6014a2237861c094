"""JSON read letter by letter: where values end, and a call's name and arguments, however the text is cut."""

import json
import random

import pytest

from deepwell.lm.engine.tool_json import JsonCall, JsonExtent


@pytest.mark.parametrize("value", [
    '{"a": [1, {"b": "}]"}], "c": "\\"{"}', "[]", '"a\\\\"', '""', "12.5e3", "true", "{}", '{"ü😀": null}',
])  # fmt: skip
@pytest.mark.parametrize("behind", [",", "}", " x", "]"])
def test_a_value_ends_where_it_ends_however_it_is_cut(value: str, behind: str) -> None:
    for size in (1, 2, 100):
        extent, read = JsonExtent(), ""
        text = value + behind
        for start in range(0, len(text), size):
            count = extent.push(text[start : start + size])
            read += text[start : start + count]
            if extent.done:
                break
        assert extent.done
        assert read == value


def _read(text: str, cuts: list[int]) -> tuple[JsonCall, str, int]:
    call, arguments, count = JsonCall(), "", 0
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        count += call.push(text[start:end])
        arguments += call.take()
        if call.done or call.broken:
            break
    return call, arguments, count


CALLS = [
    ('{"name": "f", "arguments": {"a": "}\\"", "b": [1]}}', "f", '{"a": "}\\"", "b": [1]}'),
    ('{ "arguments" : { } , "name":"f" }', "f", "{ }"),
    ('{"type": "function", "id": 3, "name": "größe", "parameters": {"x": 1.5}}', "größe", '{"x": 1.5}'),
    ('{"name": "f", "arguments": "{\\"a\\": 1}"}', "f", '{"a": 1}'),
    ('{"name": "f", "arguments": null}', "f", "{}"),
    ('{"name": "f"}', "f", ""),
]


@pytest.mark.parametrize(("text", "name", "arguments"), CALLS)
def test_a_call_is_read_alike_however_it_is_cut(text: str, name: str, arguments: str) -> None:
    rng = random.Random(0)
    for _ in range(20):
        cuts = sorted(rng.sample(range(1, len(text)), rng.randrange(len(text))))
        call, found, count = _read(f"{text}}} tail", cuts)
        assert (call.name, found, call.done, count) == (name, arguments, True, len(text))
        assert call.argued == (arguments != "")


def test_arguments_come_before_the_call_has_ended() -> None:
    call = JsonCall()
    call.push('{"name": "f", "arguments": {"a": "long')
    assert (call.name, call.take(), call.done) == ("f", '{"a": "long', False)
    call.push(' text"}')
    assert call.take() == ' text"}'
    assert json.loads('{"a": "long text"}') == {"a": "long text"}


@pytest.mark.parametrize("text", [
    "[1]", "{a: 1}", '{"name" 1}', '{"name": 1, "x": 2}', '{"name": "f",, }', '{"name": }', '{"name": "f" "b": 1}',
])  # fmt: skip
def test_what_is_no_object_of_that_kind_is_broken(text: str) -> None:
    call = JsonCall()
    call.push(text)
    assert call.broken
