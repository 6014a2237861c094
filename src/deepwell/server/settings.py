"""How a server is set up: where it listens, who may ask, and how much.

>>> Settings(port=8080, requests_per_minute=60)
>>> Settings(host="0.0.0.0")            # without keys: serving it is refused, see ``check_reach``

Every limit has a value that suits one machine. ``deepwell serve`` makes one of these from its options; each option is
named after its field.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from deepwell.errors import UsageError


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a server; all are checked where they are made.

    Attributes:
        host: The address to listen on. Only a loopback address needs no keys.
        port: The port; 0 takes a free one.
        key_file: Hashes of the keys that are let in (``deepwell keys add``); None: nobody needs a key.
        cors_origins: Origins whose web pages may ask, as "https://example.org"; "*" is any. Empty: none.
        trusted_proxies: Addresses whose ``X-Forwarded-For`` is believed; behind a proxy all clients have one address.
        max_request_bytes: The longest body of a request, whether its length is announced or not.
        requests_per_minute: Of one key, or of one address where there are no keys; None: as many as they like.
        most_concurrent: Requests that are worked on at once.
        queue_length: Requests that may wait for their turn; one more is sent away with 429.
        queue_seconds: How long one waits for its turn at most.
        upload_seconds: How long a body may take to come.
        request_seconds: How long a request may take once it has its turn.
        drain_seconds: How long requests may go on when the server is told to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key_file: Path | None = None
    cors_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    max_request_bytes: int = 4 * 2**20
    requests_per_minute: int | None = None
    most_concurrent: int = 64
    queue_length: int = 256
    queue_seconds: float = 60.0
    upload_seconds: float = 30.0
    request_seconds: float = 600.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UsageError: One makes no sense; the message names it.
        """
        if not self.host:
            raise UsageError("host is empty", hint="Use 127.0.0.1 for this machine alone.")
        _whole("port", self.port, 0, 65535)
        _whole("max_request_bytes", self.max_request_bytes, 1)
        if self.requests_per_minute is not None:
            _whole("requests_per_minute", self.requests_per_minute, 1)
        _whole("most_concurrent", self.most_concurrent, 1)
        _whole("queue_length", self.queue_length, 0)
        _seconds("queue_seconds", self.queue_seconds, above=self.queue_length > 0)
        _seconds("upload_seconds", self.upload_seconds, above=True)
        _seconds("request_seconds", self.request_seconds, above=True)
        _seconds("drain_seconds", self.drain_seconds)
        for origin in self.cors_origins:
            _check_origin(origin)

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check_reach(self, *, keys: int) -> None:
        """Refuse to be open to others without a key.

        Args:
            keys: How many keys there are.

        Raises:
            UsageError: The address is not a loopback address, and there is no key.
        """
        if self.loopback or keys:
            return
        raise UsageError(
            f"{self.host} can be reached from other machines, and no key is asked for",
            hint="Make one with: deepwell keys add NAME. Or serve this machine alone: --host 127.0.0.1",
        )


def _check_origin(origin: str) -> None:
    parts = urlsplit(origin)
    if origin != "*" and (parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}"):
        raise UsageError(f"{origin!r} is no origin of web pages", hint="Give scheme and host: https://example.org")


def _whole(name: str, value: int, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        reach = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name} is {value!r}", hint=f"Use a whole number {reach}.")


def _seconds(name: str, value: float, *, above: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (above and not value):
        raise UsageError(
            f"{name} is {value!r}", hint=f"Use a number of seconds, {'more than 0' if above else '0 or more'}."
        )
