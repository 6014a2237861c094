"""``deepwell serve`` and ``deepwell keys``: what is printed, what is refused, and a whole server as a process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from deepwell.cli.serve import serve
from deepwell.server.keys import KeyRing
from deepwell.server.settings import Settings

from .conftest import Ran

Cli = Callable[..., Ran]


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEEPWELL_KEYS", str(tmp_path / "keys.json"))
    return tmp_path / "keys.json"


def test_a_key_is_printed_once_and_listed_without_its_hash(deepwell: Cli, keys: Path) -> None:
    assert "No keys" in deepwell("keys", "list").err
    made = deepwell("keys", "add", "my laptop")
    assert made.code == 0
    assert KeyRing(keys).holder(made.out.strip()) == "my laptop"
    assert made.out.strip() not in made.err and str(keys) in made.err
    listed = deepwell("keys", "list")
    assert listed.out.endswith("\tmy laptop\n") and made.out.strip() not in listed.out
    told = json.loads(deepwell("keys", "list", "--json").out)
    assert [set(one) for one in told["keys"]] == [{"name", "created"}]
    again = deepwell("keys", "add", "my laptop")
    assert (again.code, again.out) == (2, "")
    assert deepwell("keys", "remove", "my laptop").code == 0
    assert len(KeyRing(keys)) == 0
    assert deepwell("keys", "remove", "my laptop").code == 2
    elsewhere = keys.with_name("others")
    deepwell("keys", "add", "phone", "--key-file", str(elsewhere))
    assert len(KeyRing(elsewhere)) == 1 and len(KeyRing(keys)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "no key is asked for"),
        (("--port", "70000"), "port is 70000"),
        (("--queue-seconds", "-1"), "queue_seconds is -1.0"),
        (("--cors", "example.org"), "no origin of web pages"),
        (("--key-file", "empty"), "holds no key"),
        (("--host", "nowhere.invalid", "--key-file", "full"), "there is no address"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_model_is_loaded(
    deepwell: Cli, keys: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(keys.parent)
    deepwell("keys", "add", "laptop", "--key-file", "full")
    refused = deepwell("serve", "no-such-model", *options)
    assert refused.code in (1, 2)
    assert message in refused.err and "no-such-model" not in refused.err


def test_a_model_that_is_not_here_is_an_error_in_words(deepwell: Cli, keys: Path) -> None:
    refused = deepwell("serve", "no-such-model", "--port", "0")
    assert refused.code != 0 and "no-such-model" in refused.err
    assert "Traceback" not in refused.err


def test_the_options_are_the_settings() -> None:
    options = {option.name: option.default for option in serve.params}
    for one in fields(Settings):
        if one.name in ("key_file", "cors_origins", "trusted_proxies"):
            assert one.name in options
        else:
            assert options[one.name] == one.default, one.name


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tiny
import deepwell
from deepwell.cli.main import main
made = tiny.tiny_model(Path(sys.argv[2]))
deepwell.Model.load = lambda *args, **more: made
sys.argv[1:] = sys.argv[3:]
main()
"""


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``deepwell serve tiny`` with a tiny random model, as a process of its own; and the address of its API."""
    server = Path(__file__).parents[1] / "server"
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(server), str(folder), "serve", "tiny", "--port", "0", "--json", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as running:  # fmt: skip
        try:
            assert running.stdout is not None and running.stderr is not None
            line = running.stdout.readline()
            assert line, running.stderr.read()
            yield running, json.loads(line)["url"]
        finally:
            running.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
def test_a_server_from_its_start_to_sigterm(tmp_path: Path, keys: Path, deepwell: Cli) -> None:
    secret = deepwell("keys", "add", "laptop").out.strip()
    with served(tmp_path / "model") as (running, url):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="dw-wrong", max_retries=0).models.list()
        client = openai.OpenAI(base_url=url, api_key=secret, max_retries=0)
        done = client.completions.create(model="tiny", prompt="deep", max_tokens=5, temperature=0)
        assert done.usage is not None and done.usage.completion_tokens >= 1
        head = {"authorization": f"Bearer {secret}"}
        shown = httpx.get(url.replace("/v1", "/metrics"), headers=head).text
        assert 'deepwell_requests_total{route="/v1/completions",status="200"} 1.0' in shown
        assert 'deepwell_requests_total{route="/v1/models",status="401"} 1.0' in shown
        assert 'deepwell_cache_blocks{state="used"} 0.0' in shown

        pieces: list[Any] = []
        begun = threading.Event()

        def read() -> None:
            stream = client.completions.create(
                model="tiny", prompt="deep", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
            )
            for piece in stream:
                pieces.append(piece)
                begun.set()

        thread = threading.Thread(target=read)
        thread.start()
        assert begun.wait(20)
        running.send_signal(signal.SIGTERM)
        thread.join(60)
        out, err = running.communicate(timeout=30)
        assert (running.returncode, out, err) == (0, "", "")
        assert pieces[-1].choices[0].finish_reason in ("length", "stop")
