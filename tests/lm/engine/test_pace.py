"""What guesses cost is measured, and they are made only where they bring more."""

import random

import pytest

from deepwell.lm.engine.pace import Pace


def _measured(fixed: float, each: float, *, noise: float = 0.0) -> Pace:
    rng, pace = random.Random(0), Pace()
    for _ in range(60):
        tokens = rng.choice([1, 1, 2, 5, 9])
        pace.note(tokens, (fixed + each * tokens) * (1 + noise * rng.uniform(-1, 1)))
    return pace


def test_the_line_of_the_steps_is_found_and_follows_them() -> None:
    assert _measured(0.02, 0.003).line == pytest.approx((0.02, 0.003))
    assert _measured(0.02, 0.003, noise=0.05).line == pytest.approx((0.02, 0.003), rel=0.2)
    pace = _measured(0.02, 0.003)
    for number in range(300):
        pace.note(1 + number % 4, 0.001 + 0.01 * (1 + number % 4))
    assert pace.line == pytest.approx((0.001, 0.01), rel=0.02)


def test_a_step_that_was_disturbed_counts_little() -> None:
    pace = _measured(0.02, 0.003)
    pace.note(1, 60.0)
    assert sum(pace.line) < 0.1


def test_before_two_sizes_were_measured_a_token_more_is_taken_to_cost_a_tenth() -> None:
    assert Pace().best(0.7, 4, 1) == 4
    assert Pace().best(0.05, 4, 1) == 0
    alone = Pace()
    for _ in range(5):
        alone.note(1, 0.011)
    assert alone.line == pytest.approx((0.01, 0.001))


@pytest.mark.parametrize(("fixed", "each", "rate", "sequences", "best"), [
    (1.0, 0.0, 0.1, 1, 8),  # free
    (1.0, 0.1, 0.0, 1, 0),  # never right
    (0.0, 1.0, 0.9, 1, 0),  # every token costs as much as a step
    (1.0, 0.5, 0.3, 1, 0),  # a third is right, and a token costs a third of a step
    (1.0, 0.5, 0.9, 1, 5), (1.0, 0.05, 0.9, 1, 8), (1.0, 0.05, 0.5, 1, 3),
    (1.0, 0.01, 0.5, 1, 5), (1.0, 0.01, 0.5, 32, 2), (1.0, 0.1, 0.9, 1, 8),
    (1.0, 0.1, 0.9, 32, 2),  # in company the weights are read for many, and what a token costs itself decides
    (1.0, 0.1, 0.7, 32, 0),
])  # fmt: skip
def test_the_best_length_makes_the_most_tokens_a_second(
    fixed: float, each: float, rate: float, sequences: int, best: int
) -> None:
    pace = _measured(fixed, each)
    assert pace.best(rate, 8, sequences) == best

    def speed(length: int) -> float:
        gained = sum(rate**right for right in range(1, length + 1))
        return (sequences + gained) / (fixed + each * (sequences + length))

    assert speed(best) == pytest.approx(max(map(speed, range(9))))
