"""What a long run tells while it goes on. The library prints nothing; a command line draws what it is told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from deepwell.library.records import FileFailure

Phase = Literal["wait", "look", "read", "vectors", "tidy"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        phase: ``wait`` for another writer (``current`` names it), ``look`` for files, ``read`` them (counts are
            files), ``vectors`` (counts are passages), ``tidy`` up.
        done, total: Of this phase; total is 0 while unknown.
        rate: A second, of late; 0 while unknown.
        eta_s: Seconds left at that rate; None while unknown.
        current: The file at hand.
        failure: A file that has just failed, told once.
    """

    phase: Phase
    done: int = 0
    total: int = 0
    rate: float = 0.0
    eta_s: float | None = None
    current: str = ""
    failure: FileFailure | None = None


ProgressCallback = Callable[[Progress], None]

_EVERY_S = 0.1
_WINDOW_S = 10.0


class Reporter:
    """Calls back at most ten times a second, with the rate of the last ten seconds."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._phase: Phase = "look"
        self._last = 0.0
        self._marks: deque[tuple[float, int]] = deque()

    def tell(self, phase: Phase, done: int = 0, total: int = 0, current: str = "") -> None:
        if self._callback is None:
            return
        now = time.monotonic()
        if phase != self._phase:
            self._phase = phase
            self._marks.clear()
        elif now - self._last < _EVERY_S and not (total and done == total):
            return
        self._last = now
        self._marks.append((now, done))
        while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW_S:
            self._marks.popleft()
        since, before = self._marks[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        eta = (total - done) / rate if rate > 0 and total else None
        self._callback(Progress(phase, done, total, rate, eta, current))

    def fail(self, done: int, total: int, failure: FileFailure) -> None:
        if self._callback is not None:
            self._callback(Progress("read", done, total, failure=failure, current=failure.path))
