"""How a request is sent away before it reaches the API: a status and the error body that OpenAI's clients expect."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from starlette.types import Message, Scope, Send

Headers = Iterable[tuple[bytes, bytes]]

CLIENT_GONE = 499
"""The status of a response that nobody reads, as nginx has it; no client ever sees it."""

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, code: str, param: str | None = None) -> bytes:
    """``{"error": {"message", "type", "param", "code"}}``, the type as OpenAI names it for the status."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")


async def refuse(send: Send, status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> None:
    """Answer with an error and nothing else."""
    await answer(send, status, error_body(status, message, code), "application/json", headers)


async def answer(
    send: Send, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
) -> None:
    """Send a whole response."""
    told = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def header(scope: Scope | Message, name: bytes) -> str | None:
    """The first header of a request or a response of that name (lower case); None if there is none."""
    headers: Headers = scope["headers"]
    return next((value.decode("latin-1") for key, value in headers if key == name), None)
