"""Many clients, some of which leave: the server lasts and loses no block. The benchmark's own code, short."""

import asyncio
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from deepwell.server.lifecycle import Door, Server, bind
from deepwell.server.settings import Settings

from .test_lifecycle import running
from .tiny import tiny_model

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("benchmark_serving", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@contextmanager
def tiny_server(folder: Path, **more: int) -> Iterator[str]:
    settings = Settings(port=0, **more)
    door = Door.of(settings)
    server = Server.of(tiny_model(folder, context=4096), door, bind(settings), name="soaked")
    with running(server):
        yield f"{server.url}/v1"


def test_a_short_soak_leaves_nothing_behind(benchmark: ModuleType, tmp_path: Path) -> None:
    with tiny_server(tmp_path, most_concurrent=6, queue_length=20) as url:
        found = asyncio.run(benchmark.soak(url, psutil.Process(), model="soaked", clients=12, seconds=4.0))
    faults = [fault for fault in benchmark.faults(found) if not fault.startswith("memory grew")]
    assert not faults
    assert found["answered"] and found["left"]
    assert found["prompt_hit"] > 0


def test_faults_are_told(benchmark: ModuleType) -> None:
    fine = {
        "wrong": [], "answered": 3, "blocks_used": 0.0, "answers_left": 0.0, "requests_left": 0.0,
        "rss_mb": {"quarter": 100.0, "end": 104.0},
    }  # fmt: skip
    assert benchmark.faults(fine) == []
    worse = {
        "wrong": ["x"], "answered": 0, "blocks_used": 1.0, "answers_left": 1.0, "requests_left": 1.0,
        "rss_mb": {"quarter": 100.0, "end": 106.0},
    }  # fmt: skip
    for name, value in worse.items():
        assert len(benchmark.faults({**fine, name: value})) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_64_clients_for_two_minutes(benchmark: ModuleType, tmp_path: Path) -> None:
    with tiny_server(tmp_path) as url:
        found = asyncio.run(benchmark.soak(url, psutil.Process(), model="soaked", clients=64, seconds=120.0))
    # The clients are in this process, too; the benchmark itself looks at the server's memory alone.
    assert not [fault for fault in benchmark.faults(found) if not fault.startswith("memory grew")]
    assert found["rss_mb"]["end"] < found["rss_mb"]["quarter"] * 1.2
