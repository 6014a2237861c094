"""One server for all tests of the API."""

from collections.abc import Iterator

import pytest

from .tiny import Live, live, tiny_model


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
