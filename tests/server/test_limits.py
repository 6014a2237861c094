"""Requests a minute, and bytes and seconds of a body."""

import asyncio

import pytest

from deepwell.server.access import ASKER
from deepwell.server.limits import (
    Buckets,
    ClientGoneError,
    RateLimit,
    RefusedError,
    read_body,
    retry_after,
)
from deepwell.server.settings import Settings

from .asgi import Client, a_request, ready


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_holds_a_minutes_worth_and_fills_evenly() -> None:
    clock = Clock()
    buckets = Buckets(6, clock)
    assert [buckets.take("a") for _ in range(6)] == [0.0] * 6
    assert buckets.take("a") == pytest.approx(10)
    assert buckets.take("b") == 0.0
    clock.now += 4
    assert buckets.take("a") == pytest.approx(6)
    clock.now += 6.001
    assert buckets.take("a") == 0.0
    assert buckets.take("a") == pytest.approx(10, abs=0.01)
    clock.now += 3600
    assert [buckets.take("a") for _ in range(7)] == [0.0] * 6 + [pytest.approx(10)]


def test_buckets_of_many_askers_take_bounded_memory() -> None:
    buckets = Buckets(1, Clock())
    for number in range(10_100):
        assert buckets.take(str(number)) == 0.0
    assert buckets.take("10099") > 0
    assert buckets.take("0") == 0.0  # forgotten long ago


def test_whoever_asks_too_often_is_told_when_to_come_again() -> None:
    limited = RateLimit(ready(), Settings(requests_per_minute=2))

    async def ask(asker: str, method: str = "POST") -> int:
        return (await Client().ask(limited, {**a_request(method), ASKER: asker})).status

    assert [asyncio.run(ask("laptop")) for _ in range(3)] == [200, 200, 429]
    assert asyncio.run(ask("phone")) == 200
    assert asyncio.run(ask("laptop", "GET")) == 200
    refused = asyncio.run(Client().ask(limited, {**a_request(), ASKER: "laptop"}))
    assert refused.error["code"] == "rate_limit_exceeded"
    assert refused.error["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 30


def test_without_a_limit_everybody_asks_as_often_as_they_like() -> None:
    limited = RateLimit(ready(), Settings())
    assert {asyncio.run(Client().ask(limited)).status for _ in range(200)} == {200}


def test_the_time_to_come_again_is_rounded_up() -> None:
    assert [retry_after(seconds)["retry-after"] for seconds in (0.0, 0.2, 1.0, 1.2)] == ["1", "1", "1", "2"]


def body_of(client: Client, most: int = 10, seconds: float = 5.0, **headers: str) -> bytes:
    settings = Settings(max_request_bytes=most, upload_seconds=seconds)
    return asyncio.run(read_body(a_request(**headers), client.receive, settings))


def test_a_body_in_pieces_is_put_together() -> None:
    assert body_of(Client([b"0123", b"45", b"", b"6789"])) == b"0123456789"
    assert body_of(Client([b""])) == b""


def test_a_body_that_is_too_long_is_refused_announced_or_not() -> None:
    for client, headers in (
        (Client([b"0" * 11]), {}),
        (Client([b"0" * 6, b"0" * 6]), {}),
        (Client([b"0" * 11]), {"content_length": "11"}),
    ):
        with pytest.raises(RefusedError, match="more than 10 bytes") as refused:
            body_of(client, **headers)
        assert refused.value.status == 413


def test_a_body_that_is_too_long_is_taken_to_its_end_so_that_the_refusal_is_read() -> None:
    client = Client([b"0" * 2**20] * 12)
    with pytest.raises(RefusedError):
        body_of(client, content_length=str(12 * 2**20))
    client.leave.set()
    assert asyncio.run(client.receive())["type"] == "http.disconnect"


def test_whoever_asks_before_sending_need_not_send() -> None:
    client = Client([b"0" * 11])
    with pytest.raises(RefusedError):
        body_of(client, content_length="11", expect="100-Continue")
    assert asyncio.run(client.receive())["body"] == b"0" * 11


def test_an_endless_body_is_not_taken_for_ever() -> None:
    with pytest.raises(RefusedError) as refused:
        body_of(Client([bytes(2**22)] * 40, endless=True))
    assert refused.value.status == 413


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with pytest.raises(RefusedError, match=r"within 0\.01 s") as refused:
        body_of(Client([b"01"], endless=True), seconds=0.01)
    assert refused.value.status == 408


def test_a_client_that_leaves_in_the_midst_of_its_body_is_noticed() -> None:
    client = Client([b"01"], endless=True)
    client.leave.set()
    with pytest.raises(ClientGoneError):
        body_of(client)
