"""What a server counts, for Prometheus to fetch at ``/metrics``.

Requests are counted as they end; what the engine knows anyway (its cache, its queue, its drafts) is read from it when
somebody looks. Every name and its meaning is in the guide.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepwell import __version__
from deepwell.server.refusals import CLIENT_GONE

if TYPE_CHECKING:
    from deepwell.lm.engine.engine import Engine
    from deepwell.server.admission import Admission
    from deepwell.server.generation import Generation

METRICS_TYPE = CONTENT_TYPE_LATEST
"""The media type of ``Metrics.text``."""

_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which tells nothing that anybody asked for
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "deepwell_requests", "Requests that were answered.", ("route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "deepwell_request_seconds",
            "From a request's coming to the last byte of its answer, queue included.",
            ("route",),
            buckets=_WAITS,
            registry=self.registry,
        )
        self._first_token = Histogram(
            "deepwell_time_to_first_token_seconds",
            "From the start of the work on a request to the first token of its answer.",
            buckets=_WAITS,
            registry=self.registry,
        )
        self._speed = Histogram(
            "deepwell_tokens_per_second",
            "Tokens a second of a request, behind the first token of its answers.",
            buckets=_SPEEDS,
            registry=self.registry,
        )
        self._prompt = Counter(
            "deepwell_prompt_tokens",
            "Tokens of prompts: found in the cache (hit), or computed (missed).",
            ("cache",),
            registry=self.registry,
        )
        self._written = Counter(
            "deepwell_completion_tokens", "Tokens that were written, thoughts included.", registry=self.registry
        )
        self._thoughts = Counter(
            "deepwell_reasoning_tokens", "Tokens that were written and were thoughts.", registry=self.registry
        )
        for cache in ("hit", "missed"):
            self._prompt.labels(cache)

    def watch(self, engine: Engine, admission: Admission) -> None:
        """Read these two, too, whenever somebody looks."""
        self.registry.register(_Now(engine, admission))

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def generation(self, generation: Generation) -> None:
        """Count what was written for a request, cut off or not; a listener for ``Driver.on_end``."""
        written = 0
        for answer in generation.answers:
            self._prompt.labels("hit").inc(answer.reused_tokens)
            self._prompt.labels("missed").inc(answer.prompt_tokens - answer.reused_tokens)
            self._written.inc(answer.tokens)
            self._thoughts.inc(answer.reasoning_tokens)
            written += answer.tokens
        if generation.first is None:
            return
        self._first_token.observe(generation.first - generation.begun)
        behind = written - len(generation.answers)
        if generation.ended is not None and generation.ended > generation.first and behind > 0:
            self._speed.observe(behind / (generation.ended - generation.first))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Now:
    """What an engine and a queue hold at this moment."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._engine = engine
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """One family after the other, as ``prometheus_client`` asks for them."""
        admission, scheduler = self._admission, self._engine.scheduler
        allocator, counters = self._engine.allocator, self._engine.counters
        yield GaugeMetricFamily("deepwell_requests_running", "Requests that are worked on.", admission.running)
        yield GaugeMetricFamily("deepwell_requests_queued", "Requests that wait for their turn.", admission.waiting)
        yield GaugeMetricFamily("deepwell_draining", "1 when no new requests are taken.", int(admission.draining))
        yield GaugeMetricFamily("deepwell_answers_running", "Answers in the engine's batch.", len(scheduler.running))
        yield GaugeMetricFamily("deepwell_answers_waiting", "Answers that wait for it.", len(scheduler.waiting))
        blocks = GaugeMetricFamily(
            "deepwell_cache_blocks",
            "Blocks of the cache: in use, kept for prompts that begin alike, or empty.",
            labels=("state",),
        )
        used, kept = allocator.in_use, allocator.kept
        for state, count in (("used", used), ("kept", kept), ("empty", allocator.blocks - used - kept)):
            blocks.add_metric((state,), count)
        yield blocks
        drafts = CounterMetricFamily(
            "deepwell_draft_tokens", "Tokens that were guessed, by what came of them.", labels=("outcome",)
        )
        drafts.add_metric(("accepted",), counters.accepted)
        drafts.add_metric(("rejected",), counters.proposed - counters.accepted)
        yield drafts
        yield CounterMetricFamily("deepwell_engine_steps", "Steps of the engine.", counters.steps)
        version = GaugeMetricFamily("deepwell_build_info", "Always 1; the label is the version.", labels=("version",))
        version.add_metric((__version__,), 1)
        yield version


class CountRequests:
    """Middleware, the outermost one: counts every request with its route, its status and its time."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        """``routes``: those that are counted by name, as OpenAPI writes them; what else is asked is "other"."""
        self._app = app
        self._metrics = metrics
        self._routes = {route: _pattern(route) for route in sorted(routes)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = CLIENT_GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            self._metrics.request(self._route(scope["path"]), status, time.perf_counter() - begun)

    def _route(self, path: str) -> str:
        return next((name for name, pattern in self._routes.items() if pattern.fullmatch(path)), "other")


def _pattern(route: str) -> re.Pattern[str]:
    """What fits a route as OpenAPI writes it: ``/v1/models/{model}``."""
    parts = re.split(r"\{[^}]*\}", route)
    return re.compile(".+".join(re.escape(part) for part in parts))
