"""Chats: what ``/v1/chat/completions`` is asked, and what it tells; the fields are OpenAI's and DeepSeek's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from deepwell.lm.engine.params import MOST_LOGPROBS
from deepwell.server.schemas import Asked, Sampling, Told, Usage

MOST_TOOLS = 128

FinishReason = Literal["stop", "length", "tool_calls"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]


class TextPart(Asked):
    """A piece of a message; these models read text alone."""

    type: Literal["text"]
    text: str


class AskedFunctionCall(Asked):
    """The function of a call that was made, and its arguments as JSON."""

    name: str = Field(min_length=1, max_length=64)
    arguments: str


class AskedToolCall(Asked):
    """A call that the assistant made in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: AskedFunctionCall


class Message(Asked):
    """A turn of the chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None
    reasoning_content: str | None = Field(None, description="What the assistant thought, as it was sent.")
    reasoning: str | None = Field(None, description="The same under its other name.")
    tool_calls: list[AskedToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    prefix: bool | None = Field(None, description="Of a last message of the assistant: the answer begins with it.")


class Function(Asked):
    """A function that the model may call; ``parameters`` is the JSON schema of its arguments."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Asked):
    """Something that the model may use."""

    type: Literal["function"]
    function: Function


class NamedFunction(Asked):
    """The name of a function."""

    name: str


class NamedTool(Asked):
    """The one tool that is to be used."""

    type: Literal["function"]
    function: NamedFunction


class TextFormat(Asked):
    """The answer may have any form."""

    type: Literal["text"]


class JsonObjectFormat(Asked):
    """The answer is a JSON object."""

    type: Literal["json_object"]


class JsonSchema(Asked):
    """A schema with a name."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Asked):
    """The answer is JSON that satisfies a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class Thinking(Asked):
    """Whether to reason before the answer."""

    type: Literal["enabled", "disabled"]
    budget_tokens: int | None = Field(None, ge=0, le=2**31, description="Tokens after which a thought is ended.")


class ChatRequest(Sampling):
    """A chat to be answered."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    response_format: Annotated[
        TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
    ] | None = None  # fmt: skip
    tools: list[Tool] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    thinking: Thinking | None = None
    reasoning_effort: Effort | None = Field(None, description='"none" is no reasoning, "low" little of it.')


class TopLogprob(Told):
    """A token that might have stood in a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that stands there, and others that might."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Told):
    """Of the answer's tokens, thoughts left out."""

    content: list[TokenLogprob] | None
    refusal: None = None


class FunctionCall(Told):
    """A function and its arguments, or pieces of these."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(Told):
    """A call that the model asks for; in a stream, a piece of it."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall


class ChatMessage(Told):
    """What the model said; reasoning under both of its names."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    refusal: None = None


class ChatChoice(Told):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Told):
    """The answers to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChunkChoice(Told):
    """A piece of one answer."""

    index: int
    delta: ChatMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Told):
    """An event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
