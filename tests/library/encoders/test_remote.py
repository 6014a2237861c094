"""The adapter of /v1/embeddings against a server on this machine."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import pytest

from deepwell.errors import UsageError
from deepwell.library.encoders import open_text, remote
from deepwell.library.encoders.remote import RemoteEncoder, RemoteEncoderError
from deepwell.library.protocols import TextEncoder


class Server(BaseHTTPRequestHandler):
    """Vectors that tell the text: its length, its first letter, one. Faults are served first, one a request."""

    requests: ClassVar[list[tuple[dict[str, Any], str]]] = []
    faults: ClassVar[list[tuple[int, bytes, dict[str, str]]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((body, self.headers.get("Authorization", "")))
        status, reply, headers = 200, b"", {}
        if self.path != "/v1/embeddings":
            status, reply = 404, b"no such path"
        elif self.faults:
            status, reply, headers = self.faults.pop(0)
        else:
            size = body.get("dimensions", 3)
            rows = [
                {"index": n, "embedding": [float(len(text)), float(ord(text[0])), 1.0][:size]}
                for n, text in enumerate(body["input"])
            ]
            reply = json.dumps({"data": rows[::-1]}).encode()  # servers may answer out of order
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("DEEPWELL_EMBEDDINGS_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    Server.requests.clear()
    Server.faults.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def expected(texts: list[str], size: int = 3) -> np.ndarray:
    rows = np.array([[len(text), ord(text[0]), 1][:size] for text in texts], np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_name_opens_the_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPWELL_EMBEDDINGS_KEY", "s3cret")
    encoder = open_text(f"openai:some/model:tag@{url}")
    assert isinstance(encoder, TextEncoder)
    texts = [chr(97 + n % 26) * (n + 1) for n in range(150)]
    np.testing.assert_allclose(encoder.encode(texts), expected(texts), rtol=1e-6)
    assert encoder.dim == 3
    bodies = [body for body, _ in Server.requests]
    assert [len(body["input"]) for body in bodies] == [1, 64, 64, 22]
    assert {body["model"] for body in bodies} == {"some/model:tag"}
    assert {key for _, key in Server.requests} == {"Bearer s3cret"}
    assert "s3cret" not in encoder.name + encoder.fingerprint + repr(encoder)


def test_no_key_sends_none_and_empty_texts_are_not_sent_empty(url: str) -> None:
    encoder = RemoteEncoder("m", url)
    np.testing.assert_allclose(encoder.encode(["", "b"]), expected([" ", "b"]), rtol=1e-6)
    assert {key for _, key in Server.requests} == {""}
    assert encoder.encode([]).shape == (0, 3)


def test_shortened_vectors_are_asked_for(url: str) -> None:
    encoder = RemoteEncoder("m", url, dim=2)
    np.testing.assert_allclose(encoder.encode(["abc"]), expected(["abc"], 2), rtol=1e-6)
    assert [body["dimensions"] for body, _ in Server.requests] == [2]
    assert encoder.fingerprint != RemoteEncoder("m", url, dim=3).fingerprint


def test_passing_troubles_are_tried_again(url: str) -> None:
    encoder = RemoteEncoder("m", url, dim=3, wait_s=0.001)
    Server.faults.extend([(503, b"loading", {}), (429, b"slower", {"Retry-After": "0.001"}), (500, b"oops", {})])
    np.testing.assert_allclose(encoder.encode(["abc"]), expected(["abc"]), rtol=1e-6)
    assert len(Server.requests) == 4


def test_lasting_trouble_gives_up_with_the_reason(url: str) -> None:
    encoder = RemoteEncoder("m", url, dim=3, key="s3cret", wait_s=0.001)
    Server.faults.extend([(503, b"loading", {})] * remote.ATTEMPTS)
    with pytest.raises(RemoteEncoderError, match="replied 503: loading"):
        encoder.encode(["abc"])
    Server.requests.clear()
    Server.faults.append((401, b"bad key", {}))
    with pytest.raises(RemoteEncoderError, match="replied 401: bad key") as raised:
        encoder.encode(["abc"])
    assert len(Server.requests) == 1  # a refusal is not repeated
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "reply",
    [
        b"<html>", b"{}", b"[]", b'{"data": []}', b'{"data": [{"index": 0}]}',
        b'{"data": [{"index": 1, "embedding": [1, 2, 3]}]}',
        b'{"data": [{"index": 0, "embedding": [1, NaN, 3]}]}',
        b'{"data": [{"index": 0, "embedding": ["x"]}]}',
        b'{"data": [{"index": 0, "embedding": [1, 2]}]}',
    ],
)  # fmt: skip
def test_nonsense_is_refused(url: str, reply: bytes) -> None:
    Server.faults.append((200, reply, {}))
    with pytest.raises(RemoteEncoderError, match=r"not embeddings|shape"):
        RemoteEncoder("m", url, dim=3).encode(["abc"])


def test_an_unreachable_server_is_an_error_not_a_fallback() -> None:
    with pytest.raises(RemoteEncoderError, match="did not answer"):
        RemoteEncoder("m", "http://127.0.0.1:9/v1", wait_s=0.001)


@pytest.mark.parametrize("name", ["openai:", "openai:m", "openai:@http://x/v1", "openai:m@x/v1", "openai:m@ftp://x"])
def test_names_must_say_model_and_address(name: str) -> None:
    with pytest.raises(UsageError, match="MODEL@BASE_URL"):
        open_text(name)
