"""Schemathesis over the whole description of the API: no 500, and nothing that the description does not say."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis import engine
from schemathesis.config import SchemathesisConfig

from .tiny import Live, live, tiny_model, until


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Live]:
    with live(tiny_model(tmp_path, context=96)) as server:
        yield server
        assert until(server.idle)


@pytest.fixture
def answered() -> Iterator[Counter[tuple[str, int]]]:
    """How often each endpoint gave each status. Requests that are right by the description are made so in fact."""
    counts: Counter[tuple[str, int]] = Counter()

    @schemathesis.hook
    def before_call(context: Any, case: Any, kwargs: Any) -> None:
        body = case.body
        if case.meta is None or not case.meta.generation.mode.is_positive or not isinstance(body, dict):
            return
        body["model"] = "hash-encoder" if "input" in body else "tiny"
        body.pop("dimensions", None)
        if "input" not in body:
            body["max_tokens"] = 4
        if body.get("top_logprobs") is not None:
            body["logprobs"] = True
        if not body.get("prompt", True) or isinstance(body.get("prompt"), list):
            body["prompt"] = [[1, 2], [3]]
        for message in body.get("messages", ()):
            if not message.get("content"):
                message["content"] = "a"

    @schemathesis.hook
    def after_call(context: Any, case: Any, response: Any) -> None:
        counts[case.operation.label, response.status_code] += 1

    yield counts
    schemathesis.hooks.unregister_all()


@pytest.mark.parametrize(
    ("phases", "examples"),
    [(("fuzzing",), 12), pytest.param(("examples", "coverage", "fuzzing", "stateful"), 100, marks=pytest.mark.slow)],
    ids=["quick", "whole"],
)
@pytest.mark.timeout(600)
def test_every_answer_is_what_the_description_says(
    up: Live, answered: Counter[tuple[str, int]], phases: tuple[str, ...], examples: int
) -> None:
    config = SchemathesisConfig.from_dict({
        "continue-on-failure": True,
        "seed": 1,
        "generation": {"max-examples": examples, "database": "none"},
        "phases": {name: {"enabled": name in phases} for name in ("examples", "coverage", "fuzzing", "stateful")},
        # What a description cannot say: which fields go together, how long a prompt is, which schemas can be kept.
        "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", 400, 404]}},
    })  # fmt: skip
    description = schemathesis.openapi.from_url(up.url.removesuffix("/v1") + "/openapi.json", config=config)
    wrong = []
    for event in engine.from_schema(description).execute():
        assert not isinstance(event, engine.events.FatalError), event.exception
        assert not isinstance(event, engine.events.NonFatalError), event.value
        if isinstance(event, engine.events.ScenarioFinished):
            recorder = event.recorder
            for name, checks in recorder.checks.items():
                failures = [check.failure_info.failure for check in checks if check.failure_info is not None]
                wrong += [(failure.title, failure.message, recorder.cases[name].value.body) for failure in failures]
    assert not wrong
    for endpoint in ("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings"):
        assert answered[endpoint, 200] >= 3
        assert answered[endpoint, 400] >= 1
    assert answered["GET /v1/models", 200] >= 1
    assert {status for _, status in answered} <= {200, 400, 404, 405, 415}
