"""A web server on this machine that behaves as badly as asked, and a folder of models of the test's own."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deepwell.models import transfer


@dataclass
class Server:
    """What is served, how badly, and what was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    ranges: bool = True
    break_after: list[int] = field(
        default_factory=list
    )  # of each coming answer in turn: send so many bytes, then hang up
    status: list[int] = field(default_factory=list)  # of each coming answer in turn: answer only this
    pause: float = 0.0  # seconds after each 16 kB

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ThreadingHTTPServer
    state: Server

    def do_GET(self) -> None:
        state = self.state
        path = urlsplit(self.path).path
        state.asked.append((path, {name.lower(): value for name, value in self.headers.items()}))
        if state.status:
            return self.answer(state.status.pop(0), b"")
        if path in state.redirects:
            return self.answer(302, b"", {"location": state.redirects[path]})
        body = state.files.get(path)
        if body is None:
            return self.answer(404, b"")
        wanted = self.headers.get("range", "")
        if state.ranges and wanted.startswith("bytes="):
            start = int(wanted[6:].partition("-")[0])
            if start >= len(body):
                return self.answer(416, b"", {"content-range": f"bytes */{len(body)}"})
            return self.answer(206, body[start:], {"content-range": f"bytes {start}-{len(body) - 1}/{len(body)}"})
        return self.answer(200, body)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        kind = "text/html" if b"<a " in body[:200] else "application/octet-stream"
        for name, value in {"content-length": str(len(body)), "content-type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        limit = self.state.break_after.pop(0) if body and self.state.break_after else None
        try:
            for start in range(0, len(body), 16384):
                block = body[start : start + 16384]
                if limit is not None and start + len(block) > limit:
                    self.wfile.write(block[: limit - start])
                    self.wfile.flush()
                    self.close_connection = True
                    return
                self.wfile.write(block)
                if self.state.pause:
                    time.sleep(self.state.pause)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"state": state}))
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def shelf_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models of the test's own, and an environment that leads nowhere else."""
    place = tmp_path / "models"
    monkeypatch.setenv("DEEPWELL_MODELS", str(place))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_HUB_OFFLINE",
        "HF_HUB_CACHE",
        "HF_TOKEN_PATH",
        "HF_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transfer, "PAUSES", (0.0, 0.0))
    return place


@pytest.fixture
def add_model(shelf_folder: Path) -> Callable[..., None]:
    """Add a model to the user's catalogue."""

    def add(name: str, *sources: dict[str, object], files: tuple[str, ...] = ("weights.bin",), **more: object) -> None:
        shelf_folder.mkdir(parents=True, exist_ok=True)
        entry = {"task": "classifier", "family": "test", "files": list(files), "sources": list(sources), **more}
        lines = [f"[models.{name}]", *(f"{key} = {toml(value)}" for key, value in entry.items()), ""]
        with (shelf_folder / "catalogue.toml").open("a") as file:
            file.write("\n".join(lines) + "\n")

    return add


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


@pytest.fixture
def index(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, object]]:
    """Publish a wheel on a package index of the test's own; returns the catalogue's entry for it."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip-cache"))
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")

    def publish(package: str, files: dict[str, bytes], *, announced: str | None = None) -> dict[str, object]:
        body = wheel_of(tmp_path, package, files)
        sha256 = hashlib.sha256(body).hexdigest()
        name = f"{package}-1.0-py3-none-any.whl"
        server.files[f"/files/{name}"] = body
        mark = sha256 if announced is None else announced
        link = f'<a href="/files/{name}{"#sha256=" + mark if mark else ""}" data-requires-python="&gt;=99">{name}</a>'
        server.files[f"/simple/{package}/"] = f"<!DOCTYPE html><html><body>{link}</body></html>".encode()
        return {
            "kind": "wheel",
            "package": package,
            "version": "1.0",
            "sha256": sha256,
            "size": len(body),
            "inside": f"{package}/model",
            "files": sorted(files),
        }

    return publish


def wheel_of(tmp_path: Path, package: str, files: dict[str, bytes]) -> bytes:
    path = tmp_path / f"{package}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"{package}/model/{name}", data)
        archive.writestr(f"{package}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{package}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{package}-1.0.dist-info/RECORD", "")
    return path.read_bytes()
