"""Ctrl-C and SIGTERM as a wish: the step that is under way ends, and the run is saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch

from deepwell.lm.parallel.world import World


class Stopping:
    """Turns Ctrl-C and SIGTERM into a wish that is fulfilled after the step; the second Ctrl-C stops at once.

    SIGTERM may come more than once, and beside Ctrl-C: torchrun and batch systems pass on what they get themselves.
    """

    def __init__(self) -> None:
        self.asked = False
        self._interrupted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        self.asked = True

    def asked_everywhere(self, world: World) -> bool:
        """Whether any process was asked: all of them stop at the same step."""
        if world.size == 1:
            return self.asked
        return bool(world.sum(torch.tensor([int(self.asked)], device=world.device)))
