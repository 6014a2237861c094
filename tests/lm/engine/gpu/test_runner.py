"""The GPU's runner on a CPU: its kernel in Triton's interpreter, its graphs recomputed instead of replayed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from deepwell.lm.engine.engine import Engine
from deepwell.lm.engine.gpu import runner_for
from deepwell.lm.engine.gpu.runner import GPURunner, GPUStep
from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.engine.runner import Runner
from deepwell.lm.engine.scheduler import Part
from deepwell.lm.engine.sequence import Sequence
from deepwell.lm.model.config import DynamicGating
from deepwell.lm.model.transformer import Transformer

from ..networks import SHAPES, greedy


def again(compute: Callable[[], Any]) -> Callable[[], Any]:
    """A graph that computes: what it reads must stand where it stood when it was recorded."""
    return compute


@pytest.fixture(scope="module")
def single() -> Callable[[str], Transformer]:
    """Networks in float32, which kernels compute in."""
    made: dict[str, Transformer] = {}

    def make(name: str) -> Transformer:
        if name not in made:
            torch.manual_seed(0)
            made[name] = Transformer(SHAPES[name], dtype=torch.float32)
        return made[name]

    return make


def part(table: list[int], start: int, tokens: list[int]) -> Part:
    """Tokens of a sequence whose rows before ``start`` are in the cache."""
    sequence = Sequence([7] * start + tokens, greedy([1]), limit=100)
    sequence.table, sequence.computed = table, start
    return Part(sequence, start, len(tokens))


STEPS = {
    "tokens and drafts that decode": [
        part([3, 0, 9], 21, [5]), part([1], 3, [6, 8]), part([4, 6, 2], 17, [9, 3, 1]), part([8, 7], 8, [2]),
    ],
    "with a new prompt and a piece of a long one": [
        part([3, 0, 9], 21, [5]), part([1, 5], 0, list(range(11))), part([4, 6, 2, 8], 9, list(range(20))),
    ],
    "a prompt alone": [part([2, 1], 0, list(range(13)))],
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_computes_what_the_other_runner_does(shape: str, step: str, single: Callable[[str], Transformer]) -> None:
    model = single(shape)
    mtp = bool(model.config.num_nextn_predict_layers)
    caches = [PagedCache(model.config, blocks=10, block_size=8, dtype=torch.float32, mtp=mtp) for _ in range(2)]
    torch.manual_seed(1)
    caches[0].rows.normal_()
    caches[1].rows.copy_(caches[0].rows)
    plain, gpu = Runner(model, caches[0]), GPURunner(model, caches[1], record=again)
    wanted, there = plain.run(STEPS[step])
    for _ in range(2):  # recorded, then replayed
        found, here = gpu.run(STEPS[step])
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(caches[1].rows, caches[0].rows, rtol=1e-3, atol=1e-4)
    if mtp:
        following = list(range(len(wanted)))
        ask = [0, len(wanted) - 1]
        guessed, states = plain.draft(wanted, following, there, ask)
        found_guessed, found_states = gpu.draft(found, following, here, ask)
        assert found_guessed == guessed
        torch.testing.assert_close(found_states, states, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("shape", "record"), [("window", again), ("experts", again), ("grouped", None)])
def test_an_engine_on_it_gives_the_same_answers(shape: str, record: Any, single: Callable[[str], Transformer]) -> None:
    model = single(shape)
    given = [list(range(first, first + 9)) for first in (0, 30, 60)]

    def answers(on_gpu: bool) -> list[list[int]]:
        # So few blocks that sequences are preempted: their tables change under the graphs.
        row = model.config.latent_width * 4 * (model.config.num_hidden_layers + model.config.num_nextn_predict_layers)
        engine = Engine(model, cache_bytes=11 * 4 * row, block_size=4, token_budget=24, most_sequences=3)
        if on_gpu:
            engine._runner = GPURunner(model, engine.cache, record=record)
        sequences = [engine.add(prompt, greedy(prompt), most=8) for prompt in given]
        while engine.busy:
            engine.step()
        assert engine.scheduler.preemptions > 0
        return [sequence.tokens for sequence in sequences]

    assert answers(on_gpu=True) == answers(on_gpu=False)


def test_a_step_is_recorded_once_a_size_and_smaller_ones_share_it(single: Callable[[str], Transformer]) -> None:
    model = single("grouped")
    recorded = []

    def record(compute: Callable[[], Any]) -> Callable[[], Any]:
        recorded.append(compute()[0].shape[0])
        return compute

    runner = GPURunner(model, PagedCache(model.config, blocks=10, block_size=8, dtype=torch.float32), record=record)
    steps = [[part([index], 3, [5]) for index in range(count)] for count in (3, 4, 1, 3)]
    for step in steps:
        hidden, what = runner.run(step)
        assert hidden.shape[0] == len(step)
        assert isinstance(what, GPUStep)
        assert what.cos.shape[0] == len(step)
    assert recorded == [4, 1]


def test_what_cannot_be_recorded_is_computed_and_said(single: Callable[[str], Transformer]) -> None:
    model = single("grouped")

    def record(compute: Callable[[], Any]) -> Callable[[], Any]:
        raise RuntimeError("operation not permitted when stream is capturing")

    runner = GPURunner(model, PagedCache(model.config, blocks=10, block_size=8, dtype=torch.float32), record=record)
    assert runner.run([part([0], 3, [5])])[0].shape == (1, 48)
    assert runner.eager_because == "operation not permitted when stream is capturing"
    assert runner.run([part([0], 3, [5])])[0].shape == (1, 48)


def test_dynamic_gating_is_never_recorded(single: Callable[[str], Transformer]) -> None:
    model = single("experts")
    runner = GPURunner(
        model, PagedCache(model.config, blocks=10, block_size=8, dtype=torch.float32), record=pytest.fail
    )
    model.set_dynamic_gating(DynamicGating(share=0.5, minimum=1, maximum=4))
    try:
        assert runner.run([part([0], 3, [5])])[0].shape == (1, 256)
    finally:
        model.set_dynamic_gating(None)


def test_on_a_gpu_a_piece_of_a_prompt_looks_up_to_its_own_place_without_a_matrix() -> None:
    from torch.nn.attention.bias import causal_lower_right

    query, key = torch.randn(1, 4, 5, 16), torch.randn(1, 2, 12, 16)
    seen = torch.arange(12)[None] <= torch.arange(7, 12)[:, None]
    found, wanted = (
        torch.nn.functional.scaled_dot_product_attention(query, key, key, attn_mask=mask, enable_gqa=True)
        for mask in (causal_lower_right(5, 12), seen)
    )
    torch.testing.assert_close(found, wanted)


def test_a_network_on_a_processor_gets_the_other_runner(single: Callable[[str], Transformer]) -> None:
    model = single("grouped")
    assert type(runner_for(model, PagedCache(model.config, blocks=2, block_size=8, dtype=torch.float32))) is Runner
