"""The processes of a run, and what they say to each other.

    torchrun --nproc-per-node 2 -m deepwell train recipe.toml

starts the same program several times and tells each its number by the environment. A ``World`` is what one of them
knows of all: who it is, which rows of a step are its own, and how to sum with the others. Started without torchrun it
is a world of one, whose every method does nothing, and ``torch.distributed`` is never touched.

The processes form a grid, ``mesh``, of two dimensions: *experts*, over which the experts of a layer are spread, and
*data*, over which those shards are split further or repeated. Every process computes rows of its own, whatever its
place in the grid (expert parallelism inside data parallelism: V3 section 3.1).

Two groups of processes speak. Gradients, counts and tokens go through the first (gloo between CPUs, NCCL between
GPUs), whose members stand at the same place of the same step and wait for each other for ``PATIENCE`` at most.
``barrier`` and ``broadcast_object`` go through a second one, always gloo, that waits a day: others may have to wait
there for as long as the first process reads a corpus. A process that dies closes its connections, which gloo notices
at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from deepwell.errors import DeepwellError, TrainingError, UsageError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Data = Literal["shard", "copy"]

PATIENCE = timedelta(minutes=15)
"""How long one process waits for another within a step before it gives up."""
_LONG_PATIENCE = timedelta(days=1)


class World:
    """One process among ``size``. Made by ``World.start``; a context manager that leaves the others in order.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
        device: Where this process computes: a GPU of its own, or the CPU.
        experts: Processes over which the experts of a layer are spread.
        data: Weights in pieces over the processes ("shard"), or whole in each ("copy").
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        size: int = 1,
        device: torch.device | None = None,
        experts: int = 1,
        data: Data = "shard",
        mesh: DeviceMesh | None = None,
        patient: Any = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self.device = device if device is not None else torch.device("cpu")
        self.experts = experts
        self.data: Data = data
        self._mesh = mesh
        self._patient = patient
        self._everybody: DeviceMesh | None = None

    @classmethod
    def start(cls, *, experts: int = 1, data: Data = "shard") -> World:
        """Join the run that torchrun's environment describes (RANK, WORLD_SIZE, LOCAL_RANK), or be alone.

        Raises:
            UsageError: ``experts`` does not divide the number of processes, or the environment contradicts itself.
            TrainingError: There is no GPU for this process alone, or the other processes could not be reached.
        """
        rank, size, local = (_number(name, default) for name, default in _ENVIRONMENT)
        if not 0 <= rank < size:
            raise UsageError(
                f"RANK is {rank} and WORLD_SIZE is {size}: ranks are 0 to WORLD_SIZE - 1",
                hint="start with: torchrun --nproc-per-node N -m deepwell train ...",
            )
        if experts < 1 or size % experts:
            raise UsageError(
                f"experts cannot be spread over {experts} of {size} process{'es' if size > 1 else ''}",
                hint="parallel.experts divides the number of processes that torchrun starts",
            )
        device = torch.device("cpu")
        if torch.cuda.is_available():
            if local >= torch.cuda.device_count():
                raise TrainingError(
                    f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}",
                    hint="start at most as many processes as there are GPUs (torchrun --nproc-per-node)",
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        if size == 1:
            return cls(device=device, data=data)
        return cls._join(rank, size, device, experts, data)

    @classmethod
    def _join(cls, rank: int, size: int, device: torch.device, experts: int, data: Data) -> World:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        bound = None if device.type == "cpu" else device
        try:
            dist.init_process_group(backend, rank=rank, world_size=size, timeout=PATIENCE, device_id=bound)
            patient = dist.new_group(backend="gloo", timeout=_LONG_PATIENCE)
            mesh = init_device_mesh(device.type, (size // experts, experts), mesh_dim_names=("data", "experts"))
        except (RuntimeError, ValueError) as error:
            if dist.is_initialized():
                dist.destroy_process_group()
            raise TrainingError(
                f"process {rank} of {size} could not reach the others: {_first_line(error)}",
                hint="start with torchrun, which sets MASTER_ADDR and MASTER_PORT for all",
            ) from error
        return cls(rank=rank, size=size, device=device, experts=experts, data=data, mesh=mesh, patient=patient)

    # ---- who and where ----

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes: the first."""
        return self.rank == 0

    @property
    def mesh(self) -> DeviceMesh:
        """The processes as a grid with the dimensions "data" and "experts", in this order.

        Raises:
            UsageError: There is one process only, which needs none.
        """
        if self._mesh is None:
            raise UsageError("a single process has no mesh")
        return self._mesh

    @property
    def everybody(self) -> DeviceMesh:
        """All processes in one row: what weights that are no experts' are spread over."""
        if self._everybody is None:
            # Not a slice of the mesh where experts are spread too: pieces of a layer then lie over all processes.
            self._everybody = self.mesh["data"] if self.experts == 1 else self.mesh._flatten("everybody")
        return self._everybody

    def share(self, count: int) -> tuple[int, int]:
        """Which of a step's ``count`` rows are this process's own: the first one and how many.

        All processes get equally many, and so compute the same number of micro-batches: gathering weights and
        exchanging tokens are done together, and one that had no rows would leave the others waiting.

        Raises:
            UsageError: The rows do not divide.
        """
        if count < self.size or count % self.size:
            lower = count // self.size * self.size
            near = f"{lower} or {lower + self.size}" if lower else f"{self.size}"
            raise UsageError(
                f"{count} rows cannot be shared equally by {self.size} processes",
                hint=f"take a multiple of the number of processes: {near}",
            )
        each = count // self.size
        return self.rank * each, each

    # ---- talking; all processes call these in the same order ----

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up ``tensor`` (any shape and dtype) over all processes, in place; every process gets the sum."""
        if self.size > 1:
            import torch.distributed as dist

            with self._watching("adding up"):
                dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def barrier(self) -> None:
        """Wait until every process has come here, for up to a day."""
        if self.size > 1:
            import torch.distributed as dist

            with self._watching("waiting for the others"):
                dist.barrier(group=self._patient)

    def broadcast_object(self, value: Any = None) -> Any:
        """What the first process passes, in all of them: anything that pickles. What others pass is not looked at."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        held = [value]
        with self._watching("waiting for what the first process has to say"):
            dist.broadcast_object_list(held, src=0, group=self._patient, device=torch.device("cpu"))
        return held[0]

    def close(self) -> None:
        """Leave the run. The others are not waited for: one that failed must not keep them waiting."""
        if self.size > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self.size > 1 and isinstance(error, RuntimeError) and _is_lost(error):
            # What FSDP and the experts exchange does not pass through this class.
            raise self._lost("computing a step", error) from error

    @contextmanager
    def _watching(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            raise self._lost(doing, error) from error

    def _lost(self, doing: str, error: BaseException) -> DeepwellError:
        return TrainingError(
            f"process {self.rank} of {self.size} lost another one while {doing}: {_first_line(error)}",
            hint="the first process that failed says why in its own output; the run goes on from its last checkpoint",
        )


_ENVIRONMENT = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
_LOST = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "timeout", "nccl")


def _number(name: str, default: int) -> int:
    given = os.environ.get(name, "")
    try:
        return int(given) if given else default
    except ValueError:
        raise UsageError(f"the environment variable {name} is {given!r}, not a number") from None


def _is_lost(error: RuntimeError) -> bool:
    """Whether a message of gloo or NCCL means that another process is gone or does not answer."""
    text = str(error).lower()
    return any(sign in text for sign in _LOST)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
