"""A server from its first to its last moment, over real sockets."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepwell.errors import KeyFileError, ServerError, UsageError
from deepwell.server.keys import KeyFile
from deepwell.server.lifecycle import Door, Server, bind
from deepwell.server.settings import Settings

HERE = Path(__file__).parent


async def api(scope: Any, receive: Any, send: Any) -> None:
    """Answers with its body; "slow" takes for ever, "stream" begins a stream and then does."""
    import asyncio

    if scope["type"] == "lifespan":
        for done in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{done}.complete"})
        return
    body = (await receive())["body"] if scope["method"] == "POST" else b""
    kind = b"text/event-stream" if body == b"stream" else b"text/plain"
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
    if body == b"stream":
        await send(start)
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    if body in (b"slow", b"stream"):
        await asyncio.sleep(1000)
    await send(start)
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def running(server: Server) -> Iterator[None]:
    """Run a server in a thread; at the end it is told to stop, twice."""
    ready = threading.Event()
    thread = threading.Thread(target=server.run, args=(ready.set,))
    thread.start()
    assert ready.wait(20)
    try:
        yield
    finally:
        server.stop()
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def serving(**more: Any) -> Iterator[tuple[Server, httpx.Client]]:
    """A live server of ``api``, and a client of it."""
    settings = Settings(port=0, **more)
    server = Server(api, Door.of(settings), bind(settings), routes=frozenset({"/v1/completions"}))
    with running(server), httpx.Client(base_url=server.url, timeout=10, trust_env=False) as client:
        yield server, client


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_server_answers_and_says_how_it_is() -> None:
    with serving() as (server, client):
        assert server.url.startswith("http://127.0.0.1:")
        assert client.post("/v1/completions", content=b"hello").text == "hello"
        health = client.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok"})
        assert client.head("/health").content == b""
        assert client.post("/health").json()["error"]["code"] == "method_not_allowed"
        shown = client.get("/metrics")
        assert shown.headers["content-type"].startswith("text/plain")
        assert 'deepwell_requests_total{route="/v1/completions",status="200"} 1.0' in shown.text
        assert "process_resident_memory_bytes" in shown.text or sys.platform != "linux"
        assert "server" not in shown.headers


def test_refusals_leave_a_connection_usable() -> None:
    with serving(max_request_bytes=1000, requests_per_minute=50) as (_, client):
        large = b"0" * 3_000_000
        assert client.post("/v1/completions", content=large).json()["error"]["code"] == "request_too_large"
        assert client.post("/v1/completions", content=iter([large[:99]] * 99)).status_code == 413
        refused = client.post("/v1/completions", content=large, headers={"host": "example.org"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_host")
        assert client.post("/v1/completions", content=b"hello").text == "hello"
        codes = [client.post("/v1/completions", content=b"x").status_code for _ in range(60)]
        assert set(codes) == {200, 429}
        assert client.get("/health").status_code == 200


def test_ten_megabytes_are_refused_in_words_by_a_plain_socket() -> None:
    with serving() as (server, _), socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as plain:
        plain.settimeout(10)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10000000\r\n\r\n"
        plain.sendall(head + b"0" * 10_000_000)
        assert b" 413 " in plain.recv(10_000)


def test_keys_are_asked_for_and_health_is_not_a_secret(tmp_path: Path) -> None:
    key = KeyFile(tmp_path / "keys").add("laptop")
    with serving(key_file=tmp_path / "keys", host="127.0.0.1") as (_, client):
        for path in ("/metrics", "/v1/models", "/nothing"):
            assert client.get(path).status_code == 401
        assert client.get("/health").status_code == 200
        client.headers["authorization"] = f"Bearer {key}"
        assert client.get("/metrics").status_code == 200
        KeyFile(tmp_path / "keys").remove("laptop")
        assert client.get("/metrics").status_code == 401


def test_web_pages_ask_only_where_they_are_let() -> None:
    asks = {"origin": "https://example.org", "access-control-request-method": "POST"}
    with serving() as (_, client):
        assert client.options("/v1/completions", headers=asks).status_code == 403
        assert client.post("/v1/completions", headers=asks).status_code == 403
    with serving(cors_origins=("https://example.org",)) as (_, client):
        before = client.options("/v1/completions", headers=asks)
        assert before.headers["access-control-allow-origin"] == "https://example.org"
        assert client.post("/v1/completions", headers=asks).headers["access-control-allow-origin"] == asks["origin"]
        other = client.post("/v1/completions", headers={"origin": "https://other.org"})
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers


def test_whom_a_proxy_speaks_for_is_believed_only_if_it_is_trusted() -> None:
    for trusted, second in (((), 429), (("127.0.0.1",), 200)):
        with serving(trusted_proxies=trusted, requests_per_minute=1) as (_, client):
            asked = [
                client.post("/v1/completions", headers={"x-forwarded-for": f"10.0.0.{number}"}).status_code
                for number in range(2)
            ]
            assert asked == [200, second]


def test_a_server_that_stops_ends_what_it_has_and_says_so() -> None:
    with serving(drain_seconds=0.3) as (server, client):
        got: list[httpx.Response] = []
        bodies = (b"slow", b"stream")
        threads = [
            threading.Thread(target=lambda body=body: got.append(httpx.post(f"{server.url}/v1/x", content=body)))
            for body in bodies
        ]
        for thread in threads:
            thread.start()
        until(lambda: server.door.admission.running == 2)
        server.stop()
        until(lambda: client.get("/health").status_code == 503)
        assert client.get("/health").json() == {"status": "draining"}
        refused = client.post("/v1/completions", content=b"new")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        for thread in threads:
            thread.join(10)
        texts = sorted((reply.status_code, reply.text) for reply in got)
        assert [status for status, _ in texts] == [200, 503]
        assert texts[0][1].startswith("data: 1\n\ndata: {") and texts[0][1].endswith("}\n\n")
        assert all('"code": "draining"' in text for _, text in texts)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_lifecycle import api, Door, Server, Settings, bind
settings = Settings(port=0, drain_seconds=float(sys.argv[2]))
server = Server(api, Door.of(settings), bind(settings))
server.run(lambda: print(server.url, flush=True))
print("ended")
"""


@contextlib.contextmanager
def process(drain_seconds: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(HERE), str(drain_seconds)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as started:  # fmt: skip
        try:
            assert started.stdout is not None
            yield started, started.stdout.readline().strip()
        finally:
            started.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_in_order_and_a_second_one_at_once(which: signal.Signals) -> None:
    with process(60) as (started, url):
        assert httpx.get(f"{url}/health").status_code == 200
        got: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: got.append(httpx.post(url, content=b"slow", timeout=30)))
        thread.start()
        time.sleep(0.3)
        started.send_signal(which)
        until(lambda: httpx.get(f"{url}/health").status_code == 503)
        assert started.poll() is None
        started.send_signal(which)
        out, err = started.communicate(timeout=20)
        thread.join(10)
        assert got[0].status_code == 503
        assert (started.returncode, out, err) == (0, "ended\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
def test_an_idle_process_ends_when_it_is_told() -> None:
    with process(60) as (started, url):
        assert httpx.get(f"{url}/health").status_code == 200
        started.send_signal(signal.SIGTERM)
        out, err = started.communicate(timeout=20)
        assert (started.returncode, out, err) == (0, "ended\n", "")


def test_an_address_that_is_taken_is_an_error_in_words() -> None:
    with bind(Settings(port=0)) as taken:
        taken.listen()
        with pytest.raises(ServerError, match="cannot be listened on") as refused:
            bind(Settings(port=taken.getsockname()[1]))
        assert "--port" in refused.value.hint
    with pytest.raises(ServerError, match=r"there is no address nowhere\.invalid:0"):
        bind(Settings(host="nowhere.invalid", port=0))


def test_a_door_to_everybody_needs_a_key(tmp_path: Path) -> None:
    for path in (None, tmp_path / "none"):
        with pytest.raises(UsageError, match="no key is asked for"):
            Door.of(Settings(host="0.0.0.0", key_file=path))
    (tmp_path / "broken").write_text("{")
    (tmp_path / "broken").chmod(0o600)
    with pytest.raises(KeyFileError):
        Door.of(Settings(key_file=tmp_path / "broken"))
    KeyFile(tmp_path / "keys").add("laptop")
    assert Door.of(Settings(host="0.0.0.0", key_file=tmp_path / "keys")).ring is not None
