"""A run's diary on disk: one line of JSON for each record, so that every figure of a run can be looked at again.

A line is ``{"record": "stepped", "step": 12, "loss": 3.25, ...}``: the record's name in lower case and its fields.
Floats are written as the shortest digits that read back to the same bits. What JSON has no word for is a string:
``"nan"``, ``"inf"``, ``"-inf"``. A line is handed to the system as soon as it is whole, so a killed run leaves at worst
one torn line at the end, which every reader here passes over.

A checkpoint is older than the moment at which a run dies, so ``Journal.resume`` takes back the lines of steps that
will be done again. The steps, looks and samples of a run that was stopped and went on are then those of a run that
never stopped, but for the fields in ``CLOCK``, which say how long things took; ``comparable`` leaves these out. A
``Started`` line for each sitting stays, for the machine can be another one.

The guard can take a run back to a checkpoint while it goes on. Nothing is taken out then: the steps come twice, and
``timeline`` keeps those that count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from deepwell.errors import TrainingError
from deepwell.lm.training.records import Ended, Noted, Record, Sampled, Started, Stepped, Validated

__all__ = ["CLOCK", "Journal", "comparable", "latest", "read", "timeline"]

CLOCK = ("seconds", "tokens_per_second", "share_of_peak", "memory_mb", "peak_flops")
"""Fields that say how fast the machine was: they differ between two runs that compute the same bits."""

_KINDS = {kind.__name__.lower(): kind for kind in (Started, Stepped, Validated, Sampled, Noted, Ended)}


class Journal:
    """A watcher that appends each record to a file. Nothing is opened before the first record.

    Args:
        path: The file, ``journal.jsonl`` of a run's folder. Its folder is made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def __call__(self, record: Record) -> None:
        """Append one record.

        Raises:
            TrainingError: The file cannot be written.
        """
        with self._writing():
            if self._file is None:
                self._file = self._open()
            self._file.write(_to_line(record))
            self._file.flush()

    def resume(self, step: int) -> None:
        """Take back what came after a step, as the run goes on from its checkpoint of that step.

        Also goes: a torn line at the end, that the run ended, and sittings of which nothing is left. The file is
        replaced in one move, so that a kill in between leaves the old one.

        Raises:
            TrainingError: The file cannot be written, or was damaged.
        """
        self.close()
        if not self.path.exists():
            return
        kept = read(self.path)
        while kept and (isinstance(kept[-1], Started) or kept[-1].step > step):
            kept.pop()
        scratch = self.path.with_name(self.path.name + ".new")
        with self._writing():
            with scratch.open("wb") as file:
                file.writelines(_to_line(record) for record in kept if not isinstance(record, Ended))
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.path)

    def records(self) -> list[Record]:
        """All that was written so far; see ``read``. Empty where there is no file yet."""
        return read(self.path) if self.path.exists() else []

    def close(self) -> None:
        """Close the file; a further record opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"the run's journal {self.path} cannot be written: {error.strerror}",
                hint="see whether the disk is full; the run goes on from its last checkpoint with --resume",
            ) from error

    def _open(self) -> IO[bytes]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("ab")
        whole = len(_whole_lines(self.path.read_bytes()))
        file.truncate(whole)
        return file


def read(path: Path) -> list[Record]:
    """All records of a journal, in the order in which they were written.

    A torn last line is passed over, and so are kinds of records and fields that this version does not know.

    Raises:
        TrainingError: A whole line is not a record: the file was changed by something else.
    """
    lines = _whole_lines(path.read_bytes()).splitlines()
    found = (_checked(line, path, number) for number, line in enumerate(lines, 1))
    return [record for record in found if record is not None]


def latest(path: Path) -> dict[type[Record], Record]:
    """The last record of each kind, with only those lines read: a long run's journal is many megabytes.

    Raises:
        TrainingError: As of ``read``.
    """
    marks = {b'{"record": "%s"' % name.encode(): kind for name, kind in _KINDS.items()}
    last: dict[type[Record], tuple[bytes, int]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            kind = marks.get(line.partition(b",")[0])
            if kind is not None and line.endswith(b"\n"):
                last[kind] = (line, number)
    found = {kind: _checked(line, path, number) for kind, (line, number) in last.items()}
    return {kind: record for kind, record in found.items() if record is not None}


def timeline(records: Iterable[Record]) -> list[Record]:
    """The records without those that a rollback made void: of a step that came twice, the later one.

    Notes, starts and ends always stay.
    """
    kept: list[Record] = []
    latest = 0
    for record in records:
        if isinstance(record, Stepped):
            if record.step <= latest:
                kept = [one for one in kept if isinstance(one, (Started, Noted, Ended)) or one.step < record.step]
            latest = record.step
        kept.append(record)
    return kept


def comparable(records: Iterable[Record]) -> list[Record]:
    """Steps, looks and samples with zeros in the fields of ``CLOCK``: equal for two runs that computed the same."""
    plain: list[Record] = []
    for record in records:
        if isinstance(record, (Stepped, Validated, Sampled)):
            timed: Any = {field.name: 0.0 for field in dataclasses.fields(record) if field.name in CLOCK}
            plain.append(dataclasses.replace(record, **timed))
    return plain


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _to_line(record: Record) -> bytes:
    fields = {"record": type(record).__name__.lower()}
    fields |= {field.name: _plain(getattr(record, field.name)) for field in dataclasses.fields(record)}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _checked(line: bytes, path: Path, number: int) -> Record | None:
    try:
        return _from_line(line)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise TrainingError(
            f"{path} line {number} is not a record of a run: {error}",
            hint="take the line out, or move the file away: a run goes on from its checkpoints without it",
        ) from error


def _from_line(line: bytes) -> Record | None:
    fields = json.loads(line)
    kind: Any = _KINDS.get(fields.pop("record"))
    if kind is None:
        return None
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    known = {
        name: _numbers(value) if "float" in types[name] else value for name, value in fields.items() if name in types
    }
    made: Record = kind(**known)
    return made


def _numbers(value: Any) -> Any:
    """Floats from numbers and the strings of ``_plain``; tuples from lists."""
    return tuple(_numbers(one) for one in value) if isinstance(value, list) else float(value)
