"""What the event loop keeps of answers between two looks at them."""

import asyncio

from deepwell.lm.engine.request import StreamPiece
from deepwell.lm.engine.sampler import Sampled
from deepwell.server.generation import Answer, Generation, News


def _generation(answers: int) -> tuple[Generation, list[Generation]]:
    cancelled: list[Generation] = []
    made = Generation(asyncio.get_running_loop(), cancelled.append)
    made.answers = [Answer(index, prompt_tokens=5) for index in range(answers)]
    return made, cancelled


def _news(index: int, text: str, *, over: bool = False, thought: int = 0) -> News:
    piece = StreamPiece(text, "", (Sampled(ord(text[0])),), thought)
    return News(index, piece, 2, thought, "stop" if over else None, None)


def test_what_was_not_fetched_is_put_together() -> None:
    async def look() -> None:
        generation, _ = _generation(2)
        assert not generation.hear([_news(1, "a", thought=1)])
        assert not generation.hear([_news(1, "b", thought=1), _news(0, "x")])
        (first, its), (second, joined) = await generation.news()
        assert (first.index, its.text, second.index, joined.text) == (0, "x", 1, "ab")
        assert [one.token for one in joined.sampled] == [ord("a"), ord("b")]
        assert joined.thought_length == 1
        assert (second.tokens, second.reused_tokens, second.reasoning_tokens) == (2, 2, 1)
        assert generation.ended is None and generation.first is not None

    asyncio.run(look())


def test_it_is_over_when_all_have_ended_and_all_was_fetched() -> None:
    async def look() -> None:
        generation, cancelled = _generation(2)
        assert not generation.hear([_news(0, "a", over=True)])
        assert generation.hear([_news(1, "b", over=True)])
        assert not generation.over
        assert len(await generation.news()) == 2
        assert generation.over
        assert await generation.news() == []
        with generation:
            pass
        assert cancelled == []

    asyncio.run(look())


def test_whoever_waits_is_woken_and_leaving_cancels() -> None:
    async def look() -> None:
        generation, cancelled = _generation(1)
        with generation:
            waiting = asyncio.create_task(generation.news())
            await asyncio.sleep(0)
            generation.hear([_news(0, "a")])
            assert [piece.text for _, piece in await waiting] == ["a"]
            assert await generation.news(0.001) == []
        assert cancelled == [generation]

    asyncio.run(look())
