"""``/v1/chat/completions``: chats in, answers out, whole or as a stream of events."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from deepwell.errors import UsageError
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.tool_calls import ToolParser
from deepwell.server.bodies import StrictRoute
from deepwell.server.chat_schemas import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    ChoiceLogprobs,
    ChunkChoice,
    FinishReason,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
)
from deepwell.server.driver import Job
from deepwell.server.generation import Generation
from deepwell.server.refusals import CLIENT_GONE
from deepwell.server.schemas import ERRORS, Usage, seeds
from deepwell.server.served import FINGERPRINT, Served
from deepwell.server.streaming import (
    DONE,
    EVENTS,
    KEEP_ALIVE,
    KEEP_ALIVE_SECONDS,
    EventStream,
    ends_with_client,
    event,
)
from deepwell.server.writing import ChatWriter

DEFAULT_TOKENS = 4096
"""Of an answer whose length nobody limits, as DeepSeek's API has it."""

LITTLE_THOUGHT = 1024
"""Tokens of a thought with ``reasoning_effort`` "low" or "minimal"; with more effort thoughts have no limit."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that is being answered."""

    id: str
    created: int
    body: ChatRequest
    writers: list[ChatWriter]


def chat_routes(served: Served) -> APIRouter:
    """The endpoint."""
    router = APIRouter(route_class=StrictRoute)

    @router.post(
        "/chat/completions",
        operation_id="createChatCompletion",
        summary="Answer a chat",
        responses={
            200: {
                "model": ChatCompletion,
                "description": "The answers; with `stream`, events whose data is a chunk each, the last one `[DONE]`.",
                "content": {**EVENTS},
            },
            **ERRORS,
        },
    )
    async def answer_chat(body: ChatRequest, request: Request) -> Response:
        jobs, parsers = _jobs(served, body)
        generation = await served.driver.begin(jobs)
        model, logprobs = served.driver.model, bool(body.logprobs)
        writers = [ChatWriter(model, parser=parser, logprobs=logprobs) for parser in parsers]
        asked = _Asked(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), body, writers)
        if body.stream:
            return EventStream(generation, _events(asked, generation))
        async with ends_with_client(generation, request.receive) as client:
            while not generation.over:
                for answer, piece in await generation.news():
                    for _ in writers[answer.index].push(answer, piece):
                        pass
            if client.gone:
                return Response(status_code=CLIENT_GONE)
            completion = _completion(asked, generation)
        return Response(completion.model_dump_json(exclude_unset=True), media_type="application/json")

    return router


def _jobs(served: Served, body: ChatRequest) -> tuple[list[Job], list[ToolParser | None]]:
    """What the engine is asked to write, and who reads calls of functions out of each answer."""
    thinks = served.thinks(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise UsageError("top_logprobs is given, and logprobs is not true")
    count = body.n or 1
    choice: Any = body.tool_choice
    if choice is not None and not isinstance(choice, str):
        choice = choice.model_dump()
    tools = [tool.model_dump(exclude_unset=True) for tool in body.tools or ()]
    parsers = [
        ToolParser.of(
            served.driver.model.tokenizer, tools, choice, parallel=body.parallel_tool_calls is not False
        )
        for _ in range(count)
    ]  # fmt: skip
    settings = body.sampling() | _form(body) | _thinking(body, thinks)
    settings["max_tokens"] = body.max_completion_tokens or body.max_tokens or DEFAULT_TOKENS
    if body.logprobs:
        settings["logprobs"] = body.top_logprobs or 0
    messages = [_message(message) for message in body.messages]
    jobs = []
    for seed, parser in zip(seeds(body.seed, count), parsers, strict=True):
        form = {"grammar": parser.grammar} if parser is not None and parser.grammar is not None else {}
        params = SamplingParams(**{**settings, **form, "seed": seed})
        shown = tools if parser is not None else None
        jobs.append(Job(messages, params, tools=shown, continue_last=bool(body.messages[-1].prefix)))
    return jobs, parsers


def _form(body: ChatRequest) -> dict[str, Any]:
    wanted = body.response_format
    if isinstance(wanted, JsonSchemaFormat):
        schema = wanted.json_schema.schema_
        return {"json_schema": {"type": "object"} if schema is None else schema}
    return {"json_schema": {"type": "object"}} if isinstance(wanted, JsonObjectFormat) else {}


def _thinking(body: ChatRequest, thinks: bool | None) -> dict[str, Any]:
    """Whether to think and how much: ``thinking`` decides, else the effort, else the model's name, else the model."""
    budget = None
    if body.reasoning_effort is not None:
        thinks = body.reasoning_effort != "none"
        budget = LITTLE_THOUGHT if body.reasoning_effort in ("minimal", "low") else None
    if body.thinking is not None:
        thinks = body.thinking.type == "enabled"
        budget = budget if body.thinking.budget_tokens is None else body.thinking.budget_tokens
    return {"thinking": thinks, "thinking_budget": budget}


def _message(message: Message) -> dict[str, Any]:
    plain = message.model_dump(exclude_none=True, exclude={"prefix", "reasoning"})
    if message.reasoning is not None:
        plain.setdefault("reasoning_content", message.reasoning)
    return plain


def _completion(asked: _Asked, generation: Generation) -> ChatCompletion:
    choices = []
    for answer, writer in zip(generation.answers, asked.writers, strict=True):
        reason = writer.finish_reason(answer)
        message, logprobs = writer.message()
        choices.append(ChatChoice(index=answer.index, message=message, logprobs=logprobs, finish_reason=reason))
    return ChatCompletion(
        id=asked.id,
        object="chat.completion",
        created=asked.created,
        model=asked.body.model,
        system_fingerprint=FINGERPRINT,
        choices=choices,
        usage=Usage.of(generation.answers, choices=len(choices)),
    )


async def _events(asked: _Asked, generation: Generation) -> AsyncGenerator[bytes]:
    for answer in generation.answers:
        yield _chunk(asked, answer.index, ChatMessage(role="assistant", content=""), None)
    while not generation.over:
        news = await generation.news(KEEP_ALIVE_SECONDS)
        if not news:
            yield KEEP_ALIVE
        for answer, piece in news:
            writer = asked.writers[answer.index]
            for delta, logprobs in writer.push(answer, piece):
                yield _chunk(asked, answer.index, delta, logprobs)
            if answer.finish is not None:
                yield _chunk(asked, answer.index, ChatMessage(), None, writer.finish_reason(answer))
    if asked.body.include_usage:
        usage = Usage.of(generation.answers, choices=len(generation.answers))
        yield event(_empty_chunk(asked).model_copy(update={"usage": usage}))
    yield DONE


def _chunk(
    asked: _Asked, index: int, delta: ChatMessage, logprobs: ChoiceLogprobs | None, reason: FinishReason | None = None
) -> bytes:
    chunk = _empty_chunk(asked)
    chunk.choices.append(ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason))
    return event(chunk)


def _empty_chunk(asked: _Asked) -> ChatChunk:
    chunk = ChatChunk(
        id=asked.id,
        object="chat.completion.chunk",
        created=asked.created,
        model=asked.body.model,
        system_fingerprint=FINGERPRINT,
        choices=[],
    )
    if asked.body.include_usage:
        chunk.usage = None
    return chunk
