"""Every error as the body that OpenAI's clients expect, whoever noticed it: validation, routing, the model, a bug.

400  the request is wrong: JSON, a field, a prompt that is too long, a form that cannot be kept
404  no such model, no such address          405  not in this way          415  the body is not JSON
500  a bug of ours                           501  a package of an extra is missing          503  stopping
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import Request

from deepwell.errors import DeepwellError, MissingExtraError, PromptTooLongError
from deepwell.server.driver import EngineFailedError, StoppedError
from deepwell.server.refusals import error_body

_CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}
_SHOWN = 3
"""Mistakes of a request that are told at once."""

_OF_A_UNION = re.compile(r".*\[|(constrained-)?(str|int)$|[A-Z]")
"""What pydantic puts into a place for the branch of a union that it tried; no field is called so."""

_log = logging.getLogger(__name__)


class ApiError(HTTPException):
    """A request that is not served: what is told about it."""

    def __init__(self, status: int, message: str, code: str, *, param: str | None = None) -> None:
        """``param`` is the field of the request that is wrong."""
        super().__init__(status, message)
        self.code = code
        self.param = param


def explained(error: BaseException) -> ApiError:
    """What a client is told of an error; of one that is nobody's fault but ours no more than that it happened."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLongError):
        return ApiError(400, _one_line(error), "context_length_exceeded")
    if isinstance(error, MissingExtraError):
        return ApiError(501, _one_line(error), "missing_extra")
    if isinstance(error, DeepwellError):
        return ApiError(400, _one_line(error), error.code.replace("-", "_"))
    if isinstance(error, StoppedError):
        return ApiError(503, str(error), "draining")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, error.detail, _CODES.get(error.status_code, "failed"))
    return ApiError(500, "the server failed; its log says how", "failed")


def body_of(error: ApiError) -> bytes:
    """The body of a response, or the data of a stream's last event."""
    return error_body(error.status_code, error.detail, error.code, error.param)


def install(app: FastAPI) -> None:
    """Have an application answer every error in this way."""
    app.add_exception_handler(RequestValidationError, _invalid)
    for kind in (HTTPException, DeepwellError, EngineFailedError, StoppedError, Exception):
        app.add_exception_handler(kind, _failed)


async def _failed(request: Request, error: Exception) -> Response:
    del request
    return _response(explained(error), getattr(error, "headers", None))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    mistakes = error.errors()
    if not any(mistake["loc"] != ("body",) for mistake in mistakes) and not _is_json(request):
        message = "the body is not said to be JSON; send the header Content-Type: application/json"
        return _response(ApiError(415, message, "unsupported_media_type"))
    told = [_mistake(mistake) for mistake in mistakes[:_SHOWN]]
    more = f"; and {len(mistakes) - _SHOWN} more" if len(mistakes) > _SHOWN else ""
    param = _field(mistakes[0]["loc"]) if mistakes else None
    return _response(ApiError(400, "; ".join(told) + more, "invalid_request", param=param or None))


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _mistake(mistake: Mapping[str, Any]) -> str:
    field = _field(mistake["loc"])
    return f"{field}: {mistake['msg']}" if field else str(mistake["msg"])


def _field(place: Sequence[Any]) -> str:
    """``messages[0].role`` from the place where pydantic found a mistake."""
    parts = [
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in place[1:] if not _OF_A_UNION.match(str(part))
    ]
    return "".join(parts).removeprefix(".")


def _response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body_of(error), error.status_code, headers, media_type="application/json")


def _one_line(error: DeepwellError) -> str:
    return f"{error.message}. {error.hint}" if error.hint else error.message
