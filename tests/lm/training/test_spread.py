"""Tensors over many processes: one file whatever their number, and each process's own part of it again.

One process plays all of a run one after the other on a "fake" process group, and threads save together; that real
processes agree is tested at the end.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from deepwell.errors import TrainingError
from deepwell.lm.training import manifest
from deepwell.lm.training.checkpoint import Checkpoints
from deepwell.lm.training.spread import Alone, copy_into, whole


@pytest.fixture
def as_rank() -> Iterator[Callable[[int, int], None]]:
    """Become one of several processes, of which there is only one."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def become(rank: int, size: int) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())

    yield become
    if dist.is_initialized():
        dist.destroy_process_group()


def parts_of(
    full: Tensor, grid: tuple[int, ...], places: list[Any], become: Callable[[int, int], None]
) -> list[Tensor]:
    """What each process has after a copy into its part."""
    size = torch.Size(grid).numel()
    found = []
    for rank in range(size):
        become(rank, size)
        mesh = init_device_mesh("cpu", grid)
        target = _empty(full, mesh, places)
        copy_into(target, full, "w")
        found.append(target.to_local())
    return found


def _empty(full: Tensor, mesh: Any, places: list[Any]) -> DTensor:
    local = full
    for axis, place in enumerate(places):
        if isinstance(place, Shard):
            chunks = list(local.chunk(mesh.size(axis), place.dim))
            at = mesh.get_coordinate()[axis]
            local = chunks[at] if at < len(chunks) else local.narrow(place.dim, 0, 0)
    empty = torch.full_like(local, -1)
    return DTensor.from_local(empty, mesh, places, run_check=False, shape=full.shape, stride=full.stride())


@pytest.mark.parametrize("rows", [8, 7, 5, 2])
def test_each_process_gets_its_rows(rows: int, as_rank: Callable[[int, int], None]) -> None:
    full = torch.arange(rows * 3.0).reshape(rows, 3)
    found = parts_of(full, (4,), [Shard(0)], as_rank)
    assert torch.equal(torch.cat(found), full)


def test_two_axes_one_of_them_repeated(as_rank: Callable[[int, int], None]) -> None:
    full = torch.arange(24.0).reshape(4, 6)
    found = parts_of(full, (2, 2), [Replicate(), Shard(1)], as_rank)
    assert [torch.equal(part, full[:, 3 * (rank % 2) :][:, :3]) for rank, part in enumerate(found)] == [True] * 4
    found = parts_of(full, (2, 2), [Shard(0), Shard(1)], as_rank)
    assert torch.equal(torch.cat([torch.cat(found[:2], 1), torch.cat(found[2:], 1)]), full)


def test_experts_whose_shards_are_split_once_more(as_rank: Callable[[int, int], None]) -> None:
    """FSDP splits by data what is split by experts: the inner axis cuts first, and the outer one cuts its pieces."""
    from torch.distributed.tensor.placement_types import _StridedShard

    full = torch.arange(8.0 * 3).reshape(8, 3)
    for rank in range(4):
        as_rank(rank, 4)
        mesh = init_device_mesh("cpu", (2, 2))
        data, experts = divmod(rank, 2)
        target = DTensor.from_local(
            torch.zeros(2, 3), mesh, [_StridedShard(0, split_factor=2), Shard(0)], run_check=False,
            shape=full.shape, stride=full.stride(),
        )  # fmt: skip
        copy_into(target, full, "experts")
        assert torch.equal(target.to_local(), full.chunk(2)[experts].chunk(2)[data])


def test_plain_tensors_and_parameters() -> None:
    target = torch.nn.Parameter(torch.zeros(2, 2))
    copy_into(target, torch.ones(2, 2), "w")
    assert torch.equal(target.detach(), torch.ones(2, 2))
    scalar = torch.tensor(0)
    copy_into(scalar, torch.tensor(3), "n")
    assert scalar == 3


@pytest.mark.parametrize("full", [torch.ones(2, 3), torch.ones(4), torch.ones(2, 2, dtype=torch.bfloat16)])
def test_what_does_not_fit_is_named(full: Tensor) -> None:
    with pytest.raises(TrainingError) as caught:
        copy_into(torch.zeros(2, 2), full, "layers.0.weight")
    assert caught.value.message.startswith("layers.0.weight is (")
    assert "(2, 2) float32 in this run" in caught.value.message


def test_a_tensor_that_is_whole_is_itself() -> None:
    tensor = torch.ones(2, requires_grad=True)
    assert whole(tensor).data_ptr() == tensor.data_ptr()
    assert not whole(tensor).requires_grad
    assert (Alone.rank, Alone.size) == (0, 1)


# ---- saving by several; threads stand for processes ----


class Thread:
    """One of several processes."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier) -> None:
        self.rank, self.size, self._meeting = rank, size, meeting

    def barrier(self) -> None:
        self._meeting.wait(20)


def save_together(folder: Path, size: int, step: int, tensors: dict[str, Tensor]) -> list[BaseException | None]:
    meeting = threading.Barrier(size)
    errors: list[BaseException | None] = [None] * size

    def work(rank: int) -> None:
        try:
            Checkpoints(folder, keep=1).save(step, tensors, {"n": 1}, world=Thread(rank, size, meeting))
        except BaseException as error:
            errors[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


TENSORS = {f"t{n}": torch.randn(50 + n, 7) for n in range(9)}


def test_several_write_one_checkpoint(tmp_path: Path) -> None:
    assert save_together(tmp_path, 3, 1, TENSORS) == [None] * 3
    entries = manifest.read_manifest(tmp_path / "step-00000001").pieces
    assert len(entries) == 3
    loaded = Checkpoints(tmp_path, 1).load()
    assert loaded.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert sorted(path.name for path in loaded.folder.iterdir()) == [
        "manifest.json", "manifest.sha256", *(f"piece-0000{n}.safetensors" for n in range(3)),
    ]  # fmt: skip


@pytest.mark.parametrize("who", ["piece-00000", "piece-00002", "manifest"])
def test_when_one_fails_all_say_so_and_none_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    assert save_together(tmp_path, 3, 1, TENSORS) == [None] * 3
    real = Path.open

    def fails(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name.startswith(who) and "step-00000002" in path.parent.name:
            raise OSError(28, "No space left on device")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fails)
    errors = save_together(tmp_path, 3, 2, TENSORS)
    assert all(isinstance(error, TrainingError) for error in errors)
    assert sum("No space left" in str(error) for error in errors) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


# ---- real processes ----

CHILD = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.device_mesh import init_device_mesh
from deepwell.lm.training.checkpoint import Checkpoints, copy_into

class World:
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    def barrier(self):
        dist.barrier()

world = World()
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[4]}", rank=world.rank, world_size=world.size)
mesh = init_device_mesh("cpu", (world.size,))
full = {f"t{n}": torch.arange((5 + n) * 3.0).reshape(5 + n, 3) for n in range(4)}
checkpoints = Checkpoints(Path(sys.argv[3]), keep=2)
spread = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in full.items()}
checkpoints.save(1, {**spread, "plain": torch.tensor(3)}, {}, world=world)
loaded = checkpoints.load().tensors
for name, tensor in full.items():
    empty = distribute_tensor(torch.zeros_like(tensor), mesh, [Shard(0)])
    copy_into(empty, loaded[name], name)
    assert torch.equal(empty.full_tensor(), tensor), name
assert loaded["plain"] == 3
dist.destroy_process_group()
"""


def together(size: int, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", CHILD]
    children = [
        subprocess.Popen([*command, str(rank), str(size), str(folder), str(port)], env={**os.environ})
        for rank in range(size)
    ]
    try:
        assert [child.wait(100) for child in children] == [0] * size
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.slow
def test_two_processes_save_and_three_or_one_go_on(tmp_path: Path, as_rank: Callable[[int, int], None]) -> None:
    together(2, tmp_path)
    saved, expected = Checkpoints(tmp_path, 1).load().tensors["t2"], torch.arange(21.0).reshape(7, 3)
    assert torch.equal(saved, expected)
    assert torch.equal(torch.cat(parts_of(saved, (3,), [Shard(0)], as_rank)), expected)
