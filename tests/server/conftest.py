"""One server for all tests of the API."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from .tiny import Live, live, tiny_model


@pytest.fixture(autouse=True)
def _same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks without a seed gets the same ones in every run: a random answer may end early, and a test with it."""
    seeds = itertools.count(1)
    monkeypatch.setattr("deepwell.lm.engine.sampler.secrets", SimpleNamespace(randbits=lambda _: next(seeds)))


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tiny_model(tmp_path_factory.mktemp("deepseek"))) as up:
        yield up


@pytest.fixture
def server(_server: Live) -> Iterator[Live]:
    """A live server; every test leaves it with nothing to do and all of its memory free."""
    from .tiny import until

    yield _server
    assert until(_server.idle)
