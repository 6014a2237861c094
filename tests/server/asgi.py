"""Applications and clients for tests of middleware: no sockets, no threads."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Reply:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False

    @property
    def error(self) -> dict[str, Any]:
        held: dict[str, Any] = json.loads(self.body)["error"]
        assert set(held) == {"message", "type", "param", "code"}
        return held


@dataclass
class Client:
    """One request: chunks that come one by one, then a client that waits, or leaves when ``leave`` is set."""

    chunks: Iterable[bytes] = (b"{}",)
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    reply: Reply = field(default_factory=Reply)
    endless: bool = False
    seen: list[Scope] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._left = list(self.chunks)

    async def receive(self) -> Message:
        if self._left:
            body = self._left.pop(0)
            return {"type": "http.request", "body": body, "more_body": self.endless or bool(self._left)}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.reply.status = message["status"]
            self.reply.headers = {key.decode(): value.decode() for key, value in message["headers"]}
        else:
            assert self.reply.status and not self.reply.ended
            self.reply.body += message["body"]
            self.reply.ended = not message.get("more_body")

    async def ask(self, app: ASGIApp, scope: Scope | None = None) -> Reply:
        await app(scope or a_request(), self.receive, self.send)
        return self.reply


def a_request(method: str = "POST", path: str = "/v1/completions", **headers: str) -> Scope:
    pairs = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "client": ("127.0.0.1", 40000),
        "headers": [(name.encode(), value.encode()) for name, value in pairs.items() if value],
    }


@dataclass
class Work:
    """An application that reads the body, then works until it may go on, then answers with what it was asked."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    stream: bool = False
    began: int = 0
    cancelled: int = 0
    scopes: list[Scope] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.began += 1
        self.scopes.append(scope)
        message = await receive() if scope["method"] == "POST" else {"body": b""}
        kind = b"text/event-stream; charset=utf-8" if self.stream else b"application/json"
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
        try:
            if self.stream:
                await send(start)
                await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if not self.stream:
            await send(start)
        await send({"type": "http.response.body", "body": message["body"]})


def ready() -> Work:
    """One that answers at once."""
    work = Work()
    work.go_on.set()
    return work


async def settled(turns: int = 20) -> None:
    """Let every task go on until it waits."""
    for _ in range(turns):
        await asyncio.sleep(0)
