"""Chats through the ``openai`` client: whole and streamed, thoughts, forms, calls of functions, log-probabilities."""

import json
import math
from typing import Any

import openai
import pytest

from deepwell.lm import SamplingParams

from .tiny import Live, live, tiny_model, tokenizers

HELLO: list[Any] = [{"role": "user", "content": "Hello, well!"}]
SCHEMA = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"],
    "additionalProperties": False,
}  # fmt: skip
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "dig", "description": "Dig a well.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "fill", "parameters": SCHEMA, "strict": True}},
]


def _asked(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HELLO, "seed": 7, "max_tokens": 12, **more}


def _streamed(server: Live, **more: Any) -> list[Any]:
    return list(server.client.chat.completions.create(**_asked(**more), stream=True))


def test_an_answer_is_the_models_own(server: Live) -> None:
    told = server.client.chat.completions.create(**_asked(stop=["\n\n\n"]))
    own = server.model.chat(HELLO, SamplingParams(seed=7, max_tokens=12))
    (choice,) = told.choices
    assert (told.object, told.model, choice.index) == ("chat.completion", "tiny", 0)
    assert (choice.message.role, choice.message.content) == ("assistant", own.text)
    assert choice.finish_reason == own.finish == "length"
    assert told.usage is not None
    assert told.usage.prompt_tokens == own.prompt_tokens
    assert told.usage.completion_tokens == len(own.tokens)
    assert told.usage.total_tokens == own.prompt_tokens + len(own.tokens)
    assert told.id.startswith("chatcmpl-") and told.created > 1_700_000_000
    assert (told.system_fingerprint or "").startswith("deepwell-")


@pytest.mark.parametrize(
    "more",
    [
        {"logprobs": True, "top_logprobs": 3}, {"n": 3}, {"model": "deepseek-reasoner", "logprobs": True},
        {"tools": TOOLS, "tool_choice": "required", "max_tokens": 400},
        {"model": "deepseek-reasoner", "extra_body": {"thinking": {"type": "enabled", "budget_tokens": 4}},
         "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}, "max_tokens": 99},
    ],
    ids=["logprobs", "n", "thoughts", "tools", "form"],
)  # fmt: skip
def test_a_stream_is_the_answer_in_pieces(server: Live, more: dict[str, Any]) -> None:
    whole = server.client.chat.completions.create(**_asked(**more))
    chunks = _streamed(server, **more)
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert not any(chunk.usage for chunk in chunks)
    for choice in whole.choices:
        its = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        deltas = [one.delta for one in its]
        assert deltas[0].role == "assistant"
        assert not any(delta.role for delta in deltas[1:])
        assert "".join(delta.content or "" for delta in deltas) == (choice.message.content or "")
        for name in ("reasoning_content", "reasoning"):
            reasoning = "".join(getattr(delta, name, "") for delta in deltas)
            assert reasoning == getattr(choice.message, name, "")
        assert [one.finish_reason for one in its] == [None] * (len(its) - 1) + [choice.finish_reason]
        tokens = [token for one in its if one.logprobs for token in one.logprobs.content or ()]
        assert tokens == ((choice.logprobs.content or []) if choice.logprobs else [])
        calls: dict[int, list[Any]] = {}
        for call in [call for delta in deltas for call in delta.tool_calls or ()]:
            calls.setdefault(call.index, []).append(call)
        assert list(calls) == list(range(len(choice.message.tool_calls or ())))
        for pieces, made in zip(calls.values(), choice.message.tool_calls or (), strict=True):
            assert made.type == "function"
            assert [bool(piece.id) for piece in pieces] == [True] + [False] * (len(pieces) - 1)
            assert pieces[0].function.name == made.function.name
            assert "".join(piece.function.arguments for piece in pieces) == made.function.arguments


def test_a_stream_ends_with_the_usage_where_it_is_asked_for(server: Live) -> None:
    *chunks, last = _streamed(server, stream_options={"include_usage": True})
    assert last.choices == [] and not any(chunk.usage for chunk in chunks)
    assert (last.usage.completion_tokens, last.usage.total_tokens) == (12, last.usage.prompt_tokens + 12)


def test_usage_says_what_was_in_the_cache_and_counts_a_prompt_once(server: Live) -> None:
    messages = [{"role": "user", "content": "What do deep wells and shallow wells have in common? " * 3}]
    usages = [
        server.client.chat.completions.create(**_asked(messages=messages, n=count)).usage.model_dump()
        for count in (1, 2)
    ]
    for usage, count in zip(usages, (1, 2), strict=True):
        assert usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_cache_hit_tokens"]
        assert usage["completion_tokens"] == 12 * count
    assert usages[0]["prompt_tokens"] == usages[1]["prompt_tokens"]
    assert usages[0]["prompt_cache_hit_tokens"] == 0 < usages[1]["prompt_cache_hit_tokens"]


def test_several_answers_differ_and_repeat_with_the_seed(server: Live) -> None:
    first, again = (server.client.chat.completions.create(**_asked(n=4)) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert texts == [choice.message.content for choice in again.choices]
    unlike = [server.client.chat.completions.create(**_asked(seed=None)).choices[0].message.content for _ in "ab"]
    assert unlike[0] != unlike[1]


def test_the_aliases_think_or_do_not_and_a_field_or_an_effort_decides_against_them(server: Live) -> None:
    def thought(**more: Any) -> bool:
        told = server.client.chat.completions.create(**_asked(**more))
        assert told.usage is not None and told.usage.completion_tokens_details is not None
        message = told.choices[0].message
        assert getattr(message, "reasoning", None) == getattr(message, "reasoning_content", None)
        assert bool(told.usage.completion_tokens_details.reasoning_tokens) == hasattr(message, "reasoning_content")
        return hasattr(message, "reasoning_content")

    enabled, disabled = ({"thinking": {"type": kind}} for kind in ("enabled", "disabled"))
    assert thought(model="deepseek-reasoner")
    assert not thought(model="deepseek-chat")
    assert thought(model="deepseek-chat", extra_body=enabled)
    assert not thought(model="deepseek-reasoner", extra_body=disabled)
    assert thought(reasoning_effort="high")
    assert not thought(model="deepseek-reasoner", reasoning_effort="none")
    assert not thought(reasoning_effort="high", extra_body=disabled)


def test_a_thought_ends_at_its_budget_and_the_answer_comes_behind(server: Live) -> None:
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 5}}
    told = server.client.chat.completions.create(**_asked(max_tokens=40, logprobs=True, extra_body=thinking))
    message, usage = told.choices[0].message, told.usage
    assert message.content and getattr(message, "reasoning_content")  # noqa: B009
    assert usage is not None and usage.completion_tokens_details is not None
    thought = usage.completion_tokens_details.reasoning_tokens or 0
    assert 5 <= thought < usage.completion_tokens
    logprobs = told.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    # Log-probabilities are the answer's alone.
    assert len(logprobs.content) == usage.completion_tokens - thought
    assert b"".join(bytes(one.bytes or []) for one in logprobs.content).decode(errors="replace").strip("\n") == (
        message.content.strip("\n")
    )


def test_log_probabilities_are_the_models_own(server: Live) -> None:
    told = server.client.chat.completions.create(**_asked(logprobs=True, top_logprobs=4))
    own = server.model.chat(HELLO, SamplingParams(seed=7, max_tokens=12, logprobs=4))
    logprobs = told.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == len(own.sampled) == 12
    for one, sampled in zip(logprobs.content, own.sampled, strict=True):
        assert bytes(one.bytes or []) == server.model.tokenizer.token_bytes(sampled.token)
        assert sampled.logprob is not None
        assert math.isclose(one.logprob, sampled.logprob, abs_tol=1e-4)
        assert len(one.top_logprobs) == 4
        best = [other.logprob for other in one.top_logprobs]
        assert best == sorted(best, reverse=True) and best[0] >= one.logprob - 1e-6
    plain = server.client.chat.completions.create(**_asked(logprobs=True)).choices[0].logprobs
    assert plain is not None and plain.content is not None and plain.content[0].top_logprobs == []
    assert server.client.chat.completions.create(**_asked()).choices[0].logprobs is None


@pytest.mark.parametrize("model", ["deepseek-chat", "deepseek-reasoner"])
def test_an_answer_has_the_form_that_is_asked_for(server: Live, model: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 8}} if model == "deepseek-reasoner" else {}
    for form in (schema, {"type": "json_object"}):
        told = server.client.chat.completions.create(
            **_asked(model=model, response_format=form, max_tokens=400, extra_body=thinking)
        )
        choice = told.choices[0]
        if choice.finish_reason == "stop":
            value = json.loads(choice.message.content or "")
            assert isinstance(value, dict)
            if form is schema:
                assert list(value) == ["n"] and 0 <= value["n"] <= 99
        assert choice.finish_reason == "stop" or form is not schema
    free = server.client.chat.completions.create(**_asked(response_format={"type": "text"}))
    assert (
        free.choices[0].message.content == server.client.chat.completions.create(**_asked()).choices[0].message.content
    )


def test_calls_of_functions_are_told_from_text(server: Live) -> None:
    told = server.client.chat.completions.create(**_asked(tools=TOOLS, tool_choice="required", max_tokens=400))
    choice = told.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    calls = choice.message.tool_calls or []
    assert calls and len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert call.type == "function" and call.function.name in ("dig", "fill")
        assert 0 <= json.loads(call.function.arguments)["n"] <= 99
    # What came of a call can be told, and asked about.
    behind = [
        *HELLO, choice.message.model_dump(exclude_none=True),
        *({"role": "tool", "tool_call_id": call.id, "content": "done"} for call in calls),
    ]  # fmt: skip
    assert server.client.chat.completions.create(**_asked(messages=behind, tools=TOOLS)).choices


def test_a_call_can_be_thought_about_first(server: Live) -> None:
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 6}}
    told = server.client.chat.completions.create(
        **_asked(tools=TOOLS, tool_choice="required", max_tokens=400, extra_body=thinking)
    )
    message = told.choices[0].message
    assert getattr(message, "reasoning", "") and message.tool_calls
    assert told.choices[0].finish_reason == "tool_calls"
    for call in message.tool_calls:
        assert call.type == "function" and list(json.loads(call.function.arguments)) == ["n"]


def test_one_function_may_be_named_one_call_asked_for_and_all_forbidden(server: Live) -> None:
    named = {"type": "function", "function": {"name": "fill"}}
    for more in ({"tool_choice": named}, {"tool_choice": "required", "parallel_tool_calls": False}):
        told = server.client.chat.completions.create(**_asked(tools=TOOLS, max_tokens=400, **more))
        calls = told.choices[0].message.tool_calls or []
        assert len(calls) == 1
        assert calls[0].type == "function"
        assert calls[0].function.name == "fill" or "parallel_tool_calls" in more
    without = server.client.chat.completions.create(**_asked(tools=TOOLS, tool_choice="none"))
    plain = server.client.chat.completions.create(**_asked())
    assert without.choices[0].message == plain.choices[0].message


def test_an_answer_can_be_begun_for_the_model(server: Live) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "The well is", "prefix": True}]
    told = server.client.chat.completions.create(**_asked(messages=begun))
    tokens = server.model.prepare(begun, continue_last=True).tokens
    assert told.usage is not None and told.usage.prompt_tokens == len(tokens)
    closed = server.client.chat.completions.create(**_asked(messages=[*HELLO, begun[1] | {"prefix": False}]))
    assert closed.usage is not None and closed.usage.prompt_tokens > len(tokens)


def test_messages_may_come_in_parts_and_with_what_was_thought(server: Live) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "well!"}]}]
    counts = [
        told.usage.prompt_tokens
        for messages in (HELLO, parts, [{"role": "developer", "content": ""}, *HELLO])
        if (told := server.client.chat.completions.create(**_asked(messages=messages))).usage is not None
    ]
    assert counts[0] == counts[1] == counts[2]
    call = {"id": "a", "type": "function", "function": {"name": "dig", "arguments": '{"n": 1}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    behind = {"role": "tool", "tool_call_id": "a", "content": "done"}
    lengths = []
    for name in ("reasoning_content", "reasoning", "unknown"):
        messages = [*HELLO, turn | {name: "Dig first."}, behind]
        told = server.client.chat.completions.create(**_asked(messages=messages, tools=TOOLS))
        assert told.usage is not None
        lengths.append(told.usage.prompt_tokens)
    assert lengths[0] == lengths[1] > lengths[2]


def test_a_model_without_a_place_for_functions_says_so(tmp_path: Any) -> None:
    with live(tiny_model(tmp_path, controls=tokenizers.MISTRAL, context=128)) as server:
        with pytest.raises(openai.BadRequestError, match="Leave tools out"):
            server.client.chat.completions.create(**_asked(tools=TOOLS))
        assert server.client.chat.completions.create(**_asked()).choices[0].message.content is not None
