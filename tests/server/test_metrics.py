"""What a server counts, as Prometheus reads it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepwell import __version__
from deepwell.server.admission import Admission, Admit
from deepwell.server.metrics import CountRequests, Metrics
from deepwell.server.settings import Settings

from .asgi import Client, Work, a_request, ready, settled


def told(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and its labels."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_requests_are_counted_by_route_and_status() -> None:
    metrics = Metrics()
    count = CountRequests(ready(), metrics, frozenset({"/v1/completions", "/v1/models/{model}"}))

    async def gone(scope: Any, receive: Any, send: Any) -> None:
        return

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async def ask() -> None:
        await Client().ask(count)
        await Client().ask(count)
        for path in ("/nothing", "/../etc/passwd", '/a"b\n', "/v1/completions/x", "/v1/models/"):
            await Client().ask(count, a_request(path=path))
        routes = frozenset({"/v1/completions", "/v1/models/{model}"})
        await Client().ask(CountRequests(ready(), metrics, routes), a_request("GET", "/v1/models/my/model"))
        await Client().ask(CountRequests(gone, metrics, routes))
        with pytest.raises(ZeroDivisionError):
            await Client().ask(CountRequests(broken, metrics, routes))

    asyncio.run(ask())
    found = told(metrics)
    counted = {key: value for key, value in found.items() if key.startswith("deepwell_requests_total")}
    assert counted == {
        "deepwell_requests_total{route=/v1/completions,status=200}": 2,
        "deepwell_requests_total{route=/v1/completions,status=499}": 1,
        "deepwell_requests_total{route=/v1/completions,status=500}": 1,
        "deepwell_requests_total{route=/v1/models/{model},status=200}": 1,
        "deepwell_requests_total{route=other,status=200}": 5,
    }
    assert found["deepwell_request_seconds_count{route=/v1/completions}"] == 4


def answer(prompt: int, reused: int, tokens: int, thoughts: int = 0) -> SimpleNamespace:
    return SimpleNamespace(prompt_tokens=prompt, reused_tokens=reused, tokens=tokens, reasoning_tokens=thoughts)


def test_answers_are_counted_with_their_times() -> None:
    metrics = Metrics()
    both: Any = SimpleNamespace(answers=[answer(10, 0, 21), answer(10, 8, 31, 5)], begun=1.0, first=1.2, ended=2.2)
    metrics.generation(both)
    cut: Any = SimpleNamespace(answers=[answer(7, 7, 0)], begun=1.0, first=None, ended=2.0)
    metrics.generation(cut)
    one: Any = SimpleNamespace(answers=[answer(1, 0, 1)], begun=1.0, first=3.0, ended=3.0)
    metrics.generation(one)
    found = told(metrics)
    assert found["deepwell_prompt_tokens_total{cache=hit}"] == 15
    assert found["deepwell_prompt_tokens_total{cache=missed}"] == 13
    assert found["deepwell_completion_tokens_total"] == 53
    assert found["deepwell_reasoning_tokens_total"] == 5
    assert found["deepwell_time_to_first_token_seconds_count"] == 2
    assert found["deepwell_time_to_first_token_seconds_sum"] == pytest.approx(2.2)
    # 52 tokens, of which 2 came first, and 50 in the second after.
    assert found["deepwell_tokens_per_second_count"] == 1
    assert found["deepwell_tokens_per_second_sum"] == pytest.approx(50)


def test_engine_and_queue_are_read_when_somebody_looks() -> None:
    async def test() -> None:
        metrics, admission = Metrics(), Admission(Settings(most_concurrent=1))
        engine: Any = SimpleNamespace(
            scheduler=SimpleNamespace(running=[1, 2], waiting=[3]),
            allocator=SimpleNamespace(blocks=100, in_use=30, kept=20),
            counters=SimpleNamespace(steps=9, proposed=50, accepted=40),
        )
        metrics.watch(engine, admission)
        work = Work()
        asked = [asyncio.create_task(Client().ask(Admit(work, admission))) for _ in range(3)]
        await settled()
        found = told(metrics)
        expected = {
            "deepwell_requests_running": 1,
            "deepwell_requests_queued": 2,
            "deepwell_draining": 0,
            "deepwell_answers_running": 2,
            "deepwell_answers_waiting": 1,
            "deepwell_cache_blocks{state=used}": 30,
            "deepwell_cache_blocks{state=kept}": 20,
            "deepwell_cache_blocks{state=empty}": 50,
            "deepwell_draft_tokens_total{outcome=accepted}": 40,
            "deepwell_draft_tokens_total{outcome=rejected}": 10,
            "deepwell_engine_steps_total": 9,
            f"deepwell_build_info{{version={__version__}}}": 1,
        }
        assert {key: found[key] for key in expected} == expected
        engine.allocator.in_use = 0
        work.go_on.set()
        await asyncio.gather(*asked)
        admission.draining = True
        found = told(metrics)
        assert found["deepwell_cache_blocks{state=used}"] == found["deepwell_requests_running"] == 0
        assert found["deepwell_draining"] == 1

    asyncio.run(test())
