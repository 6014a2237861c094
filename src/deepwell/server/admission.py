"""Taking turns: a bounded number of requests is worked on, a bounded number waits, and more are sent away.

    coming -> is there room in the house? -> read the body -> wait for a turn -> work, for so long at most
                429, 503 (draining)            408, 413         429                504, or a last event in a stream

A place is counted from the first byte of a request on, so bodies in memory are bounded too. Whoever waits is served in
the order of coming, and one whose client leaves gives up its place at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepwell.server.limits import ClientGoneError, RefusedError, costs, read_body, retry_after
from deepwell.server.refusals import error_body, header, refuse
from deepwell.server.settings import Settings

_LAST_WORDS_SECONDS = 5.0
"""How long a client that does not read may hold up the last event of its stream."""


class Admission:
    """How many are in the house, and whether the door is open."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.inside = 0
        self.running = 0
        self.draining = False
        self.closed = False
        self._queue: deque[asyncio.Future[None]] = deque()
        self._limits: set[asyncio.Timeout] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    def enter(self) -> None:
        """Count a request that comes.

        Raises:
            RefusedError: No new ones are taken (503), or there is no room (429).
        """
        if self.draining:
            raise _closing()
        settings = self.settings
        if self.inside >= settings.most_concurrent + settings.queue_length:
            message = f"{settings.most_concurrent} requests are worked on and {settings.queue_length} wait already"
            raise RefusedError(429, message, "queue_full")
        self.inside += 1
        self._empty.clear()

    def leave(self) -> None:
        """A request that came is gone."""
        self.inside -= 1
        if not self.inside:
            self._empty.set()

    async def turn(self, receive: Receive) -> None:
        """Wait until this request may be worked on; ``done`` gives the turn on.

        Raises:
            RefusedError: It took too long (429).
            ClientGoneError: The client left.
        """
        if self.running < self.settings.most_concurrent:
            self.running += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait(
                (place, leaving), timeout=self.settings.queue_seconds, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            if place.done():
                self.done()
            raise
        finally:
            gone = leaving.done()
            leaving.cancel()
            if not place.done():
                self._queue.remove(place)
        if place.done():
            return
        if gone:
            raise ClientGoneError
        message = f"no turn came within {self.settings.queue_seconds:g} s; {self.running} requests are worked on"
        raise RefusedError(429, message, "queue_timeout")

    def done(self) -> None:
        """Give the turn back: whoever waits longest has it now."""
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self.running -= 1

    @contextlib.asynccontextmanager
    async def time_limit(self) -> AsyncIterator[asyncio.Timeout]:
        """Cancels what runs in it after ``Settings.request_seconds``, or when the server closes.

        Raises:
            RefusedError: The server has closed (503).
        """
        if self.closed:
            raise _closing()
        async with asyncio.timeout(self.settings.request_seconds) as limit:
            self._limits.add(limit)
            try:
                yield limit
            finally:
                self._limits.discard(limit)

    async def drain(self) -> bool:
        """Take no new requests, and wait for those that are here; whether all ended within ``Settings.drain_seconds``.

        Those that did not are cut off.
        """
        self.draining = True
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                await self._empty.wait()
        except TimeoutError:
            self.close()
            return False
        return True

    def close(self) -> None:
        """Cut off all that is worked on; each client is told."""
        self.draining = self.closed = True
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            with contextlib.suppress(RuntimeError):  # its time was up in this very moment
                limit.reschedule(now)


class Admit:
    """Middleware: lets requests take their turns. Those that make no work need none."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if not costs(scope):
            await self._app(scope, receive, send)
            return
        admission = self._admission
        try:
            admission.enter()
            try:
                body = await read_body(scope, receive, admission.settings)
                await admission.turn(receive)
                try:
                    await self._work(scope, _replay(body, receive), _Watched(send))
                finally:
                    admission.done()
            finally:
                admission.leave()
        except ClientGoneError:
            return
        except RefusedError as error:
            later = retry_after(1.0) if error.status in (429, 503) else None
            await refuse(send, error.status, str(error), error.code, later)

    async def _work(self, scope: Scope, receive: Receive, send: _Watched) -> None:
        try:
            async with self._admission.time_limit() as limit:
                await self._app(scope, receive, send)
        except TimeoutError:
            if not limit.expired():
                raise
            seconds = self._admission.settings.request_seconds
            late = RefusedError(504, f"the request was not done within {seconds:g} s", "request_timeout")
            why = _closing() if self._admission.closed else late
            if not send.started:
                raise why from None
            await send.end_with(why)


def _closing() -> RefusedError:
    return RefusedError(503, "the server is shutting down", "draining")


class _Watched:
    """A ``send`` that knows how far the response is."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self._events = False
        self._ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            kind = header(message, b"content-type") or ""
            self._events = kind.startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body")
        await self._send(message)

    async def end_with(self, error: RefusedError) -> None:
        """End a stream of events with an error; any other response stays cut off, which its client notices."""
        if self._ended or not self._events:
            return
        event = b"data: " + error_body(error.status, str(error), error.code) + b"\n\n"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._send({"type": "http.response.body", "body": event})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a body that was read already, and then what else comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _left(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
