"""Generation for many clients: one thread drives the engine, and the event loop gets what each step has brought.

    event loop            preparing threads            engine's thread
    begin(jobs)  ------>  template, tokens, grammar
                 <------  prepared
                 ----------------------------------->  start between two steps
                                                       step, step, step ...
    news()       <-----------------------------------  what came, one message a step for all clients
    cancel()     ----------------------------------->  between two steps; the blocks are free then

However many clients there are, nobody but the engine's thread waits for a step or holds the model's lock, and what a
slow client has not read yet is put together, so it costs others nothing.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from deepwell.lm.engine.request import Prepared, Request
from deepwell.server.generation import Answer, Generation, News

if TYPE_CHECKING:
    from deepwell.lm.engine.model import Model
    from deepwell.lm.engine.params import SamplingParams
    from deepwell.lm.engine.sequence import Finish

_PREPARING_THREADS = 4

_log = logging.getLogger(__name__)


class EngineFailedError(Exception):
    """A step of the engine broke: a fault of ours, and the end of every request that was in it."""


class StoppedError(Exception):
    """The engine's thread has been closed."""


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to be written; the fields are the arguments of ``Model.prepare``."""

    prompt: Any
    params: SamplingParams
    tools: Sequence[Mapping[str, Any]] | None = None
    continue_last: bool = False


@dataclass(eq=False, slots=True)
class _Running:
    """An answer that the engine works on."""

    generation: Generation
    index: int
    request: Request

    def news(self, finish: Finish | None, error: Exception | None) -> News:
        """What has come since the last time."""
        request = self.request
        return News(self.index, request.poll(), request.reused_tokens, request.reasoning_tokens, finish, error)


class Driver:
    """The thread that drives a model's engine, and the door to it.

    Attributes:
        model: The model.
        on_end: Called in the event loop with each request whose last answer has ended.
    """

    def __init__(self, model: Model) -> None:
        """The thread starts with the first request."""
        self.model = model
        self.on_end: list[Callable[[Generation], None]] = []
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._running: list[_Running] = []
        self._thread: threading.Thread | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    async def begin(self, jobs: Sequence[Job]) -> Generation:
        """Start the answers to one request; all are begun when this returns, or none.

        Raises:
            DeepwellError: As ``Model.prepare`` and ``Model.start`` say.
            StoppedError: The driver is closed.
        """
        loop = asyncio.get_running_loop()
        generation = Generation(loop, self.cancel)
        prepared = await loop.run_in_executor(self._preparing(), self._prepare, jobs)
        if self._closed:
            raise StoppedError("the server is stopping")
        started: asyncio.Future[None] = loop.create_future()
        self._orders.put(partial(self._start, generation, prepared, started))
        try:
            await started
        except BaseException:
            generation.cancel()
            raise
        return generation

    def cancel(self, generation: Generation) -> None:
        """End what goes on of a request, before the next step."""
        self._orders.put(partial(self._cancel, generation))

    def close(self) -> None:
        """End everything that goes on, and the thread."""
        self._closed = True
        self._orders.put(None)
        if self._thread is not None:
            self._thread.join()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    # ---- preparing ----

    def _preparing(self) -> ThreadPoolExecutor:
        """The threads that prepare requests; the engine's thread is started with them, by the first request."""
        if self._closed:
            raise StoppedError("the server is stopping")
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare")
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
        return self._threads

    def _prepare(self, jobs: Sequence[Job]) -> list[Prepared]:
        return [
            self.model.prepare(job.prompt, job.params, tools=job.tools, continue_last=job.continue_last) for job in jobs
        ]

    # ---- the engine's thread ----

    def _run(self) -> None:
        while True:
            orders = [] if self._running else [self._orders.get()]
            while not self._orders.empty():
                orders.append(self._orders.get())
            for order in orders:
                if order is not None:
                    order()
            if None in orders:
                self._end_all(StoppedError("the server is stopping"))
                return
            if not self._running:
                continue
            try:
                self.model.step()
            except Exception:
                _log.exception("a step of the engine failed")
                self._end_all(EngineFailedError("the engine failed; the server's log says how"))
            self._hand_out()

    def _start(self, generation: Generation, prepared: Sequence[Prepared], started: asyncio.Future[None]) -> None:
        running: list[_Running] = []
        try:
            if self._closed:
                raise StoppedError("the server is stopping")
            for index, one in enumerate(prepared):
                running.append(_Running(generation, index, self.model.start(one)))
        except Exception as error:
            for begun in running:
                begun.request.cancel()
            self._call(generation, _settle, started, error)
            return
        self._running += running
        generation.answers = [Answer(one.index, one.request.prompt_tokens) for one in running]
        self._call(generation, _settle, started)

    def _cancel(self, generation: Generation) -> None:
        for one in self._running:
            if one.generation is generation:
                one.request.cancel()
        self._hand_out()

    def _end_all(self, error: Exception) -> None:
        """Cancel everything; each answer's error says why."""
        news: dict[Generation, list[News]] = defaultdict(list)
        for one in self._running:
            # An engine that broke in the midst of a step may not be able to.
            with suppress(Exception):
                one.request.cancel()
            news[one.generation].append(one.news("error", error))
        self._running.clear()
        self._tell(news)

    def _hand_out(self) -> None:
        """Tell the event loop what has come for whom."""
        news: dict[Generation, list[News]] = defaultdict(list)
        for one in self._running:
            its = one.news(one.request.finish, one.request.error)
            if its.finish is not None or its.piece.tokens or its.piece.text or its.piece.reasoning:
                news[one.generation].append(its)
        self._running = [one for one in self._running if one.request.finish is None]
        self._tell(news)

    def _tell(self, news: Mapping[Generation, Sequence[News]]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Sequence[News]]]] = defaultdict(list)
        for generation, its in news.items():
            loops[generation.loop].append((generation, its))
        for theirs in loops.values():
            self._call(theirs[0][0], self._deliver, theirs)

    def _call(self, generation: Generation, function: Callable[..., None], *args: Any) -> None:
        """Call something in the event loop; nobody is there to hear it if that has been closed."""
        try:
            generation.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            for one in self._running:
                if one.generation.loop is generation.loop:
                    one.request.cancel()
            self._running = [one for one in self._running if one.generation.loop is not generation.loop]

    # ---- the event loop again ----

    def _deliver(self, news: Sequence[tuple[Generation, Sequence[News]]]) -> None:
        for generation, its in news:
            if generation.hear(its):
                for listener in self.on_end:
                    listener(generation)


def _settle(future: asyncio.Future[None], error: Exception | None = None) -> None:
    """Let whoever waits for a future go on, or fail; unless they have left."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)
