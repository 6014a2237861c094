"""The scheduler: budgets and limits kept, nobody starves, and every row that is read is the one that was written."""

import random

import pytest

from deepwell.errors import UsageError
from deepwell.lm.engine.blocks import BlockAllocator
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.sampler import SamplerState
from deepwell.lm.engine.scheduler import Part, Scheduler
from deepwell.lm.engine.sequence import Sequence

_STATE = SamplerState(SamplingParams(temperature=0), [], 8)


def _sequence(tokens: list[int], answer: int) -> Sequence:
    return Sequence(tokens, _STATE, limit=len(tokens) + answer)


def _scheduler(blocks: int, size: int = 2, budget: int = 8, most: int = 4) -> Scheduler:
    return Scheduler(BlockAllocator(blocks, size), token_budget=budget, most_sequences=most)


def test_a_prompt_is_computed_in_pieces_beside_those_that_decode() -> None:
    scheduler = _scheduler(32)
    short, long = _sequence([1, 2], 9), _sequence(list(range(15)), 9)
    scheduler.add(short)
    parts = scheduler.plan()
    assert [(part.start, part.count, part.chooses) for part in parts] == [(0, 2, True)]
    scheduler.complete(parts[0], [5])
    scheduler.add(long)
    seen = []
    for _ in range(3):
        parts = scheduler.plan()
        seen.append([(part.sequence is long, part.start, part.count) for part in parts])
        for part in parts:
            scheduler.complete(part, [6] if part.chooses else ())
    assert seen == [
        [(False, 2, 1), (True, 0, 7)],
        [(False, 3, 1), (True, 7, 7)],
        [(False, 4, 1), (True, 14, 1)],
    ]
    assert long.tokens[-1] == 6
    assert short.answer == [5, 6, 6, 6]


def test_prompts_get_less_of_a_step_while_others_wait_for_their_next_token() -> None:
    scheduler = Scheduler(BlockAllocator(32, 2), token_budget=8, most_sequences=4, prompt_budget=3)
    short, long = _sequence([1, 2], 2), _sequence(list(range(20)), 9)
    scheduler.add(short)
    scheduler.complete(scheduler.plan()[0], [5])
    scheduler.add(long)
    counts = []
    while long.remaining > 1:
        parts = scheduler.plan()
        counts.append([part.count for part in parts])
        for part in parts:
            scheduler.complete(part, [6] if part.chooses else ())
        if len(short.answer) == 2 and short.finish is None:
            scheduler.end(short, "length")
    assert counts == [[1, 3], [8], [8]]


def test_a_guess_is_computed_with_its_token_and_counts_where_it_was_right() -> None:
    scheduler = _scheduler(32, budget=8, most=2)
    sequence = _sequence([1, 2, 3], 20)
    scheduler.add(sequence)
    scheduler.complete(scheduler.plan()[0], [4])
    sequence.draft = [7, 8, 9]
    (part,) = scheduler.plan()
    assert (part.tokens, part.start, part.guessed) == ([4, 7, 8, 9], 3, 3)
    scheduler.complete(part, [7, 8, 1])  # the third guess was wrong
    assert sequence.tokens == [1, 2, 3, 4, 7, 8, 1]
    assert (sequence.computed, sequence.remaining) == (6, 1)
    assert len(sequence.digests) == 3


def test_a_beginning_that_was_computed_is_not_computed_again() -> None:
    scheduler = _scheduler(16)
    first = _sequence([1, 2, 3, 4, 5], 3)
    scheduler.add(first)
    scheduler.complete(scheduler.plan()[0], [6])
    second, third = _sequence([1, 2, 3, 4], 3), _sequence([1, 2, 9, 4], 3)
    scheduler.add(second)
    scheduler.add(third)
    parts = scheduler.plan()
    assert [(part.start, part.count) for part in parts] == [(5, 1), (2, 2), (2, 2)]  # the last token always is
    assert (first.reused, second.reused, third.reused) == (0, 2, 2)
    assert second.table[0] == first.table[0] == third.table[0]
    scheduler.end(first, "cancelled")
    assert scheduler.allocator.users(second.table[0]) == 2


def test_the_last_one_gives_way_when_blocks_run_out_and_goes_on_later() -> None:
    scheduler = _scheduler(5)
    old, young = _sequence([1, 2, 3, 4], 6), _sequence([5, 6], 4)
    scheduler.add(old)
    scheduler.add(young)
    for part in scheduler.plan():
        scheduler.complete(part, [7])
    while old.remaining and len(old.tokens) < 8:
        for part in scheduler.plan():
            scheduler.complete(part, [7])
    assert scheduler.preemptions == 1
    assert list(scheduler.waiting) == [young]
    assert young.table == []
    scheduler.end(old, "length")
    (part,) = scheduler.plan()
    assert part.sequence is young
    assert part.start + part.count == len(young.tokens)


def test_ending_frees_at_once_wherever_the_sequence_is_and_twice_is_once() -> None:
    scheduler = _scheduler(8, most=1)
    one, other = _sequence([1, 2, 3], 3), _sequence([1, 2, 3], 3)
    scheduler.add(one)
    scheduler.add(other)
    scheduler.plan()
    for sequence in (one, other, other):
        scheduler.end(sequence, "cancelled")
    assert scheduler.allocator.room == 8
    assert (one.finish, other.finish) == ("cancelled", "cancelled")
    assert not scheduler.plan()


def test_what_can_never_run_is_refused_with_the_numbers() -> None:
    scheduler = _scheduler(4)
    with pytest.raises(UsageError, match="5 tokens and the answer may have 4; the cache holds 8"):
        scheduler.add(_sequence([1] * 5, 4))
    with pytest.raises(UsageError, match="no tokens"):
        scheduler.add(_sequence([], 4))
    with pytest.raises(UsageError, match="3 tokens a step"):
        Scheduler(BlockAllocator(4, 2), token_budget=3, most_sequences=4)


class _Memory:
    """Stands for the cache and the network: a row is the whole text up to its token, and every read is checked."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.rows: dict[int, tuple[int, ...]] = {}

    def compute(self, part: Part) -> None:
        sequence, size = part.sequence, self.scheduler.allocator.block_size
        text = (sequence.tokens + sequence.draft)[: part.start + part.count]
        slots = [sequence.table[place // size] * size + place % size for place in range(len(text))]
        for place in range(part.start, len(text)):
            block = sequence.table[place // size]
            assert self.scheduler.allocator.users(block) == 1, "a block that others use is written"
            self.rows[slots[place]] = tuple(text[: place + 1])
        for place, slot in enumerate(slots):
            assert self.rows[slot] == tuple(text[: place + 1]), "a row that is read is not the one that was written"

    def check(self) -> None:
        allocator = self.scheduler.allocator
        users = [0] * allocator.blocks
        for sequence in self.scheduler.running:
            for block in sequence.table:
                users[block] += 1
        assert users == [allocator.users(block) for block in range(allocator.blocks)]
        assert all(not sequence.table for sequence in self.scheduler.waiting)
        assert allocator.in_use == sum(count > 0 for count in users)


@pytest.mark.parametrize("seed", range(6))
def test_thousands_of_random_arrivals_cancellations_and_evictions(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = _scheduler(rng.choice([6, 12, 40]), size=rng.choice([1, 2, 3]), budget=rng.choice([4, 9]))
    capacity = scheduler.allocator.blocks * scheduler.allocator.block_size
    memory = _Memory(scheduler)
    alive: list[Sequence] = []
    finished = 0
    for _ in range(2500):
        if rng.random() < 0.3 and len(alive) < 9:
            prompt = [rng.randrange(2) for _ in range(rng.randrange(1, min(14, capacity)))]
            alive.append(_sequence(prompt, rng.randrange(1, min(12, capacity - len(prompt) + 1))))
            scheduler.add(alive[-1])
        if alive and rng.random() < 0.05:
            scheduler.end(rng.choice(alive), "cancelled")
        for sequence in scheduler.running:
            if sequence.remaining == 1 and rng.random() < 0.5:
                room = sequence.limit - len(sequence.tokens) - 1
                sequence.draft = [rng.randrange(2) for _ in range(rng.randrange(4))][: max(0, room)]
        parts = scheduler.plan()
        assert sum(part.count for part in parts) <= scheduler.token_budget
        assert len({id(part.sequence) for part in parts}) == len(parts)
        assert parts or not alive or all(sequence.finish for sequence in alive), "nobody is computed, and some wait"
        for part in parts:
            memory.compute(part)
        for part in parts:
            chosen: list[int] = []
            if part.chooses:
                right = rng.randrange(part.guessed + 1)
                chosen = [*part.sequence.draft[:right], 2]
            scheduler.complete(part, chosen)
            part.sequence.draft = []
            if len(part.sequence.tokens) >= part.sequence.limit:
                assert len(part.sequence.tokens) == part.sequence.limit
                scheduler.end(part.sequence, "length")
                finished += 1
        memory.check()
        alive = [sequence for sequence in alive if sequence.finish is None]
    assert finished > 100
    for sequence in alive:
        scheduler.end(sequence, "cancelled")
    assert scheduler.allocator.room == scheduler.allocator.blocks


def test_equal_prompts_that_come_together_are_computed_once() -> None:
    scheduler = _scheduler(256, size=4, budget=80, most=8)
    prompt = [number % 7 for number in range(150)]
    same = [_sequence(list(prompt), 3) for _ in range(4)]
    longer, other = _sequence([*prompt, 1, 2, 3], 3), _sequence([9] * 30, 3)
    for sequence in (*same, longer, other):
        scheduler.add(sequence)
    steps = []
    for _ in range(3):
        parts = scheduler.plan()
        steps.append([(part.sequence, part.count) for part in parts])
        for part in parts:
            scheduler.complete(part, [5] if part.chooses else ())
    # The others wait for what the first one computes, and one that begins otherwise does not wait with them.
    assert steps[0] == [(same[0], 80)]
    assert steps[1] == [(same[0], 70), (other, 10)]
    assert steps[2] == [(same[0], 1), (other, 20), *((one, 2) for one in same[1:]), (longer, 5)]
    assert [one.reused for one in (*same, longer)] == [0, 148, 148, 148, 148]


def test_nobody_waits_for_a_beginning_that_is_not_computed_any_more() -> None:
    scheduler = _scheduler(256, size=4, budget=64, most=8)
    first, second = _sequence([1] * 200, 3), _sequence([1] * 200, 3)
    scheduler.add(first)
    scheduler.add(second)
    (part,) = scheduler.plan()
    scheduler.complete(part)
    scheduler.end(first, "cancelled")
    (part,) = scheduler.plan()
    assert (part.sequence is second, part.start) == (True, 64)


def test_a_short_beginning_is_not_worth_waiting_for() -> None:
    scheduler = _scheduler(256, size=4, budget=64, most=8)
    for last in (1, 2):
        scheduler.add(_sequence([3] * 20 + [last] * 5, 3))
    assert [part.start for part in scheduler.plan()] == [0, 0]
