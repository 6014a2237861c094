"""Every setting is checked where it is made, and the error names it."""

from typing import Any

import pytest

from deepwell.errors import UsageError
from deepwell.lm.engine.params import SamplingParams

WRONG: list[tuple[str, Any]] = [
    ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", "1"),
    ("temperature", True), ("temperature", 101), ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("top_k", 1.5),
    ("min_p", 1.2), ("presence_penalty", 2.5), ("frequency_penalty", -3), ("repetition_penalty", 0), ("max_tokens", 0),
    ("max_tokens", None), ("seed", 2**64), ("seed", 1.0), ("logprobs", -1), ("logprobs", 21), ("logprobs", True),
    ("thinking_budget", -1), ("stop", ""), ("stop", ["a", ""]), ("stop", [1]), ("stop", 3), ("stop", ["a"] * 65),
    ("json_schema", "{}"), ("json_schema", {"enum": [float("nan")]}), ("json_schema", {"enum": [object()]}),
    ("regex", 3), ("choice", []), ("choice", "yes"), ("choice", ["yes", ""]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_an_error_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})


def test_values_at_the_border_are_taken() -> None:
    SamplingParams(temperature=100, top_p=1e-9, min_p=1, presence_penalty=-2, frequency_penalty=2, logprobs=20)
    SamplingParams(temperature=0, seed=2**64 - 1, thinking_budget=0, max_tokens=1, logprobs=0)


def test_one_form_at_a_time_and_none_that_goes_on_behind_its_end() -> None:
    with pytest.raises(UsageError, match="regex and choice exclude each other"):
        SamplingParams(regex="a", choice=["a"])
    with pytest.raises(UsageError, match="ignore_eos"):
        SamplingParams(regex="a", ignore_eos=True)


def test_one_stop_string_is_a_list_of_one_and_lists_are_kept_apart_from_the_caller() -> None:
    given = ["a", "b"]
    params = SamplingParams(stop="\n", choice=given)
    given.append("c")
    assert params.stop == ("\n",)
    assert params.choice == ("a", "b")
    assert hash(SamplingParams(stop=["x"])) == hash(SamplingParams(stop="x"))


def test_what_follows_from_the_settings() -> None:
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(top_k=1).greedy
    assert not SamplingParams().greedy
    assert SamplingParams(repetition_penalty=1.1).penalises
    assert not SamplingParams().penalises
    assert SamplingParams(json_schema={}).constrained
    assert not SamplingParams().constrained
