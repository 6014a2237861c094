"""Reading the JSON of a request so strictly that what comes behind can trust it.

Python's reader lets through what is not JSON (``NaN``), what has no UTF-8 form (half of a surrogate pair, written as an
escape) and what is nested deeper than a template or a grammar can follow. Each is told here, with where.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from deepwell.server.errors import ApiError

MOST_NESTED = 64
"""Brackets around a value. JSON schemas that people write have a dozen."""

_TEXT_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{\]}]', re.DOTALL)
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class StrictRoute(APIRoute):
    """A route whose body is read by ``parse``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, around FastAPI's own."""
        handler = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse(await self.body())


def parse(body: bytes) -> Any:
    """The value of a body.

    Raises:
        ApiError: It is no JSON in UTF-8, or nested too deeply.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _bad(f"the body is not UTF-8: byte {error.start} is 0x{body[error.start]:02x}") from None
    # Brackets in texts are counted too, so this alone refuses nothing.
    if text.count("[") + text.count("{") > MOST_NESTED:
        _check_depth(text)
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_number)
    except json.JSONDecodeError as error:
        raise _bad(f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise _bad(f"the body cannot be read as JSON: {error}") from None
    if _HALF_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _bad("the body holds half of a surrogate pair, which stands for no character") from None
    return value


def _check_depth(text: str) -> None:
    depth = 0
    for mark in _TEXT_OR_BRACKET.finditer(text):
        letter = mark[0]
        if letter in "[{":
            depth += 1
            if depth > MOST_NESTED:
                raise _bad(f"the body is nested more than {MOST_NESTED} deep, at character {mark.start()}")
        elif letter in "]}":
            depth -= 1


def _number(text: str) -> float:
    """A number; 1.0 is a whole one, as JSON Schema has it."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _bad(message: str) -> ApiError:
    return ApiError(400, message, "invalid_json")
