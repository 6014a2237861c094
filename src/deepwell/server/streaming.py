"""Answers over HTTP: server-sent events as they are written, and an eye on the client while they are.

A client that leaves ends its request: the generation is cancelled, its answers end as "cancelled", and whoever waits
for them goes on as if they had ended by themselves. Nothing has to be torn down in the midst of a wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deepwell.server.errors import body_of, explained
from deepwell.server.generation import Generation

KEEP_ALIVE_SECONDS = 15.0
"""How long a stream may be silent before a comment says that it lives."""

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

EVENTS: Mapping[str, Any] = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "Its data is a JSON object, a piece of the answer or an error; at the end [DONE].",
            "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
            "required": ["data"],
        }
    }
}
"""For the OpenAPI description of an endpoint that streams."""

_log = logging.getLogger(__name__)


def event(data: BaseModel) -> bytes:
    """An event; what was not set in ``data`` is left out."""
    return b"data: " + data.model_dump_json(exclude_unset=True).encode() + b"\n\n"


@dataclass(slots=True)
class Client:
    """Who waits for an answer: ``gone`` when it has left."""

    gone: bool = False


@asynccontextmanager
async def ends_with_client(generation: Generation, receive: Receive) -> AsyncIterator[Client]:
    """Cancel a generation when its client leaves, or the block is left."""
    client = Client()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        client.gone = True
        generation.cancel()

    watching = asyncio.create_task(watch())
    try:
        with generation:
            yield client
    finally:
        watching.cancel()


class EventStream(Response):
    """A stream of events about a generation, which ends with it."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, events: AsyncGenerator[bytes]) -> None:
        """``events`` may raise: the error is then the last event."""
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._generation = generation
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, as ASGI has it."""
        del scope
        async with ends_with_client(self._generation, receive) as client:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with aclosing(self._events):
                    async for data in self._events:
                        await send({"type": "http.response.body", "body": data, "more_body": True})
            except Exception as error:
                if client.gone:
                    return
                told = explained(error)
                if told.status_code == 500:
                    _log.exception("a stream failed")
                data = b"data: " + body_of(told) + b"\n\n"
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
