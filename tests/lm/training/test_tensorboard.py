"""TensorBoard files, read back record by record with their own checksums left aside."""

import itertools
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from deepwell.errors import MissingExtraError
from deepwell.lm.training.records import Started
from deepwell.lm.training.tensorboard import TensorBoard

from . import made_up


def events(folder: Path) -> list[Event]:
    """All events of a folder's files, oldest file first: length, checksum, event, checksum."""
    found = []
    for file in sorted(folder.glob("events.*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event()
            event.ParseFromString(content[at + 12 : at + 12 + length])
            found.append(event)
            at += length + 16
    return found


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_scalars_and_texts_of_a_run(tmp_path: Path) -> None:
    watch = TensorBoard(tmp_path / "tb")
    for record in made_up.run(steps=20, layers=2, mtp=1, look_every=10, skipped=(5,)):
        watch(record)
    found = scalars(tmp_path / "tb")
    assert set(found) == {
        "loss/main", "loss/mtp_1", "loss/balance", "optim/lr", "optim/grad_norm", "optim/sequences", "optim/tokens",
        "optim/skipped", "speed/tokens_per_second", "speed/share_of_peak", "speed/seconds", "speed/memory_mb",
        "experts/imbalance_moe_1", "experts/imbalance_moe_2", "experts/imbalance_mtp_1", "validation/loss",
        "validation/bits_per_byte", "validation/mtp_1_loss", "validation/mtp_1_right",
    }  # fmt: skip
    assert set(found["loss/main"]) == set(range(1, 21)) - {5}
    assert found["optim/skipped"][5] == 1
    assert found["optim/lr"][20] == pytest.approx(2e-4)
    assert set(found["validation/bits_per_byte"]) == {10, 20}
    assert all(1 <= value <= 8 for value in found["experts/imbalance_moe_1"].values())
    texts = [
        (value.tag, value.tensor.string_val[0].decode())
        for event in events(tmp_path / "tb")
        for value in event.summary.value
        if value.WhichOneof("value") == "tensor"
    ]
    assert ("samples/text_summary", "**Once <upon>** a time & \x1b[31m\nthere was") in texts
    assert ("notes/text_summary", "skipped: the loss is not finite") in texts
    assert any(tag == "recipe/text_summary" and "kind: pretrain" in text for tag, text in texts)


def test_a_dense_network_has_no_scalars_of_experts(tmp_path: Path) -> None:
    watch = TensorBoard(tmp_path)
    for record in itertools.islice(made_up.run(layers=0, mtp=0), 4):
        watch(record)
    watch.close()
    watch.close()
    assert not [name for name in scalars(tmp_path) if name.startswith("experts") or "mtp" in name]


def test_a_run_that_goes_on_takes_back_the_steps_that_are_done_again(tmp_path: Path) -> None:
    start, *_ = made_up.run()
    assert isinstance(start, Started)
    watch = TensorBoard(tmp_path)
    watch(replace(start, step=30))
    watch.close()
    (restart,) = [event for event in events(tmp_path) if event.WhichOneof("what") == "session_log"]
    assert (restart.step, restart.session_log.status) == (31, 1)  # SessionLog.START, after which older steps are purged


def test_a_rollback_takes_back_the_steps_that_are_done_again(tmp_path: Path) -> None:
    records = list(itertools.islice(made_up.run(look_every=0), 6))
    watch = TensorBoard(tmp_path)
    for record in [*records, *records[4:]]:
        watch(record)
    watch.close()
    (restart,) = [event for event in events(tmp_path) if event.WhichOneof("what") == "session_log"]
    assert restart.step == 4
    assert len(list(tmp_path.glob("events.*"))) == 2


def test_without_the_package_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtraError, match="tensorboardX") as caught:
        TensorBoard(tmp_path / "tb")
    assert "deepwell[train]" in caught.value.hint
    assert not (tmp_path / "tb").exists()
