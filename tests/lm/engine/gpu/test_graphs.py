from itertools import pairwise

import pytest
import torch

pytest.importorskip("triton")

from deepwell.lm.engine.gpu.graphs import SIZES, Graphs, size_for


def test_a_step_takes_the_next_larger_graph() -> None:
    assert [size_for(count) for count in (1, 3, 9, 17, 64, 65, 128)] == [1, 4, 16, 24, 64, 80, 128]
    assert size_for(SIZES[-1] + 1) is None
    # Never more than twice the work for nothing.
    assert all(larger <= 2 * smaller for smaller, larger in pairwise(SIZES))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_computation_reads_its_inputs_anew() -> None:
    given = torch.ones(4, device="cuda")
    replay = Graphs(given.device).record(lambda: given * 2)
    given.fill_(5)
    assert replay().tolist() == [10.0] * 4
