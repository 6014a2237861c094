"""Expert parallelism: each process holds some experts of a layer, and tokens travel to them.

A layer's experts are most of its weights, and a token uses few of them. So over n processes each keeps E/n experts,
and the rows of all tokens that chose them come to it by an all-to-all; their results go back the same way (V3 section
3.2.2, there with kernels of its own). No token is dropped, however many choose one expert: the processes first tell
each other how many rows they will send.

    sorted by expert    -- all-to-all -->  sorted by sender   -- sort -->  by expert, then sender
                                                                            | products of E/n experts
    in the old order   <-- all-to-all --   by sender again   <-- sort --    v

Within an expert the rows stand in the order of the processes, and so in the order in which a single process would have
had them: sums over them round as they would there.

Shapes: P pairs of a token and an expert that a process sends, R rows that it receives, n processes, L = E/n experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from deepwell.errors import UsageError
from deepwell.lm.model.moe import Experts


class ParallelExperts(Experts):
    """The routed experts of a layer, spread over the processes of a mesh of one dimension.

    Takes the place of the ``Experts`` it is made from, with its ``product`` and ``activation``. The parameters keep
    their names and are DTensors of the whole shape [E, ...], sharded over experts; ``full_tensor()`` gives all.

    Raises:
        UsageError: The processes do not divide the experts.
    """

    def __init__(self, whole: Experts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        count, size = whole.down_proj.shape[0], mesh.size()
        if count % size:
            raise UsageError(
                f"{count} experts cannot be spread equally over {size} processes",
                hint="parallel.experts divides the network's n_routed_experts",
            )
        self._group = mesh.get_group()
        self._size = size
        self.product, self.activation = whole.product, whole.activation
        self.gate_up_proj = _own(whole.gate_up_proj, mesh)
        self.down_proj = _own(whole.down_proj, mesh)
        self.train(whole.training)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Those of this process's own experts: [L, 2 * I, hidden] and [L, hidden, I]."""
        gate_up, down = self.gate_up_proj, self.down_proj
        assert isinstance(gate_up, DTensor) and isinstance(down, DTensor)
        return gate_up.to_local(), down.to_local()

    def _run(self, rows: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        """As for ``Experts``, [P, hidden] sorted by expert -> the same rows, but computed where their experts are."""
        load = torch.diff(offsets, prepend=offsets.new_zeros(1))  # [E]
        received = torch.empty_like(load)  # [n, L]: what each process sends to each expert here
        dist.all_to_all_single(received, load, group=self._group)
        by_sender = received.view(self._size, -1)
        # The one place where a GPU is waited for: sizes of messages are known to the host.
        sent, got = torch.stack([load.view(self._size, -1).sum(1), by_sender.sum(1)]).tolist()
        here = exchange(rows, got, sent, self._group)
        weights_here = exchange(weights, got, sent, self._group)

        local = torch.arange(by_sender.shape[1], device=rows.device).repeat(self._size)
        order = local.repeat_interleave(received, output_size=here.shape[0]).argsort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
        ends = by_sender.sum(0).cumsum(0).to(torch.int32)
        out = super()._run(_permuted(here, order, back), weights_here[order], ends)
        return exchange(_permuted(out, back, order), sent, got, self._group)


def _own(whole: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    """The slice of a stack of matrices that is this process's own. A copy, so that the rest can be freed."""
    local = whole.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
    spread = DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())
    return nn.Parameter(spread, requires_grad=whole.requires_grad)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, got: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.got, ctx.sent, ctx.group = got, sent, group
        out = rows.new_empty(sum(got), *rows.shape[1:])
        dist.all_to_all_single(out, rows.contiguous(), got, sent, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows = grads[0].new_empty(sum(ctx.sent), *grads[0].shape[1:])
        dist.all_to_all_single(rows, grads[0].contiguous(), ctx.sent, ctx.got, group=ctx.group)
        return rows, None, None, None


def exchange(rows: Tensor, got: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
    """All-to-all of rows, differentiable: the gradients travel back.

    Args:
        rows: [P, ...], those for the first process of the group first.
        got: How many come from each process; [R, ...] is returned, those of the first process first.
        sent: How many go to each; sums to P. Both may have zeros, and all processes take part even then.
        group: The processes.
    """
    return _Exchange.apply(rows, got, sent, group)  # type: ignore[no-any-return,no-untyped-call]


class _Permuted(torch.autograd.Function):
    """Backward is a gather by the inverse: no scattered addition."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return grads[0].index_select(0, back), None, None


def _permuted(rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
    return _Permuted.apply(rows, order, back)  # type: ignore[no-any-return,no-untyped-call]
