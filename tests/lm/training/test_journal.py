"""The journal: every bit comes back, a torn line does not hurt, and what is done again is taken back."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from deepwell.errors import TrainingError
from deepwell.lm.training import journal
from deepwell.lm.training.journal import Journal, comparable, latest, read, timeline
from deepwell.lm.training.records import Ended, Noted, Record, Sampled, Started, Stepped, Validated

STARTED = Started(
    name="tales", step=0, steps=40, parameters=100, active_parameters=60, trained_parameters=100, train_tokens=5000,
    validation_tokens=50, flops_per_token=600.0, peak_flops=1e12, processes=1, device="cpu", precision="bf16",
    recipe={"kind": "pretrain", "batch": {"steps": 40}},
)  # fmt: skip


def stepped(step: int, *, loss: float = 0.1, seconds: float = 0.5, skipped: bool = False) -> Stepped:
    return Stepped(
        step=step, tokens=step * 64, loss=loss + step / 3, mtp=(1 / 3 + step,), balance=1e-4, lr=1 / 7e4, grad_norm=0.7,
        sequences=4, seconds=seconds, tokens_per_second=64 / seconds, share_of_peak=0.25, memory_mb=100.0,
        loads=((0.5, 0.25, 0.25), (0.1, 0.2, 0.7)), skipped=skipped,
    )  # fmt: skip


def write(path: Path, *records: Record) -> Journal:
    told = Journal(path)
    for record in records:
        told(record)
    return told


def test_every_record_comes_back_bit_for_bit(tmp_path: Path) -> None:
    records = [
        STARTED,
        replace(stepped(1), loss=0.1 + 0.2, lr=5e-324, grad_norm=1.7976931348623157e308),
        Validated(step=1, loss=2.0, bits_per_byte=1 / 3, predictions=50, mtp_losses=(0.1,), mtp_right=(2 / 3,)),
        Sampled(step=1, prompt="Once", text="upon\na “nan” \u2028 \x00 time 🐚"),
        Noted(step=1, message="checkpoint"),
        Ended(step=1, tokens=64, seconds=0.5, flops=1e9, finished=True, model="model"),
    ]
    write(tmp_path / "run" / "journal.jsonl", *records).close()
    assert read(tmp_path / "run" / "journal.jsonl") == records


def test_numbers_that_are_none_are_strings_in_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    told = replace(stepped(1), loss=math.nan, grad_norm=math.inf, mtp=(-math.inf,))
    write(path, told, Sampled(step=1, prompt="nan", text="inf")).close()
    line = json.loads(path.read_text().splitlines()[0], parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (line["record"], line["loss"], line["grad_norm"], line["mtp"]) == ("stepped", "nan", "inf", ["-inf"])
    back, text = read(path)
    assert isinstance(back, Stepped)
    assert math.isnan(back.loss)
    assert (back.grad_norm, back.mtp) == (math.inf, (-math.inf,))
    assert text == Sampled(step=1, prompt="nan", text="inf")


def test_whole_numbers_in_float_fields_come_back_as_floats(tmp_path: Path) -> None:
    write(tmp_path / "j", replace(stepped(3), loss=2)).close()
    (back,) = read(tmp_path / "j")
    assert isinstance(back, Stepped)
    assert type(back.loss) is float


def test_each_line_can_be_read_at_once_by_another_process(tmp_path: Path) -> None:
    told = Journal(tmp_path / "j")
    for step in (1, 2):
        told(stepped(step))
        assert len(read(tmp_path / "j")) == step
    told.close()


def test_a_torn_last_line_is_passed_over_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path, stepped(1), stepped(2)).close()
    path.write_bytes(path.read_bytes()[:-20])
    assert read(path) == [stepped(1)]
    write(path, stepped(3)).close()
    assert read(path) == [stepped(1), stepped(3)]


def test_kinds_and_fields_of_a_later_version_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text(
        '{"record": "eclipse", "step": 1}\n{"record": "noted", "step": 2, "message": "m", "mood": "good"}\n'
    )
    assert read(path) == [Noted(step=2, message="m")]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"step": 1}', '{"record": "noted", "step": 1}'])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j"
    path.write_text(f'{{"record": "noted", "step": 2, "message": "m"}}\n{line}\n')
    with pytest.raises(TrainingError, match="line 2"):
        read(path)


def test_a_resumed_journal_is_that_of_a_run_that_never_stopped(tmp_path: Path) -> None:
    look = Validated(step=4, loss=2.0, bits_per_byte=0.9, predictions=50)
    steps = [stepped(step) for step in range(1, 9)]
    whole = [STARTED, *steps[:4], look, *steps[4:]]
    path = tmp_path / "j"
    killed = write(path, *whole[:8])  # up to step 6; its last checkpoint is that of step 4
    killed.close()
    path.write_bytes(path.read_bytes()[:-30])

    again = Journal(path)
    again.resume(4)
    assert read(path) == whole[:6]
    assert not list(tmp_path.glob("*.new"))
    again(replace(STARTED, step=4))
    for step in range(5, 9):
        again(stepped(step, seconds=9.0))
    again.close()
    assert read(path) != whole
    assert comparable(read(path)) == comparable(whole)
    assert [one.step for one in read(path) if isinstance(one, Started)] == [0, 4]


def test_resuming_takes_back_the_end_and_sittings_that_left_nothing(tmp_path: Path) -> None:
    ended = Ended(step=2, tokens=128, seconds=1.0, flops=1e9, finished=False)
    sitting = replace(STARTED, step=2)
    journal_ = write(tmp_path / "j", STARTED, stepped(1), stepped(2), ended, sitting, stepped(3), sitting, stepped(3))
    journal_.resume(2)
    assert read(tmp_path / "j") == [STARTED, stepped(1), stepped(2)]
    journal_.resume(0)
    assert read(tmp_path / "j") == []


def test_resuming_without_a_journal_is_a_fresh_start(tmp_path: Path) -> None:
    told = Journal(tmp_path / "j")
    told.resume(5)
    assert not (tmp_path / "j").exists()


def test_a_rollback_stays_in_the_journal_and_its_lost_steps_do_not_count(tmp_path: Path) -> None:
    lost = Validated(step=3, loss=9.0, bits_per_byte=9.0, predictions=5)
    note = Noted(step=2, message="went back to step 2")
    again = stepped(3, loss=0.05)
    told = write(tmp_path / "j", stepped(1), stepped(2), stepped(3), lost, note, again, stepped(4))
    told.resume(3)
    assert read(tmp_path / "j") == [stepped(1), stepped(2), stepped(3), lost, note, again]
    assert timeline(read(tmp_path / "j")) == [stepped(1), stepped(2), note, again]


def test_the_fields_of_the_clock_are_fields_of_records() -> None:
    for name in journal.CLOCK:
        assert hasattr(STARTED, name) or hasattr(stepped(1), name)
    (plain,) = comparable([stepped(1), STARTED, Noted(step=1, message="m")])
    assert plain == replace(stepped(1), seconds=0.0, tokens_per_second=0.0, share_of_peak=0.0, memory_mb=0.0)


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written"):
        Journal(tmp_path / "file" / "j")(stepped(1))


def test_a_journal_that_cannot_be_cut_says_so_and_stays(tmp_path: Path) -> None:
    write(tmp_path / "j", stepped(1), stepped(2)).close()
    (tmp_path / "j.new").mkdir()
    with pytest.raises(TrainingError, match="cannot be written"):
        Journal(tmp_path / "j").resume(1)
    assert journal.read(tmp_path / "j") == [stepped(1), stepped(2)]


def test_a_journal_tells_what_it_holds(tmp_path: Path) -> None:
    told = Journal(tmp_path / "j")
    assert told.records() == []
    told(stepped(1))
    assert told.records() == [stepped(1)]
    told.close()


def test_the_last_of_each_kind_is_found_without_reading_the_others(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path, STARTED, stepped(1), Noted(step=1, message="m"), stepped(2), stepped(3)).close()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b'{"record": "stepped", "not": "read"}\n'
    path.write_bytes(b"".join(lines)[:-4])
    assert latest(path) == {Started: STARTED, Noted: Noted(step=1, message="m"), Stepped: stepped(2)}
    path.write_bytes(b'{"record": "stepped", "step": 1}\n')
    with pytest.raises(TrainingError, match="line 1"):
        latest(path)
