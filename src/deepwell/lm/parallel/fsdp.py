"""Weights in pieces: FSDP2 around the parts of a network (arXiv 2304.11277).

A module of its own because importing FSDP takes more than a second, which a single process need not spend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard
from torch.utils import _pytree

from deepwell.lm.model.loss import Losses
from deepwell.lm.model.moe import Routing
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.parallel.experts import ParallelExperts

if TYPE_CHECKING:
    from deepwell.lm.parallel.world import World


def shard(model: Transformer, world: World) -> None:
    """Leave 1/n of every weight in each process. Experts that are spread stay so; those that several processes hold are
    split among these once more.

    The root's weights and those of the MTP modules stay gathered until a backward pass lets them go; after a pass
    without one, ``reshard`` does. Who asks for parameters before that gets the gathered copies, not the optimizer's.
    """
    for cls in (Losses, Routing):
        # FSDP looks for tensors in what a module returns, to learn when its backward pass begins.
        if cls not in _pytree.SUPPORTED_NODES:
            _pytree.register_dataclass(cls)
    own = _shadowed(model)
    for module in model.modules():
        if isinstance(module, ParallelExperts):
            if world.experts == world.size:  # nobody else has them
                own.update(module.parameters())
            else:
                fully_shard(module, mesh=world.mesh["data"], shard_placement_fn=_within_experts(world))
    for block in model.layers:
        fully_shard(block, mesh=world.everybody, ignored_params=own, reshard_after_forward=True)
    for module in model.mtp:
        # Its norm is read after its forward pass, and its backward pass comes next: it stays gathered.
        fully_shard(module, mesh=world.everybody, ignored_params=own, reshard_after_forward=False)
    fully_shard(model, mesh=world.everybody, ignored_params=own, reshard_after_forward=False)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other way to sum
    for method in ("loss", "hidden", "draft"):  # ways in besides a call; each gathers the root's weights
        register_fsdp_forward_method(model, method)


def _shadowed(model: nn.Module) -> set[nn.Parameter]:
    """Weights that stay whole in every process: those under an adapter, which are frozen.

    FSDP asks a module for its parameters by name, and a module with an adapter answers with both together.
    """
    return {
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(getattr(type(module), name, None), property)
    }


def _within_experts(world: World) -> Callable[[nn.Parameter], Shard | None]:
    """Split matrices by rows where that goes evenly: shards of shards of one dimension are slow to put together."""
    size = world.size // world.experts
    return lambda parameter: Shard(1) if parameter.shape[1] % size == 0 else None


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
