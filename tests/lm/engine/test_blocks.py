"""Blocks: never lost, never given away while in use, and found by what is in them."""

import random

import pytest

from deepwell.errors import DeepwellError
from deepwell.lm.engine.blocks import BlockAllocator, chain


def test_a_name_says_everything_before_it() -> None:
    same = [1, 2, 3, 4]
    assert chain([*same, 5, 6], 2, [])[:2] == chain(same, 2, [])
    assert chain([9, *same[1:]], 2, [])[1] != chain(same, 2, [])[1]  # its block is equal, what stands before is not
    assert len(chain([1, 2, 3], 2, [])) == 1  # a block that is not full has no name
    grown = chain(same, 2, chain(same[:2], 2, []))
    assert grown == chain(same, 2, [])
    assert len(chain(same, 2, [], upto=3)) == 1


def test_blocks_of_one_user_lie_side_by_side_while_there_is_room() -> None:
    allocator = BlockAllocator(32, 16)
    one = allocator.allocate(3, likely=3)
    other = allocator.allocate(2, likely=2)
    for _ in range(3):
        one += allocator.allocate(1, behind=one[-1])
    assert one == list(range(6))
    assert other == [6, 7]


def test_the_longest_unused_is_given_away_first_and_the_end_of_a_sequence_before_its_beginning() -> None:
    allocator = BlockAllocator(4, 2)
    names = chain(range(8), 2, [])
    blocks = allocator.allocate(4)
    for block, name in zip(blocks, names, strict=True):
        allocator.name(block, name)
    allocator.release(blocks)
    assert (allocator.kept, allocator.room, allocator.in_use) == (4, 4, 0)
    allocator.allocate(1)
    assert allocator.find(names) == blocks[:3]
    found = allocator.find(names[:1])
    assert allocator.room_beside(found) == 2
    allocator.share(found)
    allocator.allocate(2)
    assert allocator.find(names) == blocks[:1]
    assert allocator.users(blocks[0]) == 1
    with pytest.raises(DeepwellError, match="1 blocks of the cache are wanted, and 0 are there"):
        allocator.allocate(1)


def test_forgetting_makes_kept_blocks_free_and_leaves_those_in_use() -> None:
    allocator = BlockAllocator(4, 2)
    names = chain(range(8), 2, [])
    blocks = allocator.allocate(2)
    for block, name in zip(blocks, names, strict=False):
        allocator.name(block, name)
    allocator.release(blocks[1:])
    allocator.forget()
    assert allocator.find(names) == []
    assert (allocator.kept, allocator.room) == (0, 3)
    allocator.release(blocks[:1])
    assert (allocator.kept, allocator.room) == (0, 4)


def test_releasing_twice_is_a_fault() -> None:
    allocator = BlockAllocator(2, 2)
    (block,) = allocator.allocate(1)
    allocator.release([block])
    with pytest.raises(AssertionError):
        allocator.release([block])


@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_random_uses_lose_and_mix_up_nothing(seed: int) -> None:
    """Beside the allocator stands what each block holds; a block that is found must hold what its name says."""
    rng = random.Random(seed)
    allocator = BlockAllocator(24, 2)
    content: dict[int, tuple[int, ...]] = {}
    held: list[tuple[list[int], tuple[int, ...]]] = []
    for _ in range(3000):
        if rng.random() < 0.55:
            tokens = tuple(rng.randrange(2) for _ in range(2 * rng.randrange(1, 8)))
            names = chain(tokens, 2, [])
            found = allocator.find(names)
            for place, block in enumerate(found):
                assert content[block] == tokens[: 2 * place + 2]
            if allocator.room_beside(found) < len(names) - len(found):
                continue
            allocator.share(found)
            fresh = allocator.allocate(len(names) - len(found), likely=rng.randrange(3))
            assert not set(fresh) & {block for blocks, _ in held for block in blocks} and len(set(fresh)) == len(fresh)
            table = found + fresh
            for place, block in enumerate(table):
                if block in fresh:
                    content[block] = tokens[: 2 * place + 2]
                    if rng.random() < 0.8:
                        allocator.name(block, names[place])
            held.append((table, tokens))
        elif held:
            allocator.release(held.pop(rng.randrange(len(held)))[0])
        users = [0] * 24
        for table, tokens in held:
            for place, block in enumerate(table):
                users[block] += 1
                assert content[block] == tokens[: 2 * place + 2]
        assert users == [allocator.users(block) for block in range(24)]
        assert allocator.in_use == sum(count > 0 for count in users)
    for table, _ in held:
        allocator.release(table)
    assert allocator.room == 24
