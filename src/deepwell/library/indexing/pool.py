"""Worker processes for reading, one thread each to drive it, and a watchman with a clock and a scale.

A file that takes too long or too much memory is taken from the pool together with its worker; the other files of its
batch go to a fresh one. Files that read fast come first, so that most words are searchable within seconds; slow ones
(OCR, speech) follow.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

from deepwell.errors import DeepwellError
from deepwell.library.indexing.worker import Outcome, Setup, Task, receive, send

_BATCH_FILES = 32
_BATCH_BYTES = 1 << 20
_FRUITLESS = 3
"""Workers that may die one after another before they begin a file, until that file is given up."""


def _default_memory_mb() -> int:
    import psutil

    return int(min(4096, max(1024, psutil.virtual_memory().total // 2**21)))


@dataclass(frozen=True, slots=True)
class Limits:
    """What reading one file may take.

    Attributes:
        fast_s, slow_s: Seconds for a file with a text layer, and for one that needs OCR or speech recognition.
        memory_mb: Resident memory of a worker.
    """

    fast_s: float = 120.0
    slow_s: float = 3600.0
    memory_mb: int = field(default_factory=_default_memory_mb)


class _Worker:
    """A worker process and what it is doing."""

    def __init__(self, setup: Setup) -> None:
        environment = dict(os.environ)
        # Each worker is one core's worth; libraries that start a thread for each core would fight over them.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
            environment.setdefault(name, "1")
        # Not "-m": the worker's module would be ``__main__`` there, and its pickled classes unknown here.
        command = [sys.executable, "-c", "from deepwell.library.indexing.worker import main; main()"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self.started: float | None = None
        self.allowed_s = 0.0
        self.verdict = ""
        try:
            send(self.pipe_in, replace(setup, sys_path=tuple(setup.sys_path or sys.path)))
            problem = receive(self.pipe_out)
        except (EOFError, OSError) as error:
            problem = f"it ended at once ({type(error).__name__})"
        if problem is not None:
            self.close()
            raise DeepwellError(f"the process that reads files cannot start: {problem}")

    @property
    def pipe_in(self) -> Any:
        return self.process.stdin

    @property
    def pipe_out(self) -> Any:
        return self.process.stdout

    def kill(self, verdict: str = "") -> None:
        self.verdict = self.verdict or verdict
        self.process.kill()

    def close(self) -> None:
        pipes: list[IO[bytes] | None] = [self.process.stdin, self.process.stdout]
        self.process.kill()
        self.process.wait()
        for pipe in pipes:
            if pipe is not None:
                with contextlib.suppress(OSError):  # a half-written message to a dead worker
                    pipe.close()


class ReaderPool:
    """Reads files in worker processes. Use as a context manager: leaving stops them at once."""

    def __init__(self, setup: Setup, *, workers: int | None = None, limits: Limits | None = None) -> None:
        self._setup = setup
        self._limits = limits or Limits()
        self._count = workers or os.cpu_count() or 1
        self._jobs: queue.PriorityQueue[tuple[int, int, tuple[Task, ...]]] = queue.PriorityQueue()
        self._results: queue.Queue[tuple[Task, Outcome]] = queue.Queue()
        self._order = itertools.count()
        self._workers: dict[int, _Worker] = {}
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._broken: DeepwellError | None = None
        self.fast_left = 0
        self.slow_left = 0

    def __enter__(self) -> ReaderPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for worker in list(self._workers.values()):
            worker.kill()
        for _ in self._threads:
            self._jobs.put((2, next(self._order), ()))
        for thread in self._threads:
            thread.join()

    def submit(self, tasks: Iterable[Task]) -> None:
        """Queue files; small ones are handed out by the batch."""
        batch: list[Task] = []
        weight = 0
        for task in tasks:
            if task.slow:
                self.slow_left += 1
                self._jobs.put((1, next(self._order), (task,)))
                continue
            self.fast_left += 1
            if batch and (len(batch) >= _BATCH_FILES or weight + task.size > _BATCH_BYTES):
                self._jobs.put((0, next(self._order), tuple(batch)))
                batch, weight = [], 0
            batch.append(task)
            weight += task.size
        if batch:
            self._jobs.put((0, next(self._order), tuple(batch)))
        self._start_threads()

    def _start_threads(self) -> None:
        wanted = min(self._count, self._jobs.qsize() + len(self._threads))
        while len(self._threads) < wanted:
            thread = threading.Thread(target=self._drive, args=(len(self._threads),), daemon=True)
            self._threads.append(thread)
            thread.start()
            if len(self._threads) == 1:
                threading.Thread(target=self._watch, daemon=True).start()

    @property
    def busy(self) -> bool:
        """Files are still to come."""
        return self.fast_left + self.slow_left > 0

    def next(self, timeout: float) -> tuple[Task, Outcome] | None:
        """The next file read, or None after ``timeout`` seconds. A slow file is put off and comes later."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                task, outcome = self._results.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                if self._broken is not None:
                    raise self._broken from None
                return None
            if task.slow:
                self.slow_left -= 1
            else:
                self.fast_left -= 1
            if outcome.result == "later":
                self.submit([replace(task, slow=True)])
                continue
            return task, outcome

    # -- one thread for each worker ------------------------------------------------------------------------------

    def _drive(self, seat: int) -> None:
        try:
            while not self._stopping.is_set():
                _, _, tasks = self._jobs.get()
                if tasks:
                    self._read(seat, tasks)
        except Exception as error:  # a fault of ours must end the run, not leave it waiting for ever
            self._broken = DeepwellError(f"reading stopped: {type(error).__name__}: {error}")
        finally:
            worker = self._workers.pop(seat, None)
            if worker is not None:
                worker.close()

    def _read(self, seat: int, tasks: Sequence[Task]) -> None:
        """Read a batch, with as many workers as it takes."""
        fruitless = 0
        while tasks and not self._stopping.is_set():
            done, begun, verdict = self._attempt(seat, tasks)
            tasks = tasks[done:]
            if not tasks or self._stopping.is_set():
                return
            fruitless = 0 if done or begun else fruitless + 1
            if begun or fruitless == _FRUITLESS:
                reason = verdict or "the process that read it died (it crashed, or the system was out of memory)"
                self._results.put((tasks[0], Outcome("failed", reason=reason)))
                tasks = tasks[1:]

    def _attempt(self, seat: int, tasks: Sequence[Task]) -> tuple[int, bool, str]:
        """Hand tasks to a worker. Returns how many it finished, whether it began another, and why it was killed."""
        done, begun = 0, False
        worker = self._workers.get(seat)
        try:
            if worker is None:
                try:
                    worker = self._workers[seat] = _Worker(self._setup)
                except DeepwellError as error:
                    self._broken = error
                    self._stopping.set()
                    return 0, False, ""
            send(worker.pipe_in, tuple(tasks))
            for task in tasks:
                receive(worker.pipe_out)
                begun = True
                worker.allowed_s = self._limits.slow_s if task.slow else self._limits.fast_s
                worker.started = time.monotonic()
                outcome = receive(worker.pipe_out)
                worker.started = None
                begun = False
                done += 1
                self._results.put((task, outcome))
            return done, False, ""
        except (EOFError, OSError, ValueError):
            verdict = worker.verdict if worker else ""
            self._workers.pop(seat, None)
            if worker is not None:
                worker.close()
            return done, begun, verdict

    def _watch(self) -> None:
        """Kill workers that take too long or too much."""
        import psutil

        while not self._stopping.wait(0.1):
            for worker in list(self._workers.values()):
                started = worker.started
                if started is None:
                    continue
                if time.monotonic() - started > worker.allowed_s:
                    worker.kill(f"reading it took more than {worker.allowed_s:.0f} seconds")
                    continue
                try:
                    resident = psutil.Process(worker.process.pid).memory_info().rss
                except psutil.Error:
                    continue
                if resident > self._limits.memory_mb * 2**20:
                    worker.kill(f"reading it took more than {self._limits.memory_mb} MB of memory")
