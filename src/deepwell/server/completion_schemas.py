"""Completions: what ``/v1/completions`` is asked, and what it tells; the fields are OpenAI's and DeepSeek's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deepwell.lm.engine.params import MOST_LOGPROBS
from deepwell.server.schemas import Sampling, Told, Usage

MOST_PROMPTS = 64

TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(min_length=1)]
Prompts = Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
PromptsOfIds = Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS)]


class CompletionRequest(Sampling):
    """A text, or several, to go on with."""

    prompt: str | Prompts | TokenIds | PromptsOfIds = Field(description="Texts, or tokens of the model.")
    suffix: str | None = Field(None, description="What is to stand behind the answer: fill in the middle.")
    echo: bool | None = Field(None, description="Begin each answer with its prompt.")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=1, description="Not supported.")


class CompletionLogprobs(Told):
    """Of an answer's tokens: lists of one length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Told):
    """One answer; in a stream, a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(Told):
    """The answers; in a stream, an event."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
