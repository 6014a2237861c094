"""How much may be asked: requests a minute, and bytes and seconds of a body.

``RateLimit`` is a bucket for each asker that fills evenly and holds a minute's worth. ``read_body`` takes a whole body
into memory before anybody works on it, so that a slow or endless one holds nothing up.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from deepwell.server.access import ASKER
from deepwell.server.refusals import header, refuse
from deepwell.server.settings import Settings

_MOST_ASKERS = 10_000
"""Buckets that are kept; a bucket that nobody took from for a minute is full, and nothing is lost with it."""

_MOST_DISCARDED = 2**26
"""Bytes of a body that is too long which are still read, because many clients look at the answer only then."""


class Buckets:
    """Token buckets by name. Each holds ``per_minute`` at most and gets as many in a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """Take one. 0 if there was one, else the seconds until there is."""
        now = self._clock()
        level, since = self._levels.get(name, (float(self._per_minute), now))
        level = min(float(self._per_minute), level + (now - since) * self._per_minute / 60)
        wait = 0.0 if level >= 1 else (1 - level) * 60 / self._per_minute
        self._levels[name] = (level if wait else level - 1, now)
        self._levels.move_to_end(name)
        if len(self._levels) > _MOST_ASKERS:
            self._levels.popitem(last=False)
        return wait


class RateLimit:
    """Middleware: sends away who asks more than ``Settings.requests_per_minute`` allows, with 429."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._limit = settings.requests_per_minute
        self._buckets = None if self._limit is None else Buckets(self._limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if self._buckets is not None and costs(scope):
            wait = self._buckets.take(scope.get(ASKER, "unknown"))
            if wait:
                message = f"{self._limit} requests a minute are allowed; the next one in {wait:.1f} s"
                await refuse(send, 429, message, "rate_limit_exceeded", retry_after(wait))
                return
        await self._app(scope, receive, send)


class RefusedError(Exception):
    """A request is not served: the status, the message and the code that say why."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


async def read_body(scope: Scope, receive: Receive, settings: Settings) -> bytes:
    """The whole body of a request.

    Raises:
        RefusedError: It is too long (413) or too slow (408).
        ClientGoneError: The client left in its midst.
    """
    try:
        async with asyncio.timeout(settings.upload_seconds):
            return await _read(scope, receive, settings.max_request_bytes)
    except TimeoutError:
        message = f"the request did not arrive within {settings.upload_seconds:g} s"
        raise RefusedError(408, message, "upload_timeout") from None


async def _read(scope: Scope, receive: Receive, most: int) -> bytes:
    announced = int(header(scope, b"content-length") or 0)
    # Who asks before sending reads a refusal at once; everybody else only when all is sent.
    waits = (header(scope, b"expect") or "").lower() == "100-continue"
    parts: list[bytes] = []
    length = 0
    more = not (waits and announced > most)
    while more and length <= _MOST_DISCARDED:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        length += len(part)
        more = bool(message.get("more_body"))
        if max(length, announced) > most:
            parts.clear()
        else:
            parts.append(part)
    if max(length, announced) > most:
        raise RefusedError(413, f"the request has more than {most} bytes, which is the limit", "request_too_large")
    return b"".join(parts)


def costs(scope: Scope) -> bool:
    """Whether a request makes work, and so counts against limits: looking at lists and at health does not."""
    return bool(scope["type"] == "http" and scope["method"] == "POST")


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to ask again; whole seconds, as HTTP has it (RFC 9110, section 10.2.3)."""
    return {"retry-after": str(max(1, math.ceil(seconds)))}
