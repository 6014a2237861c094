"""Settings of a server: every value is checked, and nobody is served to a network without a key."""

from typing import Any

import pytest

from deepwell.errors import UsageError
from deepwell.server.settings import Settings


def test_the_defaults_serve_this_machine_alone() -> None:
    settings = Settings()
    assert settings.loopback
    settings.check_reach(keys=0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_a_loopback_address_needs_no_key(host: str) -> None:
    Settings(host=host).check_reach(keys=0)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.4", "10.0.0.1", "fe80::1", "example.org", "localhost.evil"]
)
def test_any_other_address_needs_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="no key is asked for") as refused:
        Settings(host=host).check_reach(keys=0)
    assert "deepwell keys add" in refused.value.hint
    Settings(host=host).check_reach(keys=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", ""),
        ("port", -1),
        ("port", 65536),
        ("port", True),
        ("max_request_bytes", 0),
        ("requests_per_minute", 0),
        ("most_concurrent", 0),
        ("queue_length", -1),
        ("queue_seconds", 0.0),
        ("upload_seconds", 0.0),
        ("request_seconds", float("nan")),
        ("request_seconds", float("inf")),
        ("drain_seconds", -1.0),
        ("cors_origins", ("example.org",)),
        ("cors_origins", ("https://example.org/page",)),
    ],
)
def test_a_value_that_makes_no_sense_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as refused:
        Settings(**{name: value})
    assert name.partition("_")[0] in refused.value.message or "origin" in refused.value.message
    assert refused.value.hint


def test_what_is_allowed_at_the_edge() -> None:
    Settings(port=0, queue_length=0, queue_seconds=0.0, drain_seconds=0.0, requests_per_minute=1)
    Settings(cors_origins=("*", "http://localhost:3000"))
