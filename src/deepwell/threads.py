"""Small matrix products on one thread.

A query's products are small. OpenBLAS shares even those out among all cores and lets its threads spin while they wait
for each other; on a machine that is also indexing, where a core is taken, that made a query of 20 ms take 400. Products
of a search therefore run on the thread that asked, and searches of several threads run side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_inside = 0
_controller: Any = None
_limit: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, numpy's products use one thread. May be nested and used by several threads; the last one out restores."""
    global _inside, _controller, _limit  # noqa: PLW0603  (the setting is the process's own, so this state is too)
    with _lock:
        _inside += 1
        if _inside == 1:
            if _controller is None:
                import numpy as np  # noqa: F401  (its BLAS must be loaded to be found)
                from threadpoolctl import ThreadpoolController

                _controller = ThreadpoolController().select(user_api="blas")
            _limit = _controller.limit(limits=1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.restore_original_limits()
                _limit = None
