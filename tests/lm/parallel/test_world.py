"""One process alone, and environments that make no sense."""

import pytest
import torch

from deepwell.errors import UsageError
from deepwell.lm.parallel.world import World


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_a_world_of_one_changes_nothing() -> None:
    with World.start() as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert world.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        tensor = torch.tensor([1, 2])
        assert world.sum(tensor) is tensor
        assert tensor.tolist() == [1, 2]
        assert world.broadcast_object("word") == "word"
        assert world.share(7) == (0, 7)
        world.barrier()
    assert not torch.distributed.is_initialized()


def test_a_world_of_one_has_no_mesh() -> None:
    with pytest.raises(UsageError, match="single process"):
        _ = World.start().mesh


def test_an_error_inside_passes_through() -> None:
    with pytest.raises(RuntimeError, match="nccl of my own"), World.start():
        raise RuntimeError("nccl of my own")


def test_experts_must_divide_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="2 of 1 process"):
        World.start(experts=2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match=r"3 of 4 processes\n.*parallel\.experts"):
        World.start(experts=3)


@pytest.mark.parametrize(
    ("name", "value", "said"), [("RANK", "one", "RANK is 'one'"), ("RANK", "1", "RANK is 1 and WORLD_SIZE is 1")]
)
def test_environments_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said):
        World.start()


def test_rows_are_shared_equally_or_not_at_all() -> None:
    worlds = [World(rank=rank, size=3) for rank in range(3)]
    assert [world.share(12) for world in worlds] == [(0, 4), (4, 4), (8, 4)]
    with pytest.raises(UsageError, match=r"13 rows .* 3 processes\n.*12 or 15"):
        worlds[0].share(13)
    with pytest.raises(UsageError, match="multiple of the number of processes: 3"):
        worlds[2].share(0)
