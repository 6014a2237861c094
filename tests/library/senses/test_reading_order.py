"""Columns are read one after the other, tables by rows, and no line is lost."""

import random

from hypothesis import given
from hypothesis import strategies as st

from deepwell.library.senses.reading_order import reading_order

Quad = tuple[float, float, float, float]


def line(left: float, top: float, width: float, height: float = 10) -> Quad:
    return (left, top, left + width, top + height)


def shuffled(boxes: list[Quad]) -> list[Quad]:
    """The same lines in another order; what is read must not depend on how they were found."""
    return random.Random(3).sample(boxes, len(boxes))


def read(boxes: list[Quad]) -> list[Quad]:
    mixed = shuffled(boxes)
    return [mixed[i] for i in reading_order(mixed)]


def test_two_columns_under_a_heading() -> None:
    heading = [line(0, 0, 420, 20)]
    left = [line(0, 40 + 14 * i, 200) for i in range(8)]
    right = [line(220, 40 + 14 * i, 200) for i in range(8)]
    assert read(heading + left + right) == heading + left + right


def test_a_heading_between_two_blocks_of_columns() -> None:
    first = [line(x, 14 * i, 200) for x in (0, 220) for i in range(4)]
    heading = [line(0, 80, 420, 14)]
    second = [
        line(x, 110 + 14 * i, 200)
        for x in (
            0,
            220,
        )
        for i in range(4)
    ]
    assert read(first + heading + second) == first + heading + second


def test_three_columns_with_a_short_last_one() -> None:
    columns = [line(x, 14 * i, 150) for x, count in ((0, 9), (170, 9), (340, 4)) for i in range(count)]
    assert read(columns) == columns


def test_a_table_is_read_by_rows() -> None:
    rows = [line(x, 14 * i, 40) for i in range(6) for x in (0, 120, 240)]
    assert read(rows) == rows


def test_words_of_one_line_that_wave_stay_in_order() -> None:
    words = [line(60 * i, 100 + (i % 2) * 3, 50) for i in range(6)]
    assert read(words) == words


def test_nothing_to_read() -> None:
    assert reading_order([]) == []


@given(
    st.lists(
        st.tuples(st.floats(0, 900), st.floats(0, 900), st.floats(0, 300), st.floats(0, 50)).map(
            lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
        ),
        max_size=30,
    )
)
def test_every_line_is_read_once(boxes: list[Quad]) -> None:
    assert sorted(reading_order(boxes)) == list(range(len(boxes)))
