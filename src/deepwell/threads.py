"""Small matrix products on the cores that are free.

A query's products are small. OpenBLAS shares even those out among all cores and lets its threads spin while they wait
for each other: on an idle machine of two cores that helps, but on one that is also indexing, where a core is
taken, it makes a query take many times as long as one thread would. So a search asks the system how many cores are free
as it begins.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_lock = threading.Lock()
_inside = 0
_controller: Any = None
_limit: Any = None
_CORES = os.cpu_count() or 1


def free_cores() -> int:
    """Cores that nobody else is running on at this moment, this thread's own included; 1 where that is not told."""
    try:
        running = int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 1
    return max(1, _CORES - (running - 1))


@contextmanager
def blas_on_free_cores() -> Iterator[None]:
    """Inside, numpy's products use as many threads as cores were free at the start.

    May be nested and used by several threads: whoever finds others inside leaves one thread to each. The last one out
    restores what was before.
    """
    global _inside, _controller, _limit  # noqa: PLW0603  (the setting is the process's own, so this state is too)
    with _lock:
        _inside += 1
        if _controller is None:
            import numpy as np  # noqa: F401  (its BLAS must be loaded to be found)
            from threadpoolctl import ThreadpoolController

            _controller = ThreadpoolController().select(user_api="blas")
        if _inside == 1:
            _limit = _controller.limit(limits=free_cores())
        else:
            _controller.limit(limits=1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.restore_original_limits()
                _limit = None
