"""How many threads a step gets: no more than there are cores that nobody else uses.

A step is some hundred small products one after the other. If one of two threads has to wait for its core because
another program runs there, every product waits with it, for a whole time slice: measured on two cores of which one was
taken, two threads took ten times as long for a token as one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_INTERVAL = 0.25
"""Seconds over which use is averaged; the system counts in hundredths."""

_STAT = Path("/proc/stat")


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the system began; None where it does not tell."""
    try:
        user, nice, system, _, _, irq, softirq = map(int, _STAT.read_text(encoding="ascii").split(maxsplit=8)[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


class FreeCores:
    """Watches what others use, and sets torch's threads for a step."""

    def __init__(
        self,
        most: int,
        *,
        cores: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], float | None] = busy_seconds,
        own: Callable[[], float] = time.process_time,
    ) -> None:
        """``most`` threads where nobody else works; the others tell time, and are what a test replaces."""
        self._most = self.threads = most
        self._cores = cores or os.cpu_count() or 1
        self._clock, self._busy, self._own = clock, busy, own
        self._last = self._now()

    def update(self) -> None:
        """Look again, if the last look is long enough ago."""
        if self._most == 1 or self._clock() - self._last[0] < _INTERVAL:
            return
        now = self._now()
        (then, busy_then, own_then), self._last = self._last, now
        if busy_then is None or now[1] is None:
            return
        others = (now[1] - busy_then - (now[2] - own_then)) / (now[0] - then)
        # A core that is taken less than half of the time is worth sharing.
        self.threads = max(1, min(self._most, self._cores - round(others)))

    @contextmanager
    def for_a_step(self, *, torch_alone: bool = True) -> Iterator[None]:
        """Inside, torch uses as many threads as there are cores for it, or one where others compute beside it.

        torch's threads go on waiting awake after each of its operations, on the cores that the others want, and
        every product of the next step is slower for it.
        """
        self.update()
        before, wanted = torch.get_num_threads(), self.threads if torch_alone else 1
        if before == wanted:
            yield
            return
        torch.set_num_threads(wanted)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _now(self) -> tuple[float, float | None, float]:
        return self._clock(), self._busy(), self._own()
