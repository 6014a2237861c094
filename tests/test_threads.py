"""The limit on BLAS threads holds inside, for several threads at once, and is gone afterwards."""

import threading

import numpy as np
from threadpoolctl import threadpool_info

from deepwell.threads import one_blas_thread


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_it_holds_inside_and_is_gone_afterwards() -> None:
    np.ones((4, 4)) @ np.ones((4, 4))
    before = blas_threads()
    with one_blas_thread():
        assert blas_threads() == {1}
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == before


def test_the_last_of_several_threads_restores() -> None:
    before = blas_threads()
    entered, leave = threading.Barrier(3), threading.Event()

    def inside() -> None:
        with one_blas_thread():
            entered.wait()
            leave.wait()

    threads = [threading.Thread(target=inside) for _ in range(2)]
    for thread in threads:
        thread.start()
    entered.wait()
    with one_blas_thread():
        pass
    assert blas_threads() == {1}
    leave.set()
    for thread in threads:
        thread.join()
    assert blas_threads() == before
