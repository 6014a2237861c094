"""Tokens from logits: the right distribution, the same draws whatever else is in the batch, and the full log-probs."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from deepwell.errors import DeepwellError, UsageError
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.sampler import Sampled, SamplerState, sample, verify

V = 50


def state(prompt: tuple[int, ...] = (), vocab: int = V, **params: Any) -> SamplerState:
    return SamplerState(SamplingParams(**params), prompt, vocab)


def draws(logits: Tensor, count: int, **params: Any) -> Counter[int]:
    """How often each token comes, from ``count`` requests with seeds of their own."""
    states = [state(vocab=len(logits), seed=seed, **params) for seed in range(count)]
    return Counter(one.token for one in sample(logits.expand(count, -1), states))


def expected(logits: Tensor, keep: Tensor, temperature: float = 1.0) -> Tensor:
    probs = torch.softmax(logits.double() / temperature, dim=-1) * keep
    return probs / probs.sum()


def assert_drawn_from(counts: Counter[int], probs: Tensor) -> None:
    """Chi-squared against ``probs``; the bound is passed by chance about once in a million seeds."""
    total = sum(counts.values())
    assert all(probs[token] > 0 for token in counts)
    frequent = [token for token in range(len(probs)) if probs[token] * total >= 5]
    chi = sum((counts[token] - float(probs[token]) * total) ** 2 / (float(probs[token]) * total) for token in frequent)
    free = len(frequent)
    assert chi < free + 5 * math.sqrt(2 * free) + 12, (chi, free)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(3)) * 1.5


def test_greedy_takes_the_most_probable_and_the_first_of_equals() -> None:
    rows = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 3.0]])
    assert [one.token for one in sample(rows, [state(vocab=3, temperature=0)] * 2)] == [1, 0]
    assert sample(rows[:1], [state(vocab=3, top_k=1)]) == [Sampled(1)]


def test_draws_follow_the_probabilities(logits: Tensor) -> None:
    assert_drawn_from(draws(logits, 6000), expected(logits, torch.ones(V)))
    assert_drawn_from(draws(logits, 6000, temperature=0.5), expected(logits, torch.ones(V), 0.5))


def test_top_k_keeps_that_many(logits: Tensor) -> None:
    keep = torch.zeros(V)
    keep[logits.topk(7).indices] = 1
    assert_drawn_from(draws(logits, 4000, top_k=7), expected(logits, keep))
    assert len(draws(logits, 4000, top_k=7)) == 7


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for top_p, kept in ((0.1, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4)):
        counts = draws(logits, 800, top_p=top_p)
        assert sorted(counts) == list(range(kept)), top_p
    assert_drawn_from(draws(logits, 4000, top_p=0.79), torch.tensor([0.625, 0.375, 0.0, 0.0]))


def test_top_p_works_on_what_top_k_left_and_a_flat_vocabulary_is_no_exception() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of three, the first two have 7/9; of all four they have 0.7 and 0.75 would need the third.
    assert sorted(draws(logits, 500, top_k=3, top_p=0.75)) == [0, 1]
    flat = torch.linspace(0, 0.01, 5000)
    assert min(draws(flat, 300, top_p=0.5)) >= 2400


def test_min_p_is_a_share_of_the_most_probable() -> None:
    logits = torch.tensor([0.6, 0.25, 0.1, 0.05]).log()
    assert sorted(draws(logits, 500, min_p=0.4)) == [0, 1]
    assert sorted(draws(logits, 500, min_p=0.16)) == [0, 1, 2]


def test_a_seed_repeats_alone_and_among_others(logits: Tensor) -> None:
    rows = torch.stack([logits.roll(shift) for shift in range(32)])
    settings: list[dict[str, Any]] = [
        {}, {"top_p": 0.7}, {"top_k": 5, "temperature": 1.3}, {"min_p": 0.1}, {"temperature": 0}, {"logprobs": 3},
        {"presence_penalty": 1.0}, {"repetition_penalty": 1.3},
    ]  # fmt: skip
    made = [(index, settings[index % len(settings)]) for index in range(32)]
    together = [state((1, 2, 3), seed=seed, **params) for seed, params in made]
    alone = [state((1, 2, 3), seed=seed, **params) for seed, params in made]
    for _ in range(6):
        batch = sample(rows, together)
        single = [sample(row[None], [one])[0] for row, one in zip(rows, alone, strict=True)]
        assert batch == single
        for first, second, chosen in zip(together, alone, batch, strict=True):
            first.accept(chosen.token)
            second.accept(chosen.token)


def test_another_seed_or_place_draws_another_number() -> None:
    one, other, none = state(seed=1), state(seed=2), state()
    numbers = [one.uniform(), other.uniform(), none.uniform(), state().uniform()]
    one.accept(0)
    numbers.append(one.uniform())
    assert len(set(numbers)) == 5
    assert all(0 <= number < 1 for number in numbers)
    assert one.count == 1
    assert state(seed=-1).uniform() == state(seed=2**64 - 1).uniform()


def test_log_probabilities_are_of_the_full_distribution_at_the_sampling_temperature(logits: Tensor) -> None:
    full = torch.log_softmax(logits.double() / 0.7, dim=-1)
    one = sample(logits[None], [state((4,), seed=5, temperature=0.7, top_p=0.3, top_k=4, min_p=0.2, logprobs=3,
                                      repetition_penalty=1.5)])[0]  # fmt: skip
    assert one.logprob == pytest.approx(float(full[one.token]), abs=1e-5)
    best = full.topk(3)
    assert [token for token, _ in one.top] == best.indices.tolist()
    assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    greedy = sample(logits[None], [state(temperature=0, logprobs=0)])[0]
    assert greedy.logprob == pytest.approx(float(torch.log_softmax(logits, dim=-1).max()), abs=1e-5)
    assert greedy.top == ()
    assert sample(logits[None], [state()])[0].logprob is None


def test_penalties_count_the_answer_and_repetition_the_prompt_too() -> None:
    logits = torch.tensor([1.0, -1.0, 2.0, 3.0])
    one = state((0, 1), vocab=4, presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=2.0)
    assert one.adjust(logits).tolist() == [0.5, -2.0, 2.0, 3.0]
    one.accept(3)
    one.accept(3)
    assert one.adjust(logits).tolist() == [0.5, -2.0, 2.0, 1.5 - 0.5 - 0.5]
    assert logits.tolist() == [1.0, -1.0, 2.0, 3.0]


def test_rows_of_padding_are_never_chosen_but_count_in_log_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 9.0]])
    one = sample(logits, [state(vocab=2, temperature=0, logprobs=0)])[0]
    assert one.token == 1
    assert one.logprob == pytest.approx(float(torch.log_softmax(logits[0], 0)[1]), abs=1e-5)
    assert sample(logits, [state(vocab=2, repetition_penalty=1.2, temperature=0)])[0].token == 1


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
def test_a_draw_at_either_end_takes_a_token_that_is_kept(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SamplerState, "uniform", lambda self: number)
    logits = torch.tensor([[-9.0, 1.0, 1.1, 1.2, -9.0]])
    assert sample(logits, [state(vocab=5, top_p=0.9)])[0].token == (1 if number == 0 else 3)


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 100.0])
def test_extreme_temperatures_stay_numbers(temperature: float) -> None:
    logits = torch.tensor([[80.0, -80.0, -math.inf, 79.0]])
    one = sample(logits, [state(vocab=4, temperature=temperature, seed=0, logprobs=2)])[0]
    assert one.token in (0, 1, 3)
    assert one.logprob is not None
    assert math.isfinite(one.logprob)


def test_logits_in_half_precision_are_computed_with_in_float32(logits: Tensor) -> None:
    rows = logits.bfloat16()[None]
    assert sample(rows, [state(seed=9, logprobs=2)]) == sample(rows.float(), [state(seed=9, logprobs=2)])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(DeepwellError, match="finite"):
        sample(torch.tensor([[0.0, bad, 0.0]]), [state(vocab=3)])


def test_the_wrong_number_of_states_or_tokens_is_an_error() -> None:
    with pytest.raises(UsageError, match="one row for each of 1"):
        sample(torch.zeros(2, V), [state()])
    with pytest.raises(UsageError, match="vocabulary of 50"):
        sample(torch.zeros(1, V - 1), [state()])
    assert sample(torch.zeros(0, V), []) == []


class _Only:
    """A constraint that lets certain tokens through, and remembers what came."""

    def __init__(self, *allowed: int) -> None:
        self.allowed, self.came = list(allowed), []
        self.done = False

    def restrict(self, logits: Tensor) -> Tensor:
        rows = torch.full_like(logits, -math.inf)
        rows[self.allowed] = logits[self.allowed]
        return rows

    def accept(self, token: int) -> None:
        self.came.append(token)


def test_a_constraint_bounds_draws_and_is_told_of_them(logits: Tensor) -> None:
    only = _Only(4, 9)
    one = SamplerState(SamplingParams(seed=1, top_p=0.9), (), V, constraint=only)
    for _ in range(8):
        chosen = sample(logits[None], [one])[0].token
        assert chosen in (4, 9)
        one.accept(chosen)
    assert len(only.came) == 8
    assert not one.done
    only.done = True
    assert one.done
    nothing = SamplerState(SamplingParams(), (), V, constraint=_Only())
    with pytest.raises(DeepwellError, match="no token"):
        sample(logits[None], [nothing])


def test_no_token_of_a_draft_comes_behind_an_answer_that_is_whole(logits: Tensor) -> None:
    class Two(_Only):
        def accept(self, token: int) -> None:
            super().accept(token)
            self.done = len(self.came) == 2

    one = SamplerState(SamplingParams(temperature=0), (), V, constraint=Two(7))
    assert [chosen.token for chosen in verify(logits.expand(5, -1), one, [7, 7, 7, 7])] == [7, 7]


@pytest.mark.parametrize("params", [{"temperature": 0}, {"seed": 3}, {"seed": 4, "top_p": 0.8, "logprobs": 2}])
def test_a_draft_changes_nothing_but_the_number_of_passes(params: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, V, generator=generator)  # whatever comes before, the next logits are those of the place
    plain, tokens = state(frequency_penalty=0.5, **params), []
    for row in rows:
        one = sample(row[None], [plain])[0]
        plain.accept(one.token)
        tokens.append(one)
    right = [one.token for one in tokens[:5]]
    assert verify(rows, state(frequency_penalty=0.5, **params), right) == tokens
    wrong = [*right[:2], (right[2] + 1) % V, *right[3:]]
    drafted = state(frequency_penalty=0.5, **params)
    assert verify(rows, drafted, wrong) == tokens[:3]
    assert drafted.count == 3
    assert verify(rows[:1], state(frequency_penalty=0.5, **params), []) == tokens[:1]
    assert verify(rows, state(frequency_penalty=0.5, **params), right, ends={right[1]})[-1].token == right[1]
    with pytest.raises(UsageError, match="one row more"):
        verify(rows, state(), [1])


def test_a_verified_draft_leaves_the_distribution_as_it_is(logits: Tensor) -> None:
    """Rejection with a draft that is often wrong: the first token is drawn from p, not from p with the draft's bias."""
    rows = torch.stack([logits, logits])
    likely = int(logits.argmax())
    counts = Counter(verify(rows, state(seed=seed), [likely])[0].token for seed in range(3000))
    assert_drawn_from(counts, expected(logits, torch.ones(V)))
