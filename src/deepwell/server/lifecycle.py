"""A server from its first to its last moment: the address, the door in front of the API, and the orderly end.

    CountRequests -> CORS -> Access -> /health, /metrics -> RateLimit -> Admit -> the API

Told to stop (SIGTERM, or Ctrl-C), a server takes no new requests and ends those that it has; ``/health`` says
"draining" meanwhile, so that a balancer sends nobody any more. Told again, or when ``Settings.drain_seconds`` have
passed, it cuts off what is left, and each client is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from deepwell.errors import ServerError
from deepwell.server.access import Access
from deepwell.server.admission import Admission, Admit
from deepwell.server.keys import KeyRing
from deepwell.server.limits import RateLimit
from deepwell.server.metrics import METRICS_TYPE, CountRequests, Metrics
from deepwell.server.refusals import answer, refuse
from deepwell.server.settings import Settings

if TYPE_CHECKING:
    from deepwell.library.protocols import TextEncoder
    from deepwell.lm.engine.model import Model

_GOODBYE_SECONDS = 3
"""How long connections may stay open when nothing is worked on any more."""


@dataclass(frozen=True)
class Door:
    """What stands before an API: who is let in, how many, and what is counted.

    Attributes:
        settings: The limits.
        ring: The keys; None: none are asked for.
        admission: Who is in.
        metrics: What is counted.
    """

    settings: Settings
    ring: KeyRing | None = None
    metrics: Metrics = field(default_factory=Metrics)
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        """Make the queue."""
        object.__setattr__(self, "admission", Admission(self.settings))

    @classmethod
    def of(cls, settings: Settings) -> Door:
        """The door that settings ask for.

        Raises:
            KeyFileError: The file of keys cannot be used.
            UsageError: The address can be reached by others and no key is asked for.
        """
        ring = None if settings.key_file is None else KeyRing(settings.key_file)
        settings.check_reach(keys=0 if ring is None else len(ring))
        return cls(settings, ring)

    def before(self, api: ASGIApp, routes: frozenset[str] = frozenset()) -> ASGIApp:
        """The API with the door before it; ``routes`` are its paths, which metrics name."""
        settings = self.settings
        app: ASGIApp = Admit(api, self.admission)
        app = RateLimit(app, settings)
        app = _Signs(app, self)
        app = Access(app, settings, self.ring)
        if settings.cors_origins:
            app = CORSMiddleware(
                app, allow_origins=settings.cors_origins, allow_methods=("GET", "POST"), allow_headers=("*",)
            )
        return CountRequests(app, self.metrics, routes | _Signs.paths)


class _Signs:
    """Middleware: answers ``/health`` and ``/metrics``."""

    paths = frozenset({"/health", "/metrics"})

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self.paths:
            await self._app(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            message = f"{scope['path']} is asked with GET"
            await refuse(send, 405, message, "method_not_allowed", {"allow": "GET, HEAD"})
        elif scope["path"] == "/metrics":
            await answer(send, 200, self._door.metrics.text(), METRICS_TYPE)
        else:
            draining = self._door.admission.draining
            body = json.dumps({"status": "draining" if draining else "ok"}).encode()
            await answer(send, 503 if draining else 200, body, "application/json")


def bind(settings: Settings) -> socket.socket:
    """Take the address, before a model is loaded for nothing. Nobody can connect yet.

    Raises:
        ServerError: It is in use, not of this machine, or not allowed.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except OSError as error:
        raise ServerError(f"there is no address {where}: {error.strerror}", hint="Name one with --host.") from error
    family, kind, protocol, _, address = found[0]
    taken = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would share an address that somebody listens on
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        hint = "Stop what listens there, or use another one with --port."
        raise ServerError(f"{where} cannot be listened on: {error.strerror}", hint=hint) from error
    return taken


class Server:
    """An API that is served until a signal comes, or ``stop`` is called.

    Attributes:
        door: What stands before it.
    """

    def __init__(self, api: ASGIApp, door: Door, taken: socket.socket, *, routes: frozenset[str] = frozenset()) -> None:
        """Make ready.

        Args:
            api: The application.
            door: What stands before it.
            taken: The address, from ``bind``; closed when serving ends.
            routes: As for ``Door.before``.
        """
        self.door = door
        self._socket = taken
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None
        self._asked = False
        proxies = door.settings.trusted_proxies
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                door.before(api, routes),
                access_log=False,
                forwarded_allow_ips=list(proxies),
                lifespan="on",
                log_level="warning",
                proxy_headers=bool(proxies),
                server_header=False,
                timeout_graceful_shutdown=_GOODBYE_SECONDS,
                ws="none",
            )
        )

    @classmethod
    def of(
        cls, model: Model, door: Door, taken: socket.socket, *, name: str, encoder: TextEncoder | None = None
    ) -> Server:
        """The server of a model; ``name`` and ``encoder`` are those of ``app.create_app``."""
        from deepwell.server.app import create_app
        from deepwell.server.driver import Driver

        driver = Driver(model)
        driver.on_end.append(door.metrics.generation)
        door.metrics.watch(model.engine, door.admission)
        app = create_app(driver, name=name, encoder=encoder)
        return cls(app, door, taken, routes=frozenset(app.openapi()["paths"]))

    @property
    def url(self) -> str:
        """Where the API is, without a slash at its end."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve to the end; in the main thread, SIGTERM and SIGINT stop it.

        Args:
            ready: Called when requests are taken.
        """
        self._uvicorn.ready = ready
        with self._signals():
            asyncio.run(self._serve())

    def stop(self) -> None:
        """Drain and end; called again, cut off what is left. From any thread, also inside of a signal."""
        self._asked = True
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._stop)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._asked:
            self._stop()
        await self._uvicorn.serve(sockets=[self._socket])

    def _stop(self) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._drain())
        else:
            self.door.admission.close()

    async def _drain(self) -> None:
        await self.door.admission.drain()
        self._uvicorn.should_exit = True

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            del number, frame
            self.stop()

        before = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own way with signals, which would not drain and end the process by the signal itself."""

    ready: Callable[[], None]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()
