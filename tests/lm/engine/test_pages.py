"""Memory in large pages: aligned, apart from each other, and a forked child's writing is its own."""

import os

import pytest
import torch

from deepwell.lm.engine.pages import ALIGN, Pages


def test_tensors_stand_apart_at_whole_cache_lines() -> None:
    pages = Pages()
    first, second = pages.take(3, 5, dtype=torch.float32), pages.take(7, dtype=torch.bfloat16)
    first.fill_(1)
    second.fill_(2)
    assert first.shape == (3, 5) and bool((first == 1).all()) and bool((second == 2).all())
    assert first.data_ptr() % ALIGN == second.data_ptr() % ALIGN == 0


def test_what_is_larger_than_a_piece_gets_one_of_its_own() -> None:
    assert Pages().take(2**25 + 1, dtype=torch.uint8).shape == (2**25 + 1,)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_writes_to_memory_of_its_own() -> None:
    values = Pages().take(4, dtype=torch.int64)
    values.fill_(1)
    child = os.fork()
    if child == 0:
        values.fill_(2)
        os._exit(0)
    os.waitpid(child, 0)
    assert values.tolist() == [1, 1, 1, 1]
