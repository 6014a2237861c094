"""The limit on BLAS threads follows the free cores, holds for several threads at once, and is gone afterwards."""

import threading
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from deepwell import threads
from deepwell.threads import blas_on_free_cores, free_cores


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    np.ones((4, 4)) @ np.ones((4, 4))
    monkeypatch.setattr(threads, "free_cores", lambda: 1)


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="this system does not tell who is running")
def test_there_is_always_a_core_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= free_cores() <= threads._CORES
    monkeypatch.setattr(threads, "_CORES", 10_000)
    assert 9_000 < free_cores() <= 10_000


def test_it_holds_inside_and_is_gone_afterwards() -> None:
    before = blas_threads()
    with blas_on_free_cores():
        assert blas_threads() == {1}
        with blas_on_free_cores():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before


def test_the_last_of_several_threads_restores() -> None:
    before = blas_threads()
    entered, leave = threading.Barrier(3), threading.Event()

    def inside() -> None:
        with blas_on_free_cores():
            entered.wait()
            leave.wait()

    running = [threading.Thread(target=inside) for _ in range(2)]
    for thread in running:
        thread.start()
    entered.wait()
    with blas_on_free_cores():
        pass
    assert blas_threads() == {1}
    leave.set()
    for thread in running:
        thread.join()
    assert blas_threads() == before
