"""Who may ask: holders of keys, or programs of this machine where there are none."""

import asyncio
from pathlib import Path

import pytest

from deepwell.server.access import ASKER, Access
from deepwell.server.keys import KeyFile, KeyRing
from deepwell.server.settings import Settings

from .asgi import Client, Reply, Work, a_request, ready


def ask(access: Access, **headers: str) -> Reply:
    return asyncio.run(Client().ask(access, a_request(**headers)))


@pytest.fixture
def work() -> Work:
    return ready()


def test_a_key_lets_in_and_names_who_asks(tmp_path: Path, work: Work) -> None:
    key = KeyFile(tmp_path / "keys").add("laptop")
    access = Access(work, Settings(), KeyRing(tmp_path / "keys"))
    for scheme in ("Bearer", "bearer"):
        assert ask(access, authorization=f"{scheme} {key}", host="example.org", origin="https://any.org").status == 200
    assert [scope[ASKER] for scope in work.scopes] == ["laptop", "laptop"]
    for wrong in ("", "Bearer", "Bearer ", key, f"Basic {key}", f"Bearer {key}x", "Bearer \xe9"):
        refused = ask(access, authorization=wrong)
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.error["code"] == "invalid_api_key"
        assert key not in refused.error["message"]
    assert work.began == 2


def test_health_is_open_to_everybody(tmp_path: Path, work: Work) -> None:
    KeyFile(tmp_path / "keys").add("laptop")
    for ring in (KeyRing(tmp_path / "keys"), None):
        reply = asyncio.run(Client().ask(Access(work, Settings(), ring), a_request("GET", "/health", host="x.org")))
        assert reply.status == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "app.localhost:80"])
def test_without_keys_this_machine_is_asked_by_its_own_name(work: Work, host: str) -> None:
    assert ask(Access(work, Settings(), None), host=host).status == 200


@pytest.mark.parametrize(
    "host", ["", "example.org", "127.0.0.1.example.org", "localhost.org:8000", "10.0.0.1", "[::1", "["]
)
def test_a_page_that_points_its_name_here_is_refused(work: Work, host: str) -> None:
    refused = ask(Access(work, Settings(), None), host=host)
    assert (refused.status, refused.error["code"]) == (403, "wrong_host")
    assert not work.began


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        ("https://example.org", (), 403),
        ("null", (), 403),
        ("http://127.0.0.1:8000", (), 200),
        ("http://127.0.0.1:9000", (), 403),
        ("https://example.org", ("https://example.org",), 200),
        ("https://other.org", ("https://example.org",), 403),
        ("https://other.org", ("*",), 200),
    ],
)
def test_a_page_of_another_origin_asks_where_it_is_allowed(
    work: Work, origin: str, allowed: tuple[str, ...], status: int
) -> None:
    assert ask(Access(work, Settings(cors_origins=allowed), None), origin=origin).status == status


@pytest.mark.parametrize(
    ("client", "asker"),
    [
        (("10.1.2.3", 5), "10.1.2.3"),
        (("2001:db8:1:2:3::9", 5), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 5), "2001:db8:1:2::/64"),
        (None, "unknown"),
        (("unix", 0), "unknown"),
    ],
)
def test_without_keys_an_address_is_who_asks(work: Work, client: tuple[str, int] | None, asker: str) -> None:
    asyncio.run(Client().ask(Access(work, Settings(), None), {**a_request(), "client": client}))
    assert work.scopes[0][ASKER] == asker
