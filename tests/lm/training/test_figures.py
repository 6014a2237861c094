"""Numbers as people read them."""

import math

import pytest

from deepwell.lm.training import figures


@pytest.mark.parametrize(
    ("number", "told"),
    [(0, "0"), (7, "7"), (0.25, "0.25"), (999, "999"), (1000, "1.00k"), (12_345, "12.3k"), (999_600, "1.00M"),
     (671e9, "671B"), (14.8e12, "14.8T"), (3.2e24, "3200000E"), (math.nan, "nan")],
)  # fmt: skip
def test_counts(number: float, told: str) -> None:
    assert figures.count(number) == told


@pytest.mark.parametrize(
    ("number", "told"), [(4.4e11, "440 GFLOP/s"), (12, "12 FLOP/s"), (1.9e15, "1.90 PFLOP/s"), (math.inf, "nan FLOP/s")]
)
def test_rates(number: float, told: str) -> None:
    assert figures.rate(number, "FLOP/s") == told


@pytest.mark.parametrize(
    ("number", "told"),
    [(2.34567, "2.346"), (0, "0.000"), (0.00012, "1.20e-04"), (123456789.0, "1.23e+08"), (math.nan, "nan"),
     (math.inf, "inf")],
)  # fmt: skip
def test_decimals(number: float, told: str) -> None:
    assert figures.decimals(number) == told


@pytest.mark.parametrize(("part", "told"), [(0.344, "34%"), (0.0344, "3.4%"), (0, "0%"), (1, "100%"), (math.nan, "–")])
def test_shares(part: float, told: str) -> None:
    assert figures.share(part) == told


@pytest.mark.parametrize(
    ("seconds", "told", "ticking"),
    [(0.44, "0.4 s", "0:00"), (9.96, "10 s", "0:10"), (59.6, "1 min 0 s", "1:00"), (310, "5 min 10 s", "5:10"),
     (3725, "1 h 2 min", "1:02:05"), (86400 + 7200, "1 d 2 h", "26:00:00"), (math.nan, "–", "–:––")],
)  # fmt: skip
def test_durations(seconds: float, told: str, ticking: str) -> None:
    assert figures.duration(seconds) == told
    assert figures.clock(seconds) == ticking


@pytest.mark.parametrize(
    ("seconds", "told"), [(3, "now"), (300, "5 min ago"), (3 * 3600 + 1, "3 h ago"), (2e5, "2 d ago")]
)
def test_how_long_ago(seconds: float, told: str) -> None:
    assert figures.ago(seconds) == told


def test_smoothing_is_right_from_the_first_value_and_passes_over_what_is_not_finite() -> None:
    assert figures.smooth([4.0, 4.0, 4.0]) == pytest.approx([4.0, 4.0, 4.0])
    first, second, third, fourth = figures.smooth([math.nan, 2.0, math.inf, 4.0], weight=0.5)
    assert math.isnan(first)
    assert (second, third) == (2.0, 2.0)
    assert fourth == pytest.approx((0.5 * 2 + 1 * 4) / 1.5)
    assert figures.smooth([]) == []


def test_imbalance_is_the_largest_over_the_mean() -> None:
    assert figures.imbalance((0.25, 0.25, 0.25, 0.25)) == 1
    assert figures.imbalance((0.0, 0.0, 1.0, 0.0)) == 4
    assert math.isnan(figures.imbalance((0.0, 0.0)))
    assert math.isnan(figures.imbalance(()))


def test_the_last_layers_are_those_of_multi_token_prediction() -> None:
    assert figures.layer_names(3, 1) == ["MoE 1", "MoE 2", "MTP 1"]
    assert figures.layer_names(1, 2) == ["MTP 1"]
    assert figures.layer_names(0, 0) == []


def test_a_centred_mean_follows_a_straight_line_without_lag() -> None:
    line = [float(number) for number in range(10)]
    assert figures.centred(line, 2)[:8] == pytest.approx(line[:8])
    assert figures.centred(line, 2)[9] == pytest.approx((7 + 8 + 9) / 3)
    assert figures.centred([1.0, math.nan, 3.0, 5.0], 1) == pytest.approx([1, 2, 4, 4])
    assert all(map(math.isnan, figures.centred([math.nan, math.inf], 3)))
    assert figures.centred([], 3) == []
