"""The client against a server on this machine: streaming, reasoning in every form, errors, retries, keys."""

import importlib.util
import socket
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from deepwell.errors import ChatError, UsageError
from deepwell.library.answers.extractive import Extractive
from deepwell.library.answers.naming import models_by_name
from deepwell.library.answers.openai_compatible import OpenAICompatible
from deepwell.library.protocols import ChatModel, Message

_spec = importlib.util.spec_from_file_location("chat_server", Path(__file__).with_name("chat_server.py"))
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
Reply, chat_server = _module.Reply, _module.chat_server

ASK = [Message("system", "Be short."), Message("user", "2 + 2?")]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("DEEPWELL_API_KEY", "OPENAI_API_KEY", "DEEPWELL_CHAT"):
        monkeypatch.delenv(name, raising=False)


def chat(url, messages=ASK, **options):
    model = OpenAICompatible(url, **{"model": "tiny", "pause": 0.01, **options})
    deltas = list(model.chat(messages))
    return "".join(d.reasoning for d in deltas), "".join(d.text for d in deltas)


def test_a_reply_streams():
    with chat_server(Reply({"role": "assistant"}, {"content": "It "}, {"content": "is 4."})) as (url, seen):
        assert chat(url) == ("", "It is 4.")
    method, path, _, body = seen[0]
    assert (method, path) == ("POST", "/v1/chat/completions")
    assert body["model"] == "tiny" and body["stream"] is True and body["temperature"] == 0.0
    assert body["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]


@pytest.mark.parametrize(
    "deltas",
    [
        [{"reasoning_content": "Hm"}, {"reasoning_content": "m."}, {"content": "4"}],
        [{"reasoning": "Hmm."}, {"content": "4"}],
        [{"content": "<think>Hmm.</think>4"}],
        [{"content": "<th"}, {"content": "ink>Hm"}, {"content": "m.</thi"}, {"content": "nk>\n\n4"}],
        [{"content": "Hmm."}, {"content": "</think>"}, {"content": "4"}],
        [{"reasoning_content": "Hmm.", "content": None}, {"content": [{"type": "text", "text": "4"}]}],
    ],
)
def test_reasoning_in_every_form(deltas):
    with chat_server(Reply(*deltas)) as (url, _):
        assert chat(url) == ("Hmm.", "4")


def test_a_thought_cut_off_is_reasoning():
    with chat_server(Reply({"content": "<think>Hmm, so"})) as (url, _):
        assert chat(url) == ("Hmm, so", "")


def test_a_server_that_does_not_stream():
    body = {"choices": [{"message": {"content": "<think>Hmm.</think>4"}}]}
    with chat_server(Reply(body=body)) as (url, _):
        assert chat(url) == ("Hmm.", "4")


def test_text_flows_before_the_reply_ends():
    with chat_server(Reply({"reasoning_content": "Hm"}, {"content": "4"}, {"content": "!"}, pause=0.2)) as (url, _):
        stream = OpenAICompatible(url, "tiny").chat(ASK)
        assert next(stream).reasoning == "Hm"
        assert next(stream).text == "4"
        stream.close()


def test_thoughts_are_never_sent_back():
    turns = [*ASK, Message("assistant", "<think>secret</think>4"), Message("user", "And 3 + 3?")]
    with chat_server(Reply({"content": "6"})) as (url, seen):
        chat(url, turns)
    assert seen[0][3]["messages"][2] == {"role": "assistant", "content": "4"}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_may_pass_is_tried_again(status):
    with chat_server(Reply(status=status), Reply(status=status), Reply({"content": "4"})) as (url, seen):
        assert chat(url) == ("", "4")
    assert len(seen) == 3


def test_the_servers_wish_to_wait_is_honoured():
    with chat_server(Reply(status=429, headers={"Retry-After": "0.3"}), Reply({"content": "4"})) as (url, _):
        began = time.monotonic()
        assert chat(url, pause=0.0) == ("", "4")
        assert time.monotonic() - began >= 0.3


def test_a_wish_to_wait_too_long_is_an_error_at_once():
    later = formatdate(time.time() + 3600, usegmt=True)
    with (
        chat_server(Reply(status=429, headers={"Retry-After": later})) as (url, seen),
        pytest.raises(ChatError, match=r"over its limit.*\n.*wait 3[56]\d\d s"),
    ):
        chat(url)
    assert len(seen) == 1


def test_patience_ends():
    with (
        chat_server(Reply(status=503, body={"error": {"message": "loading"}})) as (url, seen),
        pytest.raises(ChatError, match=r"503 \(loading\)"),
    ):
        chat(url, retries=2)
    assert len(seen) == 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_names_the_variable_and_not_the_key(status, monkeypatch):
    monkeypatch.setenv("DEEPWELL_API_KEY", "sk-secret")
    with (
        chat_server(Reply(status=status, body={"error": {"message": "bad key sk-secret"}})) as (url, seen),
        pytest.raises(ChatError, match="DEEPWELL_API_KEY") as error,
    ):
        chat(url)
    assert "sk-secret" not in str(error.value)
    assert url in str(error.value)
    assert seen[0][2]["Authorization"] == "Bearer sk-secret"
    assert len(seen) == 1


def test_openais_key_goes_to_this_machine_and_to_openai_only(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-theirs")
    assert OpenAICompatible("http://127.0.0.1:1/v1")._headers() == {"Authorization": "Bearer sk-theirs"}
    assert OpenAICompatible("https://api.openai.com/v1")._headers() == {"Authorization": "Bearer sk-theirs"}
    assert OpenAICompatible("https://chat.example/v1")._headers() == {}
    assert OpenAICompatible("https://api.openai.com.evil.example/v1")._headers() == {}
    monkeypatch.setenv("DEEPWELL_API_KEY", "mine")
    assert OpenAICompatible("https://chat.example/v1")._headers() == {"Authorization": "Bearer mine"}


def test_an_unknown_model_lists_those_there_are():
    with (
        chat_server(Reply(status=404), models=("small", "large")) as (url, _),
        pytest.raises(ChatError, match=r"no model 'tiny'.*\n.*small, large"),
    ):
        chat(url)


def test_the_only_model_needs_no_name():
    with chat_server(Reply({"content": "4"}), models=("solo",)) as (url, seen):
        model = OpenAICompatible(url)
        assert "".join(d.text for d in model.chat(ASK)) == "4"
        assert model.name == "solo" and seen[-1][3]["model"] == "solo"


def test_several_models_need_a_name():
    with (
        chat_server(Reply({"content": "4"}), models=("a", "b")) as (url, _),
        pytest.raises(ChatError, match="a, b"),
    ):
        list(OpenAICompatible(url).chat(ASK))


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(ChatError, match="cannot connect to " + url):
            chat(url, retries=1)


def test_a_server_that_falls_silent():
    with (
        chat_server(Reply({"content": "4"}, delay=0.6)) as (url, _),
        pytest.raises(ChatError, match=r"sent nothing for 0\.1 s"),
    ):
        chat(url, timeout=0.1, retries=0)


def test_a_stream_that_breaks_is_not_started_again():
    with (
        chat_server(Reply({"reasoning": "Hm"}, {"content": "It is"}, cut=True)) as (url, seen),
        pytest.raises(ChatError, match="broke"),
    ):
        chat(url)
    assert len(seen) == 1


def test_an_error_within_the_stream():
    with (
        chat_server(Reply({"content": "It"}, {"error": {"message": "out of memory"}})) as (url, _),
        pytest.raises(ChatError, match="out of memory"),
    ):
        chat(url)


def test_a_server_that_speaks_something_else():
    with (
        chat_server(Reply(raw=b"data: <html>\n\n")) as (url, _),
        pytest.raises(ChatError, match="OpenAI-compatible"),
    ):
        chat(url)


def test_redirects_are_not_followed():
    with (
        chat_server(Reply(status=302, headers={"Location": "http://elsewhere.example/"})) as (url, seen),
        pytest.raises(ChatError, match=r"redirects to http://elsewhere\.example/"),
    ):
        chat(url)
    assert len(seen) == 1


def test_addresses():
    assert OpenAICompatible("http://localhost:11434")._url == "http://localhost:11434/v1"
    assert OpenAICompatible("https://x.example/api/v3/chat/completions")._url == "https://x.example/api/v3"
    assert "secret" not in OpenAICompatible("https://me:secret@x.example/v1")._shown
    for wrong in ("localhost:8000", "ftp://x.example", ""):
        with pytest.raises(UsageError):
            OpenAICompatible(wrong)


def test_models_by_name(monkeypatch):
    assert isinstance(models_by_name(None), Extractive)
    assert isinstance(models_by_name("extractive"), Extractive)
    model = models_by_name("openai:org/tiny@2@http://127.0.0.1:8000/v1")
    assert isinstance(model, OpenAICompatible) and isinstance(model, ChatModel)
    assert (model.model, model.base_url, model.name) == ("org/tiny@2", "http://127.0.0.1:8000/v1", "org/tiny@2")
    assert models_by_name("http://127.0.0.1:8000/v1").name == "127.0.0.1:8000"
    for wrong in ("gpt-9", "openai:tiny", "openai:@http://x.example"):
        with pytest.raises(UsageError):
            models_by_name(wrong)
    monkeypatch.setenv("DEEPWELL_CHAT", "openai:tiny@http://127.0.0.1:8000/v1")
    assert models_by_name().name == "tiny"
