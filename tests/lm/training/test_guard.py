"""Losses that are not finite: skipped, gone back from, and at last given up on, without an endless circle."""

import itertools
import json
import math

import pytest

from deepwell.errors import TrainingError
from deepwell.lm.training.guard import Guard
from deepwell.lm.training.recipe import GuardSection

NAN, INF = math.nan, math.inf


def guard(patience: int = 3, rollbacks: int = 2) -> Guard:
    return Guard(GuardSection(patience=patience, rollbacks=rollbacks))


@pytest.mark.parametrize(("loss", "norm"), [*itertools.product((1.0, NAN, INF, -INF), repeat=2)])
def test_a_step_is_bad_if_either_number_is_not_finite(loss: float, norm: float) -> None:
    expected = "go" if loss == 1.0 and norm == 1.0 else "skip"
    assert guard().judge(1, loss, norm) == expected


def test_a_good_step_forgives() -> None:
    one = guard()
    verdicts = [one.judge(n, NAN if bad else 1.0, 1.0) for n, bad in enumerate([1, 1, 0, 1, 1, 0, 1, 1, 1], 1)]
    assert verdicts == ["skip", "skip", "go"] * 2 + ["skip", "skip", "rollback"]
    assert one.passed == {1, 2, 4, 5, 7, 8, 9}


def test_every_history_of_up_to_eight_steps_gives_what_the_rules_say() -> None:
    """Against a plain count over the whole history, for every history."""
    for patience, allowed in ((1, 0), (1, 1), (2, 1), (3, 0)):
        for history in itertools.product((False, True), repeat=8):
            one, in_a_row, backs = guard(patience, allowed), 0, 0
            for step, bad in enumerate(history, 1):
                in_a_row = in_a_row + 1 if bad else 0
                if in_a_row == patience and backs == allowed:
                    with pytest.raises(TrainingError):
                        one.judge(step, NAN, 1.0)
                    break
                verdict = one.judge(step, NAN if bad else 1.0, 1.0)
                if in_a_row == patience:
                    in_a_row, backs = 0, backs + 1
                    assert verdict == "rollback"
                else:
                    assert verdict == ("skip" if bad else "go")
                assert one.rollbacks == backs


def run(one: Guard, bad: set[int], steps: int, every: int) -> tuple[list[int], int]:
    """A loop as the real one: the state is saved every so many steps, and loaded on a rollback."""
    saved, step, computed = (0, one.state()), 0, []
    while step < steps:
        step += 1
        if step not in one.passed:
            computed.append(step)
            if one.judge(step, NAN if step in bad else 1.0, 1.0) == "rollback":
                step, state = saved
                one.restore(json.loads(json.dumps(state)))
                continue
        if step % every == 0:
            saved = step, one.state()
    return computed, one.rollbacks


def test_the_run_gets_over_rows_that_are_always_bad() -> None:
    computed, rollbacks = run(guard(), {12, 13, 14}, steps=20, every=5)
    assert rollbacks == 1
    assert computed == [*range(1, 15), 11, *range(15, 21)]


def test_bad_rows_before_and_behind_a_checkpoint() -> None:
    # The checkpoint of step 10 is written between the bad steps; its count of bad steps is older than the rollback.
    computed, rollbacks = run(guard(), {9, 10, 11, 12}, steps=14, every=5)
    assert rollbacks == 1
    assert computed == [*range(1, 12), *range(12, 15)]


def test_weights_that_are_lost_end_the_run() -> None:
    with pytest.raises(TrainingError) as caught:
        run(guard(patience=2, rollbacks=2), set(range(11, 100)), steps=50, every=5)
    assert "stopped at step 16" in caught.value.message
    assert "loss is nan" in caught.value.message
    assert "2 times already" in caught.value.message
    assert "optimizer.lr" in caught.value.hint


def test_the_error_names_gradient_and_rows() -> None:
    one = guard(patience=1, rollbacks=0)
    with pytest.raises(TrainingError) as caught:
        one.judge(7, 2.0, INF, where="rows 56 to 63")
    assert "the gradient is inf; bad steps: 7 (rows 56 to 63)" in caught.value.message
    assert "gone back" not in caught.value.message


def test_a_resumed_run_counts_on() -> None:
    first = guard(patience=3)
    first.judge(1, NAN, 1.0)
    first.judge(2, NAN, 1.0)
    second = guard(patience=3)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert second.judge(3, NAN, 1.0) == "rollback"
    assert second.passed == {1, 2, 3}


def test_an_older_state_forgets_nothing() -> None:
    one = guard(patience=1)
    old = one.state()
    assert one.judge(4, NAN, 1.0) == "rollback"
    one.restore(old)
    assert one.passed == {4}
    assert one.rollbacks == 1
    # The loop may also put its own later state back on top.
    later = one.state()
    one.restore(old)
    one.restore(later)
    assert one.state() == later
