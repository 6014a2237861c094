"""Whatever is wrong with a request, the answer is OpenAI's error body, and the server lives on."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from deepwell.errors import MissingExtraError, UsageError
from deepwell.server.driver import EngineFailedError, StoppedError
from deepwell.server.errors import ApiError, body_of, explained, install
from deepwell.server.lifecycle import Door
from deepwell.server.settings import Settings

from .tiny import Live

HELLO: list[Any] = [{"role": "user", "content": "Hello, well!"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 2}


def _error(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    told = response.json()
    assert set(told) == {"error"}
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert told["error"]["message"]
    error: dict[str, Any] = told["error"]
    return error


def _post(server: Live, body: Any, path: str = "/chat/completions", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"content-type": "application/json", **headers}
    return httpx.post(server.url + path, content=content, headers=told, timeout=60)


def _ask(app: Any, method: str, path: str, **more: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


def _lives(server: Live) -> bool:
    return _post(server, CHAT).status_code == 200


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _form(schema: Any) -> dict[str, Any]:
    return CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"model": "tiny", "messages": [}', "not JSON: Expecting value at line 1, column 32"),
        (b"", "Field required"),
        (b"null", "valid"),
        (b"[]", "valid"),
        (b'{"model": "tiny", "messages": "\xff\xfe"}', "not UTF-8: byte 31 is 0xff"),
        (b'{"model": "tiny\\ud800", "messages": []}', "half of a surrogate pair"),
        (b'{"model": "tiny", "messages": [], "temperature": NaN}', "NaN is no JSON"),
        (b"[" * 100_000, "nested more than 64 deep"),
        (b'{"model": "tiny", "n": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        ({"model": "tiny"}, "messages: Field required"),
        (CHAT | {"messages": []}, "messages: List should have at least 1 item"),
        (CHAT | {"messages": [{"role": "pilot", "content": "x"}]}, "messages[0].role: Input should be 'system'"),
        (CHAT | {"messages": [{"role": "user"}]}, "messages[0] has no content"),
        (CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        (CHAT | {"max_tokens": -1}, "max_tokens: Input should be greater than or equal to 1"),
        (CHAT | {"max_tokens": 0}, "max_tokens"),
        (CHAT | {"max_tokens": "5"}, "max_tokens: Input should be a valid integer"),
        (CHAT | {"stream": "yes"}, "stream: Input should be a valid boolean"),
        (CHAT | {"temperature": 3}, "temperature"),
        (CHAT | {"n": 1000}, "n: Input should be less than or equal to 16"),
        (CHAT | {"stop": ["x"] * 65}, "stop: "),
        (CHAT | {"stop": ""}, "stop: "),
        (CHAT | {"top_logprobs": 3}, "logprobs is not true"),
        (CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT | {"logit_bias": {"5": 100}}, "logit_bias"),
        (CHAT | {"thinking": {"type": "maybe"}}, "thinking.type"),
        (CHAT | {"reasoning_effort": "heroic"}, "reasoning_effort"),
        (CHAT | {"response_format": {"type": "xml"}}, "response_format"),
        (CHAT | {"tool_choice": "required"}, "there are no tools"),
        (CHAT | {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (_form({"type": "integer", "minimum": 5, "maximum": 4}), "json_schema"),
        (_form({"type": "nothing"}), "json_schema"),
        (_form({"allOf": [{"type": "string"}, {"type": "integer"}]}), "json_schema"),
        (_form({"type": "object", "properties": 3}), "json_schema"),
        (_form({"$ref": "#/nowhere"}), "json_schema"),
        (_form({"type": "string", "pattern": "(a"}), "json_schema"),
        (_form(_nested(70)), "nested more than 64 deep"),
        (CHAT | {"messages": [{"role": "user", "content": "deep " * 5000}]}, "tokens; this network reads 512"),
    ],
)  # fmt: skip
def test_a_request_that_is_wrong_is_told_what(server: Live, body: Any, message: str) -> None:
    response = _post(server, body)
    assert response.status_code == 400
    error = _error(response)
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert _lives(server)


def test_the_field_that_is_wrong_is_named(server: Live) -> None:
    assert _error(_post(server, CHAT | {"max_tokens": -1}))["param"] == "max_tokens"
    assert _error(_post(server, CHAT | {"messages": [{"role": 1}]}))["param"] == "messages[0].role"
    assert _error(_post(server, CHAT | {"stop": 1}))["param"] == "stop"
    assert _error(_post(server, CHAT | {"model": "gpt-7"}))["param"] == "model"
    many = _error(_post(server, {"model": 1, "messages": 1, "n": "a", "stream": 1, "seed": ""}))
    assert many["message"].endswith("; and 2 more")


def test_a_prompt_that_is_too_long_has_the_code_that_clients_know(server: Live) -> None:
    for path, body in (
        ("/chat/completions", CHAT | {"messages": [{"role": "user", "content": "deep " * 5000}]}),
        ("/completions", {"model": "tiny", "prompt": "deep " * 5000}),
        ("/completions", {"model": "tiny", "prompt": [1] * 5000}),
        ("/completions", {"model": "tiny", "prompt": ["a", "deep " * 5000], "stream": True}),
    ):
        assert _error(_post(server, body, path))["code"] == "context_length_exceeded"
    assert _lives(server)


def test_a_megabyte_is_refused_with_the_counts_and_ten_at_the_door(server: Live) -> None:
    response = _post(server, CHAT | {"messages": [{"role": "user", "content": "deep " * 200_000}]})
    assert response.status_code == 400
    assert "this network reads 512" in _error(response)["message"]
    assert _lives(server)
    behind = Door.of(Settings()).before(server.app)
    content = json.dumps(CHAT | {"messages": [{"role": "user", "content": "deep " * 2_000_000}]}).encode()
    response = _ask(behind, "POST", "/v1/chat/completions", content=content)
    assert response.status_code == 413
    assert _error(response)["code"] == "request_too_large"


def test_an_unknown_model_is_not_found(server: Live) -> None:
    for ask in (
        lambda: server.client.chat.completions.create(**CHAT | {"model": "gpt-7"}),
        lambda: server.client.completions.create(model="gpt-7", prompt="a"),
        lambda: server.client.embeddings.create(model="gpt-7", input="a"),
        lambda: server.client.models.retrieve("gpt-7"),
        lambda: server.client.chat.completions.create(**CHAT | {"model": "hash-encoder"}),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "model_not_found"
    response = _post(server, CHAT | {"model": "x" * 10_000})
    assert len(_error(response)["message"]) < 300
    assert "tiny, deepseek-chat, deepseek-reasoner, hash-encoder" in _error(response)["message"]


def test_other_addresses_and_other_ways_are_refused_in_the_same_form(server: Live) -> None:
    host = server.url.removesuffix("/v1")
    for url in ("/", "/v2/models", "/v1/", "/v1/models/", "/docs", "/v1/chat/completions/"):
        response = httpx.get(host + url)
        assert response.status_code == 404
        assert _error(response)["type"] == "invalid_request_error"
    for method, path in (("GET", "/chat/completions"), ("DELETE", "/models"), ("PUT", "/completions")):
        response = httpx.request(method, server.url + path)
        assert response.status_code == 405
        assert response.headers["allow"]
        assert _error(response)["code"] == "method_not_allowed"


def test_a_body_that_is_not_said_to_be_json_is_refused_with_advice(server: Live) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = _post(server, CHAT, **{"content-type": kind})
        assert response.status_code == 415
        assert "Content-Type: application/json" in _error(response)["message"]
    assert _post(server, CHAT, **{"content-type": "application/json; charset=utf-8"}).status_code == 200


def test_an_error_is_explained_as_far_as_it_is_the_clients(server: Live) -> None:
    told = [
        (ApiError(418, "tea", "teapot", param="cup"), 418, "teapot"), (UsageError("no", hint="Yes."), 400, "bad_usage"),
        (MissingExtraError("llguidance"), 501, "missing_extra"), (StoppedError("bye"), 503, "draining"),
        (EngineFailedError("secret"), 500, "failed"), (ZeroDivisionError("secret"), 500, "failed"),
    ]  # fmt: skip
    for error, status, code in told:
        explanation = explained(error)
        assert (explanation.status_code, explanation.code) == (status, code)
        assert b"secret" not in body_of(explanation)
    assert json.loads(body_of(explained(UsageError("no", hint="Yes."))))["error"]["message"] == "no. Yes."
    assert json.loads(body_of(ApiError(418, "tea", "teapot", param="cup")))["error"]["param"] == "cup"


def test_a_bug_is_a_500_that_tells_nothing() -> None:
    app = FastAPI()
    install(app)

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError("secret")

    response = _ask(app, "GET", "/bug")
    assert response.status_code == 500
    assert _error(response)["type"] == "server_error"
    assert "secret" not in response.text
