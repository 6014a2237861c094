"""``/v1/completions``: texts to go on with, and texts whose middle is to be filled in."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response

from deepwell.errors import UsageError
from deepwell.lm.engine.infill import infill_prompt
from deepwell.lm.engine.params import SamplingParams
from deepwell.server.bodies import StrictRoute
from deepwell.server.completion_schemas import (
    MOST_PROMPTS,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from deepwell.server.driver import Job
from deepwell.server.generation import Answer, Generation
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
from deepwell.server.writing import TokenLog, finish_reason

if TYPE_CHECKING:
    from deepwell.lm.engine.model import Model
    from deepwell.lm.engine.request import StreamPiece

DEFAULT_TOKENS = 16
"""Of an answer whose length nobody limits, as OpenAI's API has it."""


class _Writer:
    """Makes one choice from the pieces of its answer."""

    def __init__(self, model: Model, *, begun: str, logprobs: bool) -> None:
        self._begun = begun
        self._log = TokenLog(model) if logprobs else None
        self._offset = len(begun)

    def push(self, answer: Answer, piece: StreamPiece) -> CompletionChoice | None:
        """What a piece adds to the choice; None: nothing that shows."""
        over = answer.finish is not None
        text, self._begun = self._begun + piece.text, ""
        logprobs = self._logprobs(piece, shown=bool(piece.text) or over)
        reason: Literal["stop", "length"] | None = None
        if over:
            reason = "length" if finish_reason(answer) == "length" else "stop"
        if not (text or over or logprobs):
            return None
        return CompletionChoice(index=answer.index, text=text, logprobs=logprobs, finish_reason=reason)

    def _logprobs(self, piece: StreamPiece, *, shown: bool) -> CompletionLogprobs | None:
        tokens = [] if self._log is None else self._log.push(piece, shown=shown)
        if not tokens:
            return None
        offsets = []
        for one in tokens:
            offsets.append(self._offset)
            self._offset += len(one.token)
        return CompletionLogprobs(
            tokens=[one.token for one in tokens],
            token_logprobs=[one.logprob for one in tokens],
            top_logprobs=[{other.token: other.logprob for other in one.top_logprobs} for one in tokens],
            text_offset=offsets,
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that is being answered."""

    id: str
    created: int
    body: CompletionRequest
    writers: list[_Writer]

    def response(self, choices: list[CompletionChoice]) -> Completion:
        """A response, or an event, with these choices and without usage."""
        return Completion(
            id=self.id,
            object="text_completion",
            created=self.created,
            model=self.body.model,
            system_fingerprint=FINGERPRINT,
            choices=choices,
        )

    def usage(self, generation: Generation) -> Usage:
        """What it has cost."""
        return Usage.of(generation.answers, choices=self.body.n or 1)


def completion_routes(served: Served) -> APIRouter:
    """The endpoint."""
    router = APIRouter(route_class=StrictRoute)

    @router.post(
        "/completions",
        operation_id="createCompletion",
        summary="Go on with a text, or fill in its middle",
        responses={
            200: {
                "model": Completion,
                "description": "The answers; with `stream`, events whose data is of the same form, the last `[DONE]`.",
                "content": {**EVENTS},
            },
            **ERRORS,
        },
    )
    async def complete(body: CompletionRequest, request: Request) -> Response:
        model = served.driver.model
        jobs, prompts = _jobs(served, body)
        generation = await served.driver.begin(jobs)
        begun = [_shown(model, prompt) if body.echo else "" for prompt in prompts for _ in range(body.n or 1)]
        writers = [_Writer(model, begun=text, logprobs=body.logprobs is not None) for text in begun]
        asked = _Asked(f"cmpl-{secrets.token_hex(12)}", int(time.time()), body, writers)
        if body.stream:
            return EventStream(generation, _events(asked, generation))
        async with ends_with_client(generation, request.receive) as client:
            pieces: list[list[CompletionChoice]] = [[] for _ in writers]
            while not generation.over and not client.gone:
                for answer, piece in await generation.news():
                    if not client.gone and (choice := writers[answer.index].push(answer, piece)) is not None:
                        pieces[answer.index].append(choice)
            if client.gone:
                return Response(status_code=CLIENT_GONE)
        completion = asked.response([_joined(parts) for parts in pieces])
        completion.usage = asked.usage(generation)
        return Response(completion.model_dump_json(exclude_unset=True), media_type="application/json")

    return router


def _jobs(served: Served, body: CompletionRequest) -> tuple[list[Job], list[str | list[int]]]:
    """What the engine is asked to write, and the prompts as they were given."""
    served.thinks(body.model)
    prompts = _prompts(body)
    count = body.n or 1
    if len(prompts) * count > MOST_PROMPTS:
        raise UsageError(f"{len(prompts)} prompts with {count} answers each are asked for; {MOST_PROMPTS} at once")
    if body.echo and body.logprobs is not None:
        raise UsageError("log-probabilities of a prompt are not given: leave out echo, or logprobs")
    settings = body.sampling() | {"max_tokens": body.max_tokens or DEFAULT_TOKENS}
    if body.logprobs is not None:
        settings["logprobs"] = body.logprobs
    jobs = []
    for prompt in prompts:
        tokens: str | Sequence[int] = prompt
        if body.suffix:
            if not isinstance(prompt, str):
                raise UsageError("suffix is given, and the prompt is tokens", hint="Give both as texts.")
            tokens = infill_prompt(served.driver.model.tokenizer, prompt, body.suffix)
        jobs += [Job(tokens, SamplingParams(**{**settings, "seed": seed})) for seed in seeds(body.seed, count)]
    return jobs, prompts


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    given = body.prompt
    if isinstance(given, str):
        return [given]
    ids = [one for one in given if isinstance(one, int)]
    if ids:
        return [ids]
    return [one for one in given if not isinstance(one, int)]


def _shown(model: Model, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)


def _joined(parts: Sequence[CompletionChoice]) -> CompletionChoice:
    """A whole choice from its pieces."""
    last = parts[-1]
    logs = [part.logprobs for part in parts if part.logprobs is not None]
    logprobs = None
    if logs:
        logprobs = CompletionLogprobs(
            tokens=[one for log in logs for one in log.tokens],
            token_logprobs=[one for log in logs for one in log.token_logprobs],
            top_logprobs=[one for log in logs for one in log.top_logprobs],
            text_offset=[one for log in logs for one in log.text_offset],
        )
    text = "".join(part.text for part in parts)
    return CompletionChoice(index=last.index, text=text, logprobs=logprobs, finish_reason=last.finish_reason)


async def _events(asked: _Asked, generation: Generation) -> AsyncGenerator[bytes]:
    while not generation.over:
        news = await generation.news(KEEP_ALIVE_SECONDS)
        if not news:
            yield KEEP_ALIVE
        for answer, piece in news:
            choice = asked.writers[answer.index].push(answer, piece)
            if choice is not None:
                yield event(asked.response([choice]))
    if asked.body.include_usage:
        last = asked.response([])
        last.usage = asked.usage(generation)
        yield event(last)
    yield DONE
