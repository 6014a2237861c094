"""A checkpoint is there whole or not at all, whatever file operation fails and whatever byte changes."""

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepwell.errors import TrainingError
from deepwell.lm.training import pieces
from deepwell.lm.training.checkpoint import Checkpoints, Loaded


class KilledError(BaseException):
    """In place of SIGKILL: no ``except Exception`` and no clean-up of ours may be what saves us."""


def state(step: int) -> dict[str, Tensor]:
    """Some tensors whose numbers tell the step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "weight": torch.randn(33, 7, generator=generator),
        "half": torch.randn(5, 3, generator=generator).bfloat16(),
        "count": torch.tensor(step),
        "random": torch.randint(0, 256, (19,), generator=generator, dtype=torch.uint8),
    }


def assert_holds(loaded: Loaded | None, step: int) -> None:
    assert loaded is not None
    assert loaded.step == step
    assert loaded.values == {"step": step, "name": "a", "rates": [0.5, None]}
    expected = state(step)
    assert loaded.tensors.keys() == expected.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in expected.items())


def save(checkpoints: Checkpoints, step: int) -> Path:
    return checkpoints.save(step, state(step), {"step": step, "name": "a", "rates": (0.5, None)})


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces, and a tensor in several bands, from a few numbers."""
    lay_out = pieces.lay_out
    monkeypatch.setattr("deepwell.lm.training.checkpoint.lay_out", lambda tensors, n: lay_out(tensors, n, 64))
    monkeypatch.setattr(pieces, "BAND", 512)
    # No test cuts the power, and waiting for the disk is most of the time; that it is called is tested all the same.
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def checkpoints(tmp_path: Path, small_pieces: None) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints", keep=2)


# ---- what is kept ----


def test_what_was_saved_is_what_is_loaded(checkpoints: Checkpoints) -> None:
    folder = save(checkpoints, 5)
    assert folder.name == "step-00000005"
    assert len(list(folder.glob("piece-*"))) > 2
    assert_holds(checkpoints.load(), 5)
    assert_holds(checkpoints.latest_good(pytest.fail), 5)


def test_the_newest_are_kept_and_nothing_else_lies_about(checkpoints: Checkpoints) -> None:
    for step in (1, 2, 3, 4):
        save(checkpoints, step)
    assert checkpoints.steps() == [3, 4]
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000003", "step-00000004"]
    assert_holds(checkpoints.load(3), 3)


def test_steps_of_an_abandoned_future_go_when_the_run_has_gone_on_from_before_them(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10)
    save(checkpoints, 20)
    save(checkpoints, 15)
    assert checkpoints.steps() == [10, 15]


def test_a_step_may_be_saved_again(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    checkpoints.save(1, {"other": torch.ones(2)}, {})
    loaded = checkpoints.load(1)
    assert list(loaded.tensors) == ["other"]
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_a_run_without_checkpoints(checkpoints: Checkpoints) -> None:
    assert checkpoints.steps() == []
    assert checkpoints.latest_good(pytest.fail) is None
    with pytest.raises(TrainingError, match="holds no checkpoint"):
        checkpoints.load()
    save(checkpoints, 3)
    with pytest.raises(TrainingError, match="no checkpoint of step 4") as caught:
        checkpoints.load(4)
    assert "steps 3" in caught.value.hint


def test_loaded_tensors_outlive_their_files(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    loaded = checkpoints.load()
    kept = loaded.tensors["weight"]
    kept.add_(1)  # a private map: neither the file nor another look sees it
    assert_holds(Checkpoints(checkpoints.folder, 2).load(), 1)
    shutil.rmtree(checkpoints.folder)
    assert torch.equal(kept, state(1)["weight"] + 1)


# ---- kills and full disks at every file operation ----

OPERATIONS = ("os.fsync", "os.write", "os.open", "pathlib.Path.rename", "pathlib.Path.mkdir", "pathlib.Path.open",
              "pathlib.Path.write_text", "pathlib.Path.unlink", "shutil.rmtree")  # fmt: skip


def failing(patch: pytest.MonkeyPatch, at: int, error: BaseException | None) -> list[str]:
    """Count file operations; the one numbered ``at`` does not happen, and ``error`` comes in its place."""
    done: list[str] = []

    def wrap(name: str) -> None:
        holder: Any = {"os": os, "shutil": shutil, "pathlib": Path}[name.split(".", maxsplit=1)[0]]
        attribute = name.rsplit(".", 1)[1]
        real: Callable[..., Any] = getattr(holder, attribute)

        def instead(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            if error is not None and (len(done) - 1 == at or (isinstance(error, KilledError) and len(done) > at)):
                if isinstance(error, OSError) and kwargs.get("ignore_errors"):
                    return None
                raise error  # after a kill nothing happens any more, clean-up included
            return real(*args, **kwargs)

        patch.setattr(holder, attribute, instead)

    for name in OPERATIONS:
        wrap(name)
    return done


def count_operations(folder: Path, *, again: bool) -> list[str]:
    checkpoints = Checkpoints(folder, keep=1)
    save(checkpoints, 1)
    with pytest.MonkeyPatch.context() as patch:
        done = failing(patch, -1, None)
        save(checkpoints, 1 if again else 2)
    return done


@pytest.mark.parametrize("again", [False, True], ids=["a later step", "the same step"])
def test_a_kill_at_any_file_operation_leaves_a_checkpoint(tmp_path: Path, small_pieces: None, again: bool) -> None:
    operations = count_operations(tmp_path / "count", again=again)
    assert len(operations) > 30
    assert set(operations) == set(OPERATIONS)
    step = 1 if again else 2
    for at in range(len(operations)):
        checkpoints = Checkpoints(tmp_path / f"{at}", keep=1)
        save(checkpoints, 1)
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, at, KilledError())
            with pytest.raises(KilledError):
                save(checkpoints, step)
        found = checkpoints.latest_good(pytest.fail)
        assert_holds(found, found.step if found else 0)
        assert checkpoints.load().step in {1, step}
        assert all(one in {1, step} for one in checkpoints.steps())
        save(checkpoints, 3)
        assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000003"], operations[at]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_an_error_at_any_file_operation_is_told_and_leaves_no_trace(
    tmp_path: Path, small_pieces: None, number: int
) -> None:
    operations = count_operations(tmp_path / "count", again=False)
    quiet = []
    for at in range(len(operations)):
        checkpoints = Checkpoints(tmp_path / f"{at}", keep=1)
        save(checkpoints, 1)
        with pytest.MonkeyPatch.context() as patch:
            failing(patch, at, OSError(number, os.strerror(number)))
            try:
                save(checkpoints, 2)
                quiet.append(operations[at])
            except TrainingError as error:
                assert os.strerror(number) in error.message
                assert str(checkpoints.folder) in error.message
                assert "bytes were to be written" in error.message
                assert {errno.ENOSPC: "free that much", errno.EACCES: "writable", errno.EIO: "look at"}[number] in (
                    error.hint
                )
        assert_holds(checkpoints.load(), checkpoints.steps()[-1])
        assert checkpoints.steps() in ([1], [2], [1, 2])
        save(checkpoints, 3)
        assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000003"]
    # What is left when the new one has its name is to remove old ones: no reason to fail.
    assert quiet[:4] == ["shutil.rmtree", "shutil.rmtree", "pathlib.Path.rename", "shutil.rmtree"]
    assert set(quiet[4:]) <= {"os.open"}  # of rmtree


def test_the_message_of_a_full_disk_has_the_bytes_and_what_stays(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1)
    size = sum(path.stat().st_size for path in checkpoints.path(1).glob("piece-*"))

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(TrainingError) as caught:
        save(checkpoints, 2)
    assert f"{size:,} bytes" in caught.value.message
    assert "the checkpoint of step 1 is as it was" in caught.value.message
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_a_disk_that_takes_a_part_of_a_write_gets_the_rest(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data)[:100]))
    save(checkpoints, 1)
    assert_holds(checkpoints.load(), 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    checkpoints.folder.chmod(0o500)
    try:
        with pytest.raises(TrainingError, match="Permission denied"):
            save(checkpoints, 2)
    finally:
        checkpoints.folder.chmod(0o700)
    assert_holds(checkpoints.load(), 1)


def test_values_that_json_cannot_hold_are_refused_before_anything_is_written(checkpoints: Checkpoints) -> None:
    with pytest.raises(TypeError):
        checkpoints.save(1, {}, {"x": object()})
    assert not checkpoints.folder.exists()


# ---- damage ----


def files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.iterdir())


def test_any_flipped_bit_is_found_and_named(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    chance = random.Random(0)
    for path in files(checkpoints.path(2)):
        whole = path.read_bytes()
        for place in {0, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(3))}:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(TrainingError) as caught:
                checkpoints.load()
            assert str(path.parent) in caught.value.message
            assert path.name in caught.value.message or path.name.startswith("manifest")
            assert "step 2" in caught.value.message
            assert "step 1 is whole" in caught.value.hint
        path.write_bytes(whole)
    assert_holds(checkpoints.load(), 2)


@pytest.mark.parametrize("harm", ["missing", "truncated", "longer", "a folder"])
def test_files_that_are_missing_or_of_another_length(checkpoints: Checkpoints, harm: str) -> None:
    save(checkpoints, 1)
    for name in [path.name for path in files(save(checkpoints, 2))]:
        path = save(checkpoints, 2) / name
        data = path.read_bytes()
        path.unlink()
        if harm == "truncated":
            path.write_bytes(data[: len(data) // 2])
        elif harm == "longer":
            path.write_bytes(data + b"x")
        elif harm == "a folder":
            path.mkdir()
        with pytest.raises(TrainingError, match="of no use"):
            checkpoints.load()
        notes: list[str] = []
        assert_holds(checkpoints.latest_good(notes.append), 1)
        assert len(notes) == 1
        assert "step 2 is passed over" in notes[0]


def test_when_all_are_damaged_it_says_so(checkpoints: Checkpoints) -> None:
    for step in (1, 2):
        next(save(checkpoints, step).glob("piece-*")).unlink()
    notes: list[str] = []
    with pytest.raises(TrainingError, match="steps 1, 2"):
        checkpoints.latest_good(notes.append)
    assert len(notes) == 2
    with pytest.raises(TrainingError) as caught:
        checkpoints.load()
    assert "begin anew" in caught.value.hint


def test_a_folder_under_another_steps_name_is_refused(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1).rename(checkpoints.folder / "step-00000009")
    with pytest.raises(TrainingError, match="holds the checkpoint of step 1"):
        checkpoints.load()
