"""First fit: everything once, nothing cut, rows well filled."""

import random

from hypothesis import given
from hypothesis import strategies as st

from deepwell.lm.training.data.packing import WINDOW, first_fit


@given(st.lists(st.integers(0, 50), max_size=120), st.integers(1, 5))
def test_every_item_once_and_no_row_too_long(lengths: list[int], window: int) -> None:
    rows = first_fit(lengths, 50, window=window)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(row == sorted(row) and sum(lengths[item] for item in row) <= 50 for row in rows)
    assert all(rows)


@given(st.lists(st.integers(1, 50), max_size=60))
def test_it_is_first_fit_while_all_rows_are_open(lengths: list[int]) -> None:
    expected: list[list[int]] = []
    for item, length in enumerate(lengths):
        row = next((row for row in expected if sum(lengths[one] for one in row) + length <= 50), None)
        if row is None:
            expected.append([item])
        else:
            row.append(item)
    assert first_fit(lengths, 50, window=1000) == expected


def test_rows_are_nearly_full() -> None:
    dice = random.Random(0)
    lengths = [min(int(dice.lognormvariate(4.5, 0.7)), 512) for _ in range(5000)]
    rows = first_fit(lengths, 512, window=WINDOW)
    assert sum(lengths) / (512 * len(rows)) > 0.97
