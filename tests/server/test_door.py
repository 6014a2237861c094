"""The door and the API behind it together: what is cut off or refused leaves the engine idle and its memory free."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deepwell.lm import Model
from deepwell.server.lifecycle import Door, Server, bind
from deepwell.server.settings import Settings

from .test_lifecycle import running
from .tiny import tiny_model, until

LONG = {"model": "tiny", "prompt": "deep", "max_tokens": 3000, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("tiny"), context=4096)


class Up:
    """A live server and what it holds."""

    def __init__(self, model: Model, **more: Any) -> None:
        settings = Settings(port=0, **more)
        self.model = model
        self.door = Door.of(settings)
        self.server = Server.of(model, self.door, bind(settings), name="tiny")
        self.http = httpx.Client(base_url=f"{self.server.url}/v1", timeout=60, trust_env=False)

    def idle(self) -> bool:
        return not self.model.engine.busy and not self.model.engine.allocator.in_use and not self.door.admission.inside


@pytest.fixture
def up(model: Model, request: pytest.FixtureRequest) -> Iterator[Up]:
    made = Up(model, **request.param)
    with running(made.server), made.http:
        yield made
        assert until(made.idle)


def slow_down(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each step take a while, so that a long answer has not ended before it is to be cut off."""
    step = model.step

    def slow_step() -> None:
        time.sleep(0.05)
        step()

    monkeypatch.setattr(model, "step", slow_step)


@pytest.mark.parametrize("up", [{"request_seconds": 1.0}], indirect=True)
def test_a_request_that_takes_too_long_is_ended_and_its_memory_is_free(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(up.model, monkeypatch)
    whole = up.http.post("/completions", json=LONG)
    assert (whole.status_code, whole.json()["error"]["code"]) == (504, "request_timeout")
    assert until(up.idle)
    streamed = up.http.post("/completions", json={**LONG, "stream": True})
    events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert json.loads(events[0])["choices"]
    assert json.loads(events[-1])["error"]["code"] == "request_timeout"
    assert until(up.idle)
    monkeypatch.undo()
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "deep"}], "max_tokens": 3, "temperature": 0}
    assert up.http.post("/chat/completions", json=chat).status_code == 200


@pytest.mark.parametrize("up", [{"most_concurrent": 1, "queue_length": 1}], indirect=True)
def test_whoever_leaves_gives_up_a_turn_or_a_place_in_the_queue(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(up.model, monkeypatch)
    with up.http.stream("POST", "/completions", json={**LONG, "stream": True}) as first:
        next(first.iter_lines())
        with pytest.raises(httpx.ReadTimeout):
            up.http.post("/completions", json=LONG, timeout=0.2)  # it waited in the queue
        assert until(lambda: up.door.admission.waiting == 0)
        waiting = threading.Thread(
            target=up.http.post, args=("/completions",), kwargs={"json": {**LONG, "max_tokens": 2}}
        )
        waiting.start()
        assert until(lambda: up.door.admission.waiting == 1)
        refused = up.http.post("/completions", json=LONG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert up.http.get("/models").status_code == 200
    waiting.join(30)  # the first has left, so this one had its turn
    assert not waiting.is_alive()


@pytest.mark.parametrize("up", [{"max_request_bytes": 2**20}], indirect=True)
def test_nonsense_is_refused_and_the_server_lives_on(up: Up) -> None:
    kind = {"content-type": "application/json"}
    for body in (b"{", b"\xff\xfe", b'"', b"[" * 100_000, b'{"model": "tiny", "prompt": 1e999}', b"0" * 10_000_000):
        refused = up.http.post("/completions", content=body, headers=kind)
        assert 400 <= refused.status_code < 500, body[:20]
        assert refused.json()["error"]["message"]
    large = {**LONG, "prompt": "x" * 10_000_000}
    assert up.http.post("/completions", json=large).status_code == 413
    assert up.http.post("/completions", json={**LONG, "max_tokens": 1}).status_code == 200
    text = up.http.get(f"{up.server.url}/metrics").text
    assert 'route="/v1/completions",status="413"} 2.0' in text
    assert 'deepwell_cache_blocks{state="used"} 0.0' in text
