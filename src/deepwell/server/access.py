"""Who may ask: a holder of a key, or, where there are no keys, a program of this machine.

A server without keys listens on a loopback address, but a web page that somebody on this machine opens can reach that
too. So it is asked by its loopback name (a page that had its own name point here, by DNS rebinding, is refused), and a
page of another origin is let in only where ``Settings.cors_origins`` names it.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from deepwell.server.keys import KeyRing
from deepwell.server.refusals import header, refuse
from deepwell.server.settings import Settings

OPEN_PATHS = frozenset({"/health"})
"""What anybody may ask."""

ASKER = "deepwell.asker"
"""Where the scope of a request says who asks: the name of a key, or an address."""


class Access:
    """Middleware: lets a request in, with ``scope[ASKER]`` filled in, or answers 401 or 403."""

    def __init__(self, app: ASGIApp, settings: Settings, ring: KeyRing | None) -> None:
        """``ring``: the keys; None: none are asked for."""
        self._app = app
        self._ring = ring
        self._origins = settings.cors_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif self._ring is not None:
            await self._with_key(self._ring, scope, receive, send)
        elif not _names_loopback(header(scope, b"host")):
            message = "this server is asked by the name of this machine: localhost or 127.0.0.1"
            await refuse(send, 403, message, "wrong_host")
        elif not self._may_come_from(header(scope, b"origin"), header(scope, b"host")):
            message = "web pages of this origin may not ask; `deepwell serve --cors ORIGIN` lets them"
            await refuse(send, 403, message, "wrong_origin")
        else:
            scope[ASKER] = _address(scope)
            await self._app(scope, receive, send)

    async def _with_key(self, ring: KeyRing, scope: Scope, receive: Receive, send: Send) -> None:
        scheme, _, secret = (header(scope, b"authorization") or "").partition(" ")
        presented = secret.strip() if scheme.lower() == "bearer" else ""
        holder = ring.holder(presented) if presented else None
        if holder is None:
            wanted = "give a key as `Authorization: Bearer KEY`"
            message = f"the API key is not known to this server; {wanted}" if presented else f"no API key; {wanted}"
            await refuse(send, 401, message, "invalid_api_key", {"www-authenticate": "Bearer"})
            return
        scope[ASKER] = holder
        await self._app(scope, receive, send)

    def _may_come_from(self, origin: str | None, host: str | None) -> bool:
        """Whether it is no page that asks, or one of this server, or one that is allowed."""
        return origin is None or "*" in self._origins or origin in self._origins or urlsplit(origin).netloc == host


def _names_loopback(host: str | None) -> bool:
    try:
        name = urlsplit(f"//{host or ''}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _address(scope: Scope) -> str:
    """The client's address; of IPv6 the network, because one client has as many addresses there as it wants."""
    host, _ = scope.get("client") or ("", 0)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
