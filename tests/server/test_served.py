"""The names of what is served, and the tokens that a request is charged."""

import pytest

from deepwell.server.driver import Driver
from deepwell.server.errors import ApiError
from deepwell.server.generation import Answer
from deepwell.server.schemas import Usage, seeds
from deepwell.server.served import Served
from deepwell.testing import HashEncoder

from .tiny import Live


def test_a_name_says_whether_to_think(server: Live) -> None:
    served = Served(Driver(server.model), "tiny", HashEncoder())
    assert [served.thinks(name) for name in ("tiny", "deepseek-chat", "deepseek-reasoner")] == [None, False, True]
    for name in ("hash-encoder", "gpt-7"):
        with pytest.raises(ApiError) as caught:
            served.thinks(name)
        assert (caught.value.status_code, caught.value.param) == (404, "model")
    assert Served(Driver(server.model), "deepseek-chat").names == ["deepseek-chat", "deepseek-reasoner"]
    assert Served(Driver(server.model), "deepseek-chat").thinks("deepseek-chat") is None


def test_usage_counts_a_prompt_once_for_all_of_its_answers() -> None:
    answers = [
        Answer(index, prompt_tokens=10 * (1 + index // 2), reused_tokens=index, tokens=3, reasoning_tokens=1)
        for index in range(4)
    ]
    usage = Usage.of(answers, choices=2)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (30, 12, 42)
    assert (usage.prompt_cache_hit_tokens, usage.prompt_cache_miss_tokens) == (2, 28)
    assert usage.prompt_tokens_details.cached_tokens == 2
    assert usage.completion_tokens_details.reasoning_tokens == 4


def test_seeds_of_several_answers_differ() -> None:
    assert seeds(None, 2) == [None, None]
    assert seeds(5, 3) == [5, 6, 7]
    assert all(0 <= one < 2**63 for one in seeds(-(2**63), 2) + seeds(2**63, 2) if one is not None)
