"""What the endpoints have in common: how a request says that answers are to be written, what usage and errors are.

The classes are checked by pydantic and make the OpenAPI description. Types are strict: "5" is no number. Fields that
are not known are passed over, as clients send many that mean nothing here; those that ask for something which this
server cannot do are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deepwell.lm.engine.params import MOST_STOPS
from deepwell.server.generation import Answer

_SEEDS = 9_223_372_036_854_776_000
"""2**63 as OpenAI's description rounds it."""

MOST_CHOICES = 16
"""Answers to one prompt."""


class Asked(BaseModel):
    """Part of a request."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Told(BaseModel):
    """Part of a response; what was not set is left out."""

    model_config = ConfigDict(extra="forbid")


Text = Annotated[str, Field(min_length=1)]
Stop = Text | Annotated[list[Text], Field(max_length=MOST_STOPS)]


class StreamOptions(Asked):
    """What a stream is to have."""

    include_usage: bool = False


class Sampling(Asked):
    """The fields that chats and completions share."""

    model: str = Field(description="A name that /v1/models lists.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the most probable token; as given: 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31, description="Not in OpenAI's API. 0 keeps all tokens.")
    min_p: float | None = Field(None, ge=0, le=1, description="Not in OpenAI's API.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10, description="Not in OpenAI's API.")
    seed: int | None = Field(None, ge=-_SEEDS, le=_SEEDS, description="The same seed draws the same tokens.")
    stop: Stop | None = Field(None, description="Texts that end an answer and are not part of it.")
    max_tokens: int | None = Field(None, ge=1, le=2**31, description="Of one answer, thoughts included.")
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="Answers to be written.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, Any] | None = Field(None, max_length=0, description="Not supported.")

    def sampling(self) -> dict[str, Any]:
        """The arguments of ``SamplingParams`` that were given and are named as here."""
        names = (
            "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
            "seed", "stop",
        )  # fmt: skip
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def include_usage(self) -> bool:
        """Whether a stream is to end with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


def seeds(given: int | None, count: int) -> list[int | None]:
    """A seed for each of ``count`` answers, so that they differ and repeat."""
    return [None if given is None else (given + index) % 2**63 for index in range(count)]


class PromptTokensDetails(Told):
    """Of the tokens of the prompt."""

    cached_tokens: int


class CompletionTokensDetails(Told):
    """Of the tokens of the answers."""

    reasoning_tokens: int


class Usage(Told):
    """Tokens of a request. Hit and missed ones of the prompt, together, are the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails

    @classmethod
    def of(cls, answers: Iterable[Answer], *, choices: int) -> Usage:
        """Of some answers, ``choices`` of them in a row to one prompt, which counts once."""
        answers = list(answers)
        first = answers[::choices]
        prompt = sum(one.prompt_tokens for one in first)
        hit = sum(one.reused_tokens for one in first)
        written = sum(one.tokens for one in answers)
        return cls(
            prompt_tokens=prompt,
            completion_tokens=written,
            total_tokens=prompt + written,
            prompt_cache_hit_tokens=hit,
            prompt_cache_miss_tokens=prompt - hit,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=hit),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=sum(one.reasoning_tokens for one in answers)
            ),
        )


class ErrorDetail(Told):
    """What was wrong."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class ErrorBody(Told):
    """The body of every response that is not a success, as OpenAI has it."""

    error: ErrorDetail


ERRORS: Mapping[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request was wrong, or is not served now."},
    "5XX": {"model": ErrorBody, "description": "The server failed, is stopping, or took too long."},
}
"""For the OpenAPI description of an endpoint."""
