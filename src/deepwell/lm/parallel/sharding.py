"""A network over many processes: its weights in pieces, or whole in each, and its gradients summed.

``data="shard"`` is FSDP2 (arXiv 2304.11277): every process keeps 1/n of each weight, of its gradient and of its
moments. A layer's weights are gathered just before it computes and let go just after, so what is whole at any time is
one layer, and the embedding, the head and the MTP modules, which are needed where the forward pass meets the backward.

``data="copy"`` keeps all of them in every process and sums gradients once a step: less is sent, more is kept.

With ``experts`` above 1 the routed experts are spread first (see ``experts``), then each process's own are sharded or
copied over the processes that hold the same ones. Weights under an adapter (LoRA) stay whole in every process.

Gradients are *sums* over processes. A loss is already its rows' share of the whole step's (``Whole``), so a mean would
divide a second time. Weights are gathered, and gradients summed, in float32: the network narrows its weights itself, as
each product needs it, and the gate does not. Gathering in bf16 would halve what is sent, but FSDP would then hand out
bf16 weights and so get bf16 gradients, rounded before they are summed.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from deepwell.lm.model.moe import MixtureOfExperts
from deepwell.lm.model.transformer import Transformer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from deepwell.lm.parallel.world import World

_BUCKET_BYTES = 2**25
"""Gradients are summed in parcels of about 32 MB: large enough to fill a wire, and a copy of one is small."""


def distribute(model: Transformer, world: World) -> None:
    """Spread a network over the processes of ``world``, in place; every process passes the same weights.

    Weights become DTensors of their full shape where they are spread. Afterwards call the model, ``loss``, ``hidden``
    and ``draft`` as before, in all processes together; ``last_part`` before each backward pass, ``sync_gradients``
    after the last one of a step. The model may be on "meta", and be filled later. A world of one changes nothing.

    Raises:
        UsageError: The processes do not divide the experts.
    """
    if world.size == 1:
        return
    if world.is_main and not _is_whole(world):
        vars(model)[_SKELETON] = _skeleton(model)
    if world.experts > 1:
        from deepwell.lm.parallel.experts import ParallelExperts

        for module in model.modules():
            if isinstance(module, MixtureOfExperts):
                module.experts = ParallelExperts(module.experts, world.mesh["experts"])
    if world.data == "shard":
        from deepwell.lm.parallel.fsdp import shard

        shard(model, world)


@torch.no_grad()
def whole_copy(model: Transformer, world: World) -> Transformer | None:
    """The network in one piece, to be written or tried, in the first process; None in the others, which take part.

    Weights are gathered one after the other, so that only the first process needs memory for all of them, and that on
    the CPU. It is the network as it was before ``distribute``, adapters, precision and all; where weights are whole in
    every process anyway it is ``model`` itself.
    """
    if _is_whole(world):
        return model if world.is_main else None
    if _is_sharded(model):
        cast(Any, model).reshard()
        for module in model.mtp_modules():
            cast(Any, module).reshard()
    whole = copy.deepcopy(vars(model)[_SKELETON]) if world.is_main else None
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        spread: Any = tensor.detach()
        full = spread.full_tensor() if hasattr(spread, "full_tensor") else spread
        if whole is not None:
            _put(whole, name, full.cpu().clone())
    return whole


_SKELETON = "_before_distribution"


def _is_whole(world: World) -> bool:
    return world.size == 1 or (world.data == "copy" and world.experts == 1)


def _skeleton(model: Transformer) -> Transformer:
    """A copy without values: tensors on "meta", modules and their settings as they are."""
    bare: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
    }
    bare.update((id(buffer), buffer.to("meta")) for buffer in model.buffers())
    return copy.deepcopy(model, bare)


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter or buffer on "meta" to a value."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = value
    else:
        module._parameters[leaf] = nn.Parameter(value, requires_grad=getattr(module, leaf).requires_grad)


def last_part(model: Transformer, *, is_last: bool) -> None:
    """Before the backward pass of a micro-batch: whether it is the step's last, whose gradients are to be summed.

    Gradients of the others add up in the process: nothing is sent, and where weights are sharded their gradients are
    whole until the last.
    """
    if _is_sharded(model):
        cast(Any, model).set_requires_gradient_sync(is_last)


def sync_gradients(model: Transformer, world: World) -> None:
    """After a step's last backward pass: sum the gradients of weights that are whole in several processes.

    Weights that no process had a gradient for stay without one. Nothing is left to do where FSDP has summed.
    """
    if world.size == 1 or _is_sharded(model):
        return
    from torch.distributed.tensor import DTensor

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32, device=world.device)
    of_all = [parameter for parameter, n in zip(trained, world.sum(used).tolist(), strict=True) if n]
    for parameter in of_all:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    experts = [p.grad.to_local() for p in of_all if isinstance(p.grad, DTensor)]
    rest = [p.grad for p in of_all if p.grad is not None and not isinstance(p.grad, DTensor)]
    _sum_in_parcels(rest, world.everybody)
    if experts and world.experts < world.size:
        _sum_in_parcels(experts, world.mesh["data"])


def _sum_in_parcels(grads: list[Tensor], mesh: DeviceMesh) -> None:
    import torch.distributed as dist

    group = mesh.get_group()
    parcels: list[list[Tensor]] = [[]]
    for grad in grads:
        if parcels[-1] and sum(each.nbytes for each in parcels[-1]) + grad.nbytes > _BUCKET_BYTES:
            parcels.append([])
        parcels[-1].append(grad)
    for parcel in filter(None, parcels):
        flat = torch.cat([grad.flatten() for grad in parcel])
        dist.all_reduce(flat, group=group)
        for grad, summed in zip(parcel, flat.split([grad.numel() for grad in parcel]), strict=True):
            grad.copy_(summed.view_as(grad))


def _is_sharded(model: Transformer) -> bool:
    """Whether FSDP has taken the model over, without importing FSDP."""
    return hasattr(model, "set_requires_gradient_sync")
