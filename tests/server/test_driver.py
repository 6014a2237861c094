"""The thread that drives the engine: many clients, clients that leave, steps that fail, and the end."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import deepwell
from deepwell.errors import DeepwellError, UsageError
from deepwell.lm import SamplingParams
from deepwell.server.driver import Driver, EngineFailedError, Job, StoppedError
from deepwell.server.generation import Generation

from .tiny import Live, live, tiny_model, until

LONG = SamplingParams(seed=1, max_tokens=4000, ignore_eos=True)
SHORT = SamplingParams(seed=1, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> deepwell.Model:
    """Reads 4,096 tokens, so that an answer can go on for seconds."""
    return tiny_model(tmp_path_factory.mktemp("long"), context=4096)


@pytest.fixture
def patient(model: deepwell.Model) -> Iterator[Live]:
    with live(model) as up:
        yield up


@pytest.fixture
def driver(model: deepwell.Model) -> Iterator[Driver]:
    made = Driver(model)
    yield made
    made.close()
    assert not model.engine.busy and model.engine.allocator.in_use == 0


async def _all(generation: Generation) -> list[str]:
    texts = ["" for _ in generation.answers]
    while not generation.over:
        for answer, piece in await generation.news():
            texts[answer.index] += piece.text
    return texts


def test_answers_come_in_pieces_and_are_the_models_own(driver: Driver) -> None:
    ended: list[Generation] = []
    driver.on_end.append(ended.append)

    async def ask() -> Generation:
        with await driver.begin([Job("Deep wells", SHORT), Job("a", SHORT)]) as generation:
            assert [answer.prompt_tokens for answer in generation.answers] == [
                len(driver.model.tokenizer.encode(text)) for text in ("Deep wells", "a")
            ]
            texts = await _all(generation)
            assert await generation.news() == []
        alone = driver.model.generate(["Deep wells", "a"], SHORT)
        assert texts == [one.text for one in alone]
        return generation

    generation = asyncio.run(ask())
    assert ended == [generation]
    assert [(answer.tokens, answer.finish, answer.error) for answer in generation.answers] == [(8, "length", None)] * 2
    assert generation.first is not None and generation.ended is not None
    assert generation.begun < generation.first < generation.ended


def test_waiting_for_news_ends_with_its_time(driver: Driver) -> None:
    async def ask() -> None:
        with await driver.begin([Job("Deep wells", LONG)]) as generation:
            await generation.news()
            before = generation.answers[0].tokens
            assert await generation.news(0.0) == [] or generation.answers[0].tokens > before

    asyncio.run(ask())


def test_a_request_that_is_cancelled_ends_at_once_and_tells_so(driver: Driver) -> None:
    async def ask() -> Generation:
        generation = await driver.begin([Job("Deep wells", LONG), Job("a", LONG)])
        await generation.news()
        generation.cancel()
        await _all(generation)
        return generation

    generation = asyncio.run(ask())
    assert [answer.finish for answer in generation.answers] == ["cancelled"] * 2
    assert all(answer.tokens < 4000 for answer in generation.answers)


def test_a_request_begins_whole_or_not_at_all(driver: Driver) -> None:
    async def ask(*jobs: Job) -> None:
        await driver.begin(list(jobs))

    too_long = Job("deep " * 5000, LONG)
    with pytest.raises(UsageError, match="this network reads 4096"):
        asyncio.run(ask(Job("a", LONG), too_long))
    with pytest.raises(UsageError, match="messages"):
        asyncio.run(ask(Job("a", LONG), Job([{"role": "nobody"}], LONG)))
    assert until(lambda: not driver.model.engine.busy)


def test_a_client_that_leaves_before_its_request_has_begun_leaves_nothing_behind(driver: Driver) -> None:
    async def ask() -> None:
        for delay in (0.0, 0.001, 0.003, 0.01):
            beginning = asyncio.create_task(driver.begin([Job("Deep wells " * 100, LONG)]))
            await asyncio.sleep(delay)
            if not beginning.cancel():
                (await beginning).cancel()
            await asyncio.wait([beginning])
            if not beginning.cancelled():
                beginning.result().cancel()
        # The next one is begun behind all of them.
        await _all(await driver.begin([Job("a", SHORT)]))

    asyncio.run(ask())
    assert until(lambda: not driver.model.engine.busy)


def test_a_step_that_fails_ends_its_requests_and_not_the_server(
    patient: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> bool:
        monkeypatch.undo()
        raise ZeroDivisionError("secret")

    asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
    for stream in (False, True):
        monkeypatch.setattr(patient.model, "step", broken)
        with pytest.raises(openai.APIError) as caught:
            told = patient.client.chat.completions.create(**asked, stream=stream)
            list(told)
        assert "secret" not in str(caught.value)
        assert isinstance(caught.value, openai.InternalServerError) != stream
        assert "ZeroDivisionError: secret" in caplog.text
        caplog.clear()
        assert patient.client.chat.completions.create(**asked).choices
    assert patient.idle()
    assert isinstance(patient.ended[0].answers[0].error, EngineFailedError)


def test_an_answer_that_cannot_go_on_is_one_clients_error(patient: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepwell.lm.engine.grammar import Grammar

    def broken(self: Grammar, token: int) -> None:
        raise DeepwellError("the answer's grammar cannot be followed", hint="Simplify the schema.")

    monkeypatch.setattr(Grammar, "accept", broken)
    asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
    form = {"response_format": {"type": "json_object"}}
    with pytest.raises(openai.BadRequestError, match="Simplify the schema"):
        patient.client.chat.completions.create(**asked, **form)
    with pytest.raises(openai.APIError, match="cannot be followed"):
        list(patient.client.chat.completions.create(**asked, **form, stream=True))
    assert patient.client.chat.completions.create(**asked).choices
    assert patient.idle()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_memory(patient: Live, stream: bool) -> None:
    body = json.dumps({
        "model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4000, "stream": stream, "n": 2,
        "seed": 1,
    }).encode()  # fmt: skip
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    with socket.create_connection(patient.address) as connection:
        connection.sendall(head.encode() + body)
        if stream:
            assert b"200 OK" in connection.recv(4096)
        assert until(lambda: patient.model.engine.busy)
    assert until(lambda: bool(patient.ended))
    assert "cancelled" in [answer.finish for answer in patient.ended[0].answers]
    assert until(patient.idle)


def test_many_clients_at_once_are_served_by_few_threads(patient: Live) -> None:
    most = 0

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        nonlocal most
        text = ""
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"Question {number % 8}"}], max_tokens=8, seed=number,
            stream=True,
        )  # fmt: skip
        async for chunk in stream:
            ours = [thread for thread in threading.enumerate() if thread.name.startswith(("prepare", "engine"))]
            most = max(most, len(ours))
            text += chunk.choices[0].delta.content or ""
        return text

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=patient.url, api_key="none", max_retries=0) as client:
            return list(await asyncio.gather(*(one(client, number) for number in range(64))))

    texts = asyncio.run(all_of_them())
    assert 1 <= most <= 8
    # Each got what it gets alone.
    for number in (0, 17, 63):
        messages = [{"role": "user", "content": f"Question {number % 8}"}]
        assert patient.model.chat(messages, SamplingParams(seed=number, max_tokens=8)).text == texts[number]
    assert len(patient.ended) == 64
    assert until(patient.idle)


def test_a_driver_that_is_closed_ends_what_goes_on_and_takes_no_more(model: deepwell.Model) -> None:
    driver = Driver(model)

    async def ask() -> Generation:
        generation = await driver.begin([Job("a", LONG)])
        await generation.news()
        await asyncio.get_running_loop().run_in_executor(None, driver.close)
        await _all(generation)
        with pytest.raises(StoppedError):
            await driver.begin([Job("a", LONG)])
        return generation

    generation = asyncio.run(ask())
    assert isinstance(generation.answers[0].error, StoppedError)
    assert not model.engine.busy and model.engine.allocator.in_use == 0
    Driver(model).close()


def test_an_event_loop_that_is_gone_takes_its_requests_with_it(driver: Driver) -> None:
    async def ask() -> None:
        await (await driver.begin([Job("a", LONG)])).news()

    asyncio.run(ask())
    assert until(lambda: not driver.model.engine.busy)
