"""Taking turns: how many are worked on, how many wait, and what ends them."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.server.admission import Admission, Admit
from deepwell.server.settings import Settings

from .asgi import Client, Reply, Work, a_request, ready, settled


def house(work: Work, **more: Any) -> tuple[Admission, Admit]:
    admission = Admission(Settings(**more))
    return admission, Admit(work, admission)


def empty(admission: Admission) -> bool:
    return (admission.inside, admission.running, admission.waiting) == (0, 0, 0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))  # type: ignore[arg-type]


def test_so_many_are_worked_on_so_many_wait_and_more_are_sent_away() -> None:
    async def test() -> None:
        work = Work()
        admission, admit = house(work, most_concurrent=2, queue_length=3)
        asked = [asyncio.create_task(Client([b"%d" % number]).ask(admit)) for number in range(5)]
        await settled()
        assert (admission.running, admission.waiting, work.began) == (2, 3, 2)
        refused = await Client().ask(admit)
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert refused.headers["retry-after"] == "1"
        # What makes no work needs no turn.
        looking = asyncio.create_task(Client().ask(admit, a_request("GET", "/v1/models")))
        await settled()
        assert work.began == 3
        work.go_on.set()
        assert (await looking).status == 200
        assert [(await one).body for one in asked] == [b"0", b"1", b"2", b"3", b"4"]
        assert empty(admission)

    run(test)


def test_turns_are_taken_in_the_order_of_coming() -> None:
    async def test() -> None:
        order: list[bytes] = []

        async def note(scope: Any, receive: Any, send: Any) -> None:
            message = await receive()
            order.append(message["body"])
            await settled()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        admission = Admission(Settings(most_concurrent=1))
        admit = Admit(note, admission)
        await asyncio.gather(*(Client([b"%d" % number]).ask(admit) for number in range(9)))
        assert order == [b"%d" % number for number in range(9)]

    run(test)


def test_a_turn_that_does_not_come_is_not_waited_for() -> None:
    async def test() -> None:
        work = Work()
        admission, admit = house(work, most_concurrent=1, queue_seconds=0.01)
        first = asyncio.create_task(Client().ask(admit))
        await settled()
        refused = await Client().ask(admit)
        assert (refused.status, refused.error["code"]) == (429, "queue_timeout")
        work.go_on.set()
        await first
        assert empty(admission)

    run(test)


def test_a_client_that_leaves_the_queue_gives_up_its_place() -> None:
    async def test() -> None:
        work = Work()
        admission, admit = house(work, most_concurrent=1)
        clients = [Client() for _ in range(3)]
        tasks = [asyncio.create_task(client.ask(admit)) for client in clients]
        await settled()
        clients[1].leave.set()
        assert (await tasks[1]).status == 0
        assert (admission.waiting, work.began) == (1, 1)
        work.go_on.set()
        assert [(await task).status for task in tasks] == [200, 0, 200]
        assert (work.began, empty(admission)) == (2, True)

    run(test)


def test_a_body_is_read_before_a_turn_is_taken() -> None:
    async def test() -> None:
        admission, admit = house(ready(), most_concurrent=1)
        slow = Client([b"{"], endless=True)
        coming = asyncio.create_task(slow.ask(admit))
        await settled()
        assert (admission.inside, admission.running) == (1, 0)
        assert (await Client().ask(admit)).status == 200
        slow.leave.set()
        await coming
        assert (await Client([b"0" * 99]).ask(Admit(ready(), Admission(Settings(max_request_bytes=9))))).status == 413
        assert empty(admission)

    run(test)


def test_what_takes_too_long_is_ended_with_504() -> None:
    async def test() -> None:
        work = Work()
        admission, admit = house(work, request_seconds=0.01)
        refused = await Client().ask(admit)
        assert (refused.status, refused.error["code"], refused.error["type"]) == (
            504,
            "request_timeout",
            "server_error",
        )
        assert (work.cancelled, empty(admission)) == (1, True)

    run(test)


def test_a_stream_that_takes_too_long_ends_with_an_error_as_its_last_event() -> None:
    async def test() -> None:
        work = Work(stream=True)
        admission, admit = house(work, request_seconds=0.01)
        reply = await Client().ask(admit)
        assert (reply.status, reply.ended, work.cancelled) == (200, True, 1)
        first, last, rest = reply.body.split(b"\n\n")
        assert (first, rest) == (b"data: {}", b"")
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "request_timeout"
        assert empty(admission)

    run(test)


def test_a_client_that_does_not_read_cannot_hold_up_the_end_of_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepwell.server.admission._LAST_WORDS_SECONDS", 0.01)

    async def test() -> None:
        admission, admit = house(Work(stream=True), request_seconds=0.01)
        client = Client()

        async def stuck(message: Any) -> None:
            if client.reply.body:
                await asyncio.Event().wait()
            await client.send(message)

        await admit(a_request(), client.receive, stuck)
        assert (client.reply.ended, empty(admission)) == (False, True)

    run(test)


def test_a_timeout_of_the_application_itself_is_not_taken_for_ours() -> None:
    async def test() -> None:
        async def failing(scope: Any, receive: Any, send: Any) -> None:
            raise TimeoutError("of a socket")

        admission = Admission(Settings())
        with pytest.raises(TimeoutError, match="of a socket"):
            await Client().ask(Admit(failing, admission))
        assert empty(admission)

    run(test)


def test_draining_ends_what_runs_and_takes_nothing_new() -> None:
    async def test() -> None:
        work = Work()
        admission, admit = house(work, most_concurrent=1)
        asked = [asyncio.create_task(Client().ask(admit)) for _ in range(2)]
        await settled()
        drained = asyncio.create_task(admission.drain())
        await settled()
        refused = await Client().ask(admit)
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        assert not drained.done()
        work.go_on.set()
        assert [(await one).status for one in asked] == [200, 200]
        assert await drained

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_what_does_not_end_while_draining_is_told_so(stream: bool) -> None:
    async def test() -> None:
        work = Work(stream=stream)
        admission, admit = house(work, most_concurrent=1, drain_seconds=0.01)
        asked = [asyncio.create_task(Client().ask(admit)) for _ in range(2)]
        await settled()
        assert not await admission.drain()
        first, waiting = [await one for one in asked]
        assert (first.status, waiting.status) == (200 if stream else 503, 503)
        assert b'"code": "draining"' in first.body
        assert (work.began, empty(admission)) == (1, True)

    run(test)


def test_an_idle_server_is_drained_at_once() -> None:
    async def test() -> None:
        assert await Admission(Settings(drain_seconds=0.0)).drain()

    run(test)


ACTS = st.lists(st.tuples(st.sampled_from(["come", "leave", "go", "cancel"]), st.integers(0, 30)), max_size=40)


@given(ACTS, st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_no_place_is_lost_whatever_clients_do(acts: list[tuple[str, int]], most: int, queue: int) -> None:
    async def test() -> None:
        admission = Admission(Settings(most_concurrent=most, queue_length=queue))
        clients: list[tuple[Client, asyncio.Task[Reply], Work]] = []
        for act, number in acts:
            if act == "come":
                work, client = Work(), Client()
                clients.append((client, asyncio.create_task(client.ask(Admit(work, admission))), work))
            elif clients:
                client, task, work = clients[number % len(clients)]
                client.leave.set() if act == "leave" else work.go_on.set() if act == "go" else task.cancel()
            await settled(number % 4)
            assert admission.running <= most
            assert admission.inside <= most + queue
        await settled()
        for _, _, work in clients:
            work.go_on.set()
        await asyncio.gather(*(task for _, task, _ in clients), return_exceptions=True)
        assert empty(admission)

    run(test)
