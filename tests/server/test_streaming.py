"""Streams of events over a fake connection: silence, errors, and clients that leave."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from deepwell.errors import UsageError
from deepwell.server.generation import Answer, Generation
from deepwell.server.schemas import StreamOptions
from deepwell.server.streaming import DONE, KEEP_ALIVE, EventStream, ends_with_client, event

from .tiny import Live


class Connection:
    """Keeps what is sent; the client leaves when ``left`` is set."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def _generation() -> tuple[Generation, list[Generation]]:
    cancelled: list[Generation] = []
    made = Generation(asyncio.get_running_loop(), cancelled.append)
    made.answers = [Answer(0, prompt_tokens=1)]
    return made, cancelled


def test_events_are_sent_one_by_one_and_the_generation_ends_with_them() -> None:
    async def events() -> AsyncGenerator[bytes]:
        yield event(StreamOptions(include_usage=True))
        yield DONE

    async def run() -> None:
        connection = Connection()
        generation, cancelled = _generation()
        await EventStream(generation, events())({}, connection.receive, connection.send)
        start, *parts = connection.sent
        headers = dict(start["headers"])
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert b"content-length" not in headers and headers[b"cache-control"] == b"no-cache"
        assert [part["body"] for part in parts] == [b'data: {"include_usage":true}\n\n', b"data: [DONE]\n\n", b""]
        assert [part.get("more_body", False) for part in parts] == [True, True, False]
        assert cancelled == [generation]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "told", "logged"), [(UsageError("too hard"), b"too hard", False), (KeyError("x"), b"its log", True)]
)
def test_an_error_is_the_last_event(
    error: Exception, told: bytes, logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def events() -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        raise error

    async def run() -> list[dict[str, Any]]:
        connection = Connection()
        await EventStream(_generation()[0], events())({}, connection.receive, connection.send)
        return connection.sent

    *_, last, end = asyncio.run(run())
    assert last["body"].startswith(b'data: {"error": {') and told in last["body"]
    assert end == {"type": "http.response.body", "body": b""}
    assert bool(caplog.records) == logged


def test_a_client_that_leaves_cancels() -> None:
    async def run() -> None:
        connection = Connection()
        generation, cancelled = _generation()
        async with ends_with_client(generation, connection.receive) as client:
            await asyncio.sleep(0)
            assert not client.gone and not cancelled
            connection.left.set()
            await asyncio.sleep(0.01)
            assert client.gone and cancelled == [generation]

    asyncio.run(run())


@pytest.mark.parametrize("room", ["chat", "completions"])
def test_a_stream_that_is_silent_says_that_it_lives(server: Live, room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    import httpx

    monkeypatch.setattr(importlib.import_module(f"deepwell.server.{room}"), "KEEP_ALIVE_SECONDS", 0.0)
    asked: dict[str, Any] = {"model": "tiny", "stream": True, "max_tokens": 30, "seed": 1}
    if room == "chat":
        asked["messages"] = [{"role": "user", "content": "a"}]
        path = "/chat/completions"
    else:
        asked["prompt"], path = "a", "/completions"
    text = httpx.post(server.url + path, json=asked, timeout=60).content
    assert KEEP_ALIVE in text
    events = [part for part in text.split(b"\n\n") if part and not part.startswith(b":")]
    assert all(part.startswith(b"data: ") for part in events)
    assert events[-1] == b"data: [DONE]"
