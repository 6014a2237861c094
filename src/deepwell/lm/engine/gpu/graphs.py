"""Decoding steps recorded once and replayed: a CUDA graph for each of some sizes.

A step of a small batch is hundreds of kernels that each take microseconds, less than launching them from Python does. A
graph launches all of them at once. It is recorded when a step of its size first comes; a step of another size takes the
next larger graph. What a step computes must not depend on values that only the host knows, so all of them stand in
``DecodeInputs``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

SIZES = (1, 2, 4, 8, *range(16, 65, 8), 80, 96, 112, 128)
"""Tokens of the steps that are recorded."""

T = TypeVar("T")
Replay = Callable[[], T]


def size_for(count: int) -> int | None:
    """The size of the graph that ``count`` tokens take; None: there are too many."""
    return next((size for size in SIZES if size >= count), None)


class Graphs:
    """Records what is given to it on a GPU; shares memory among what it has recorded."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], T]) -> Replay[T]:
        """Compute twice, so that kernels are compiled and chosen, then record.

        What ``compute`` gives is the same memory after every replay.

        Raises:
            RuntimeError: Something in it waits for the GPU or cannot be recorded.
        """
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    compute()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                result = compute()

        def replay() -> T:
            graph.replay()
            return result

        return replay
