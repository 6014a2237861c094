"""Weights in pieces: FSDP2 around the parts of a network (arXiv 2304.11277).

A module of its own because importing FSDP takes more than a second, which a single process need not spend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
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
    """
    for cls in (Losses, Routing):
        # FSDP looks for tensors in what a module returns, to learn when its backward pass begins.
        if cls not in _pytree.SUPPORTED_NODES:
            _pytree.register_dataclass(cls)
    own: set[nn.Parameter] = set()
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
        part.set_reduce_scatter_unused_params(True)
    _Doors(model)


def _within_experts(world: World) -> Callable[[nn.Parameter], Shard | None]:
    """Split matrices by rows where that goes evenly: shards of shards of one dimension are slow to put together."""
    size = world.size // world.experts
    return lambda parameter: Shard(1) if parameter.shape[1] % size == 0 else None


class _Doors:
    """The ways into a sharded network besides calling it, and what happens on the way out.

    The outermost method gathers the root's weights; those that it calls find them gathered. After a pass without
    gradients no backward pass would let them go again: whoever then asks the model for its parameters would get the
    gathered copies, not those that the optimizer moves.
    """

    def __init__(self, model: Transformer) -> None:
        self._inside = False
        self._model = model
        model.register_forward_pre_hook(self._enter)
        model.register_forward_hook(self._leave, always_call=True)
        for name in ("loss", "hidden", "draft"):
            plain = getattr(model, name)
            register_fsdp_forward_method(model, name)
            setattr(model, name, self._door(plain, getattr(model, name)))

    def _door(self, plain: Callable[..., Any], gathering: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def entered(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return plain(*args, **kwargs)
            self._enter()
            try:
                return gathering(*args, **kwargs)
            finally:
                self._leave()

        return entered

    def _enter(self, *_: object) -> None:
        self._inside = True

    def _leave(self, *_: object) -> None:
        self._inside = False
        if not torch.is_grad_enabled():
            for part in _parts(self._model):
                part.reshard()


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
