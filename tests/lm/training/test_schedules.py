import dataclasses
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.errors import DataError, RecipeError, UsageError
from deepwell.lm.training.recipe import BatchSection, ScheduleSection
from deepwell.lm.training.schedules import Phase, Plan, learning_rate, plan, sequences_at

V3_TOKENS = 14_800e9
"""2K steps up, 10T at the full rate, 4.3T of cosine, 333B at a tenth, 167B at 7.3e-6 of 2.2e-4 (section 4.2)."""
V3 = ScheduleSection(
    kind="cosine", warmup=2000, hold=10_000 / 14_800, until=14_300 / 14_800, final=0.1,
    steps=((14_633 / 14_800, 7.3 / 220),),
)  # fmt: skip


def test_v3s_whole_schedule() -> None:
    steps = 14_800  # a billion tokens a step
    section = dataclasses.replace(V3, warmup=20)
    rate = [2.2e-4 * learning_rate(section, step, steps) for step in range(1, steps + 1)]
    assert rate[0] == pytest.approx(2.2e-4 / 20) and rate[9] == pytest.approx(1.1e-4)
    assert all(value == pytest.approx(2.2e-4) for value in rate[19:10_000])
    assert 2.19e-4 < rate[10_100] < 2.2e-4
    assert rate[10_000 + 2150 - 1] == pytest.approx((2.2e-4 + 2.2e-5) / 2)  # half of the cosine
    assert rate[14_298] > 2.2e-5 and rate[14_299] == pytest.approx(2.2e-5)
    assert all(value == pytest.approx(2.2e-5) for value in rate[14_299:14_633])
    assert all(value == pytest.approx(7.3e-6) for value in rate[14_633:])
    assert all(before >= after for before, after in pairwise(rate[20:]))


def test_v2_lites_steps() -> None:
    """4.2e-4, times 0.316 at 80 % and again at 90 % of the tokens (V2 report, appendix B)."""
    section = ScheduleSection(kind="steps", warmup=10, steps=((0.0, 1.0), (0.8, 0.316), (0.9, 0.316**2)))
    rates = [learning_rate(section, step, 100) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10:80] == [1.0] * 70 and rates[80:90] == [0.316] * 10
    assert rates[90:] == pytest.approx([0.0998] * 10, rel=1e-3)


def test_warmup_is_a_share_or_a_number_of_steps() -> None:
    for warmup in (0.1, 20.0):
        section = ScheduleSection(kind="constant", warmup=warmup)
        assert [learning_rate(section, step, 200) for step in (1, 5, 20, 21, 200)] == pytest.approx(
            [0.05, 0.25, 1, 1, 1]
        )
    assert learning_rate(ScheduleSection(kind="constant", warmup=0), 1, 10) == 1
    assert learning_rate(ScheduleSection(kind="constant", warmup=1), 1, 10) == 1
    assert learning_rate(ScheduleSection(kind="constant", warmup=100), 10, 10) == 0.1  # longer than the run


def test_decay_begins_where_warmup_ends() -> None:
    for kind, half in (("cosine", (1 + math.cos(math.pi / 2)) / 2), ("linear", 0.5)):
        section = ScheduleSection(kind=kind, warmup=0.2, final=0.0)  # type: ignore[arg-type]
        assert learning_rate(section, 20, 100) == pytest.approx(1)
        assert learning_rate(section, 60, 100) == pytest.approx(half)
        assert learning_rate(section, 100, 100) == 0


def test_constant_with_steps_after() -> None:
    section = ScheduleSection(kind="constant", warmup=0, steps=((0.5, 0.25),))
    assert [learning_rate(section, step, 4) for step in (1, 2, 3, 4)] == [1, 1, 0.25, 0.25]


@given(
    st.sampled_from(["constant", "cosine", "linear"]), st.floats(0, 50), st.floats(0, 1), st.floats(0, 1),
    st.floats(0, 1), st.integers(1, 60),
)  # fmt: skip
def test_rates_rise_then_fall_and_stay_within_0_and_1(
    kind: str, warmup: float, hold: float, until: float, final: float, steps: int
) -> None:
    hold, until = sorted((hold, until))
    section = ScheduleSection(kind=kind, warmup=warmup, hold=hold, until=until, final=final)  # type: ignore[arg-type]
    rates = [learning_rate(section, step, steps) for step in range(1, steps + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    if warmup == 0 or kind == "constant":
        falls = [after - before for before, after in pairwise(rates)]
        assert all(fall <= 1e-12 for fall in falls) if warmup == 0 else all(fall >= -1e-12 for fall in falls)


def test_steps_of_one_size() -> None:
    whole = plan(BatchSection(steps=7, sequences=4), rows_per_epoch=10, row_tokens=64)
    assert whole == Plan(7, 28, 28, (Phase(1, 0, 4),))
    assert [whole.rows(step) for step in (1, 2, 7)] == [(0, 4), (4, 4), (24, 4)]
    assert [whole.share(step) for step in (1, 2, 7, 8)] == [0, 4 / 28, 24 / 28, 1]


def test_tokens_end_with_a_full_step() -> None:
    whole = plan(BatchSection(tokens=1000, sequences=4), rows_per_epoch=10, row_tokens=64)
    assert (whole.steps, whole.total, whole.end) == (4, 16, 16)
    whole = plan(BatchSection(tokens=1025, sequences=4), rows_per_epoch=10, row_tokens=64)
    assert (whole.steps, whole.total, whole.end) == (5, 17, 20)
    assert whole.rows(5) == (16, 4) and whole.share(5) == 16 / 17


def test_epochs_end_with_what_is_left() -> None:
    whole = plan(BatchSection(epochs=2.5, sequences=8), rows_per_epoch=10, row_tokens=64)
    assert [whole.rows(step) for step in range(1, whole.steps + 1)] == [(0, 8), (8, 8), (16, 8), (24, 1)]
    assert plan(BatchSection(epochs=0.01, sequences=8), rows_per_epoch=10, row_tokens=64).rows(1) == (0, 1)


def test_rows_that_processes_cannot_share_are_told_before_the_first_step() -> None:
    ramp = ((0.0, 2.0), (0.5, 8.0))
    plan(BatchSection(steps=9, sequences=8, ramp=ramp), rows_per_epoch=10, row_tokens=64).check_processes(2)
    with pytest.raises(
        UsageError, match=r"step 1 has 2 rows, which 4 processes cannot share equally\n.*multiples of 4"
    ):
        plan(BatchSection(steps=9, sequences=8, ramp=ramp), rows_per_epoch=10, row_tokens=64).check_processes(4)
    left_over = plan(BatchSection(epochs=2.5, sequences=8), rows_per_epoch=10, row_tokens=64)
    left_over.check_processes(1)
    with pytest.raises(UsageError, match=r"the last step has the 1 rows that are left, .*\n.*batch.steps = 4"):
        left_over.check_processes(2)


def test_a_ramp_as_v3s() -> None:
    """3072 rows rising to 15360 over the first 469B of 14.8T tokens, in steps of 3072."""
    ramp = tuple((i * 469 / 14_800 / 4, 3072.0 * (i + 1)) for i in range(5))
    batch = BatchSection(tokens=int(V3_TOKENS), sequences=15_360, ramp=ramp)
    whole = plan(batch, rows_per_epoch=10**10, row_tokens=4096)
    assert len(whole.phases) == 5
    sizes = [whole.rows(phase.step)[1] for phase in whole.phases]
    assert sizes == [3072, 6144, 9216, 12_288, 15_360]
    tokens = whole.rows(whole.phases[-1].step)[0] * 4096
    assert 469e9 <= tokens < 469.1e9
    assert V3_TOKENS <= whole.end * 4096 < V3_TOKENS + 15_360 * 4096
    assert whole.learning_rate(V3, 2000) == 1 and whole.learning_rate(V3, 1000) == 0.5
    at = [whole.learning_rate(V3, step) for step in (whole.steps // 2, whole.steps)]
    assert at == pytest.approx([1, 7.3 / 220])


def test_rates_follow_tokens_where_steps_differ_in_size() -> None:
    batch = BatchSection(epochs=1, sequences=4, ramp=((0.0, 1.0), (0.5, 4.0)))
    whole = plan(batch, rows_per_epoch=16, row_tokens=8)
    assert [whole.rows(step)[1] for step in range(1, whole.steps + 1)] == [1] * 8 + [4] * 2
    section = ScheduleSection(kind="linear", warmup=0, final=0.0)
    assert [whole.learning_rate(section, step) for step in (1, 8, 9, 10)] == pytest.approx([15 / 16, 0.5, 0.25, 0])
    even = plan(BatchSection(steps=9, sequences=3), rows_per_epoch=16, row_tokens=8)
    for step in range(1, 10):
        assert even.learning_rate(V3, step) == pytest.approx(learning_rate(V3, step, 9))


def test_sequences_at() -> None:
    assert sequences_at(BatchSection(steps=1, sequences=5), 0.7) == 5
    batch = BatchSection(steps=1, sequences=8, ramp=((0.0, 2.0), (0.25, 4.0), (0.5, 8.0)))
    assert [sequences_at(batch, share) for share in (0, 0.2, 0.25, 0.5, 0.99)] == [2, 2, 4, 8, 8]


def test_a_ramp_ends_with_the_size_of_the_others() -> None:
    with pytest.raises(RecipeError, match=r"^batch.ramp ends with 4 rows, and batch.sequences is 8"):
        BatchSection(steps=1, sequences=8, ramp=((0.0, 2.0), (0.25, 4.0)))


@st.composite
def _batches(draw: st.DrawFn) -> BatchSection:
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    begins = [
        0.0,
        *sorted(draw(st.lists(st.floats(0.01, 0.99), min_size=len(sizes) - 1, max_size=len(sizes) - 1, unique=True))),
    ]
    length = draw(st.sampled_from([{"steps": 40}, {"steps": 1}, {"tokens": 3000}, {"epochs": 3.7}, {"epochs": 0.2}]))
    ramp = tuple((begin, float(size)) for begin, size in zip(begins, sizes, strict=True))
    return BatchSection(**length, sequences=sizes[-1], ramp=ramp)  # type: ignore[arg-type]


@settings(deadline=None)
@given(_batches(), st.integers(1, 100))
def test_every_row_comes_once_and_in_order(batch: BatchSection, rows_per_epoch: int) -> None:
    whole = plan(batch, rows_per_epoch=rows_per_epoch, row_tokens=10)
    at = 0
    for step in range(1, whole.steps + 1):
        first, count = whole.rows(step)
        assert first == at and count >= 1
        assert 0 <= whole.share(step) < 1
        size = sequences_at(batch, whole.share(step))
        if not batch.steps:  # where steps are given, their sizes make the shares, and borders move by a step
            assert count == min(size, whole.end - first)
        at += count
    assert at == whole.end
    if batch.steps:
        assert whole.steps == batch.steps
    elif batch.tokens:
        assert 0 <= whole.end * 10 - batch.tokens < 10 * batch.sequences + 10 * 20
    else:
        assert whole.end == max(1, round(batch.epochs * rows_per_epoch))
    shares = [whole.share(step) for step in range(1, whole.steps + 2)]
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)


def test_ramps_of_given_steps_reach_their_shares() -> None:
    batch = BatchSection(steps=1000, sequences=16, ramp=((0.0, 4.0), (0.1, 8.0), (0.3, 16.0)))
    whole = plan(batch, rows_per_epoch=10, row_tokens=10)
    borders = [whole.share(phase.step) for phase in whole.phases]
    assert borders == pytest.approx([0, 0.1, 0.3], abs=2e-3)


def test_steps_that_do_not_exist() -> None:
    whole = plan(BatchSection(steps=3, sequences=1), rows_per_epoch=1, row_tokens=1)
    for step in (0, 4):
        with pytest.raises(UsageError, match=f"step {step} does not exist; the run has steps 1 to 3"):
            whole.rows(step)


def test_no_rows() -> None:
    with pytest.raises(DataError, match="makes no row"):
        plan(BatchSection(steps=3), rows_per_epoch=0, row_tokens=8)
