import pytest
import torch

from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.engine.scheduler import Part
from deepwell.lm.engine.sequence import Sequence

pytest.importorskip("triton")

from deepwell.lm.engine.gpu.inputs import DecodeInputs, first_seen

from ..networks import SHAPES, greedy


def inputs(window: int | None = None) -> DecodeInputs:
    cache = PagedCache(SHAPES["grouped"], blocks=8, block_size=4, dtype=torch.float32)
    return DecodeInputs(cache, most=8, longest=32, window=window)


def part(table: list[int], tokens: list[int], start: int) -> Part:
    sequence = Sequence(tokens, greedy(tokens), limit=40)
    sequence.table = table
    return Part(sequence, start, len(tokens) - start)


def test_a_step_stands_at_the_same_addresses_and_is_filled_up_with_its_last_token() -> None:
    made = inputs()
    views = made.tokens(4), made.places(4), made.slots(4)
    made.fill([part([5, 2], [10, 11, 12, 13, 14], 4), part([7], [20, 21, 22], 1)], 4)
    assert [view.tolist() for view in views] == [[14, 21, 22, 22], [4, 1, 2, 2], [8, 29, 30, 30]]
    looks = made.looks(4)
    assert looks.tables[:, :2].tolist() == [[5, 2], [7, 0], [7, 0], [7, 0]]
    assert looks.firsts.tolist() == [0, 0, 0, 0]
    assert looks.lengths.tolist() == [5, 2, 3, 3]


def test_a_table_that_grew_or_changed_is_copied_again() -> None:
    made = inputs()
    looks = made.looks(2)
    grown = part([5], [10, 11, 12, 13], 3)
    made.fill([grown], 2)
    grown.sequence.table += [3]
    grown.sequence.tokens += [14]
    made.fill([Part(grown.sequence, 4, 1)], 2)
    assert looks.tables[:, :2].tolist() == [[5, 3], [5, 3]]
    made.fill([part([1, 6], [0] * 5, 4), grown], 2)
    assert looks.tables[:, :2].tolist() == [[1, 6], [5, 3]]


def test_a_window_moves_the_first_place() -> None:
    made = inputs(window=3)
    made.fill([part([0, 1], list(range(6)), 5)], 1)
    assert made.looks(1).firsts.tolist() == [3]
    assert [first_seen(place, 3) for place in (0, 2, 3)] == [0, 0, 1]
    assert first_seen(100, None) == 0
