"""Moments of weights that are spread over processes (DTensors): saved, loaded, measured and stepped.

A group of one process takes the same ways through the code as one of many; ``tests/lm/parallel`` runs it in many.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from deepwell.errors import TrainingError, UsageError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training.optimizers import build
from deepwell.lm.training.optimizers.groups import as_dtensor, local_part, slots
from deepwell.lm.training.recipe import OptimizerSection

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.fixture
def mesh() -> Iterator[Any]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    dist.destroy_process_group()


def _spread(model: Transformer, mesh: Any) -> Transformer:
    """Matrices by rows, stacks of experts by rows of each matrix or by experts, norms whole in each process."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            kind = {1: Replicate(), 2: Shard(0), 3: Shard(1 if name == "down_proj" else 0)}[parameter.dim()]
            spread = distribute_tensor(parameter.detach().clone(), mesh, [kind])
            module.register_parameter(name, torch.nn.Parameter(spread))
    return model


def _fill(plain: Transformer, spread: Transformer, number: int) -> None:
    from torch.distributed.tensor import distribute_tensor

    generator = torch.Generator().manual_seed(number)
    for ours, theirs in zip(plain.parameters(), spread.parameters(), strict=True):
        ours.grad = torch.randn(ours.shape, generator=generator)
        dtensor = as_dtensor(theirs)
        assert dtensor is not None
        theirs.grad = distribute_tensor(ours.grad.clone(), dtensor.device_mesh, dtensor.placements)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_spread_weights_move_and_go_on_as_plain_ones(model: Transformer, mesh: Any, name: Any) -> None:
    section = OptimizerSection(name=name, lr=0.01)
    spread = _spread(copy.deepcopy(model), mesh)
    ours, theirs = build(model, section), build(spread, section)
    for number in range(4):
        if number == 2:  # a checkpoint holds whole tensors, and those of one process go on over many
            whole = copy.deepcopy(ours.state_dict())
            state = theirs.state_dict()
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    full = value.full_tensor()  # type: ignore[attr-defined]
                    assert torch.equal(full, whole[key])  # type: ignore[arg-type]
            theirs = build(spread, section)
            theirs.load_state_dict(whole)
            again = build(spread, section)
            again.load_state_dict(state)  # and so do those that are spread
            for key, value in again.state_dict().items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(local_part(value), local_part(theirs.state_dict()[key]))  # type: ignore[arg-type]
        _fill(model, spread, number)
        assert torch.allclose(ours.clip(1.0), theirs.clip(1.0), rtol=1e-6)
        ours.step()
        theirs.step()
    for plain, other in zip(model.parameters(), spread.parameters(), strict=True):
        assert torch.allclose(local_part(other), plain, rtol=1e-5, atol=1e-6)


def test_a_spread_state_that_does_not_fit(model: Transformer, mesh: Any) -> None:
    optimizer = build(_spread(model, mesh), OptimizerSection())
    state = optimizer.state_dict()
    with pytest.raises(TrainingError, match=r"of lm_head.weight does not fit"):
        optimizer.load_state_dict({**state, "adamw.exp_avg.lm_head.weight": torch.zeros(3, 32)})


def test_single_experts_of_spread_weights_are_refused(model: Transformer, mesh: Any) -> None:
    with pytest.raises(UsageError, match="not tuned while weights are spread"):
        slots(_spread(model, mesh), "adamw", {0: [1]})
