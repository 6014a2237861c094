"""Generators that are put back draw the same again."""

import json
import random

import numpy as np
import pytest
import torch

from deepwell.lm.training.random_state import random_state, set_random_state


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn()),
            *torch.rand(3).tolist(), *torch.randn(2).tolist()]  # fmt: skip


@pytest.mark.parametrize("before", range(3))
def test_all_generators_draw_the_same_again(before: int) -> None:
    for _ in range(before):  # a normal number is drawn by pairs: the second one waits in the state
        random.gauss(0, 1)
        np.random.randn()
        torch.randn(1)
    tensors, values = random_state()
    first = draws()
    draws()
    set_random_state({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(values)))
    assert draws() == first


def test_taking_the_state_moves_nothing() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    random_state()
    assert torch.equal(torch.rand(2), expected)
