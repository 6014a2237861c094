"""A library that remembers what it was asked and gives prepared records, in the place of the real one."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deepwell.cli.main import run
from deepwell.errors import LibraryDamagedError
from deepwell.library.protocols import Delta
from deepwell.library.records import (
    AddReport,
    Answer,
    Citation,
    FileFailure,
    Filters,
    Hit,
    Place,
    Query,
    Results,
    SpaceStatus,
    Status,
)

HIT = Hit(
    document_id="d1",
    passage_id="d1-0",
    path="/files/recordings/moon night.ogg",
    kind="audio",
    text="If anyone needs the dome tomorrow, the spare key hangs behind the barometer in the hall.",
    place=Place(start=14.0, end=19.5),
    score=0.93,
    why={"words": 0.81, "meaning": 0.66},
    title="Moon night",
    metadata={"language": "en"},
)
CITATION = Citation(1, "the spare key hangs behind the barometer", HIT.path, HIT.place, True, "d1", "d1-0")
ANSWER = Answer("Where?", "Behind the barometer [1].", "a thought", (CITATION,), False, "extractive", 12.0, dropped=2)
REPORT = AddReport(added=2, passages=9, vectors=9, bytes_read=2_500_000, took_s=1.2)
STATUS = Status(
    path="/lib",
    documents=2,
    passages=9,
    kinds={"audio": 1, "text": 1},
    roots=("/files",),
    spaces=(SpaceStatus("text", "mini", "f1", True, 9, 9), SpaceStatus("text", "big", "f2", False, 3, 9)),
    failed=(FileFailure("/files/bad.pdf", "encrypted", "give the password"),),
    bytes_on_disk=1_000_000,
    files_on_disk=12,
    writer=None,
    notices=("whisper-tiny is not here",),
)


@dataclass
class FakeLibrary:
    """Records every call; ``raises`` is raised by each; ``report`` is what changes return."""

    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    opened: list[tuple[Any, bool]] = field(default_factory=list)
    closed: int = 0
    raises: BaseException | None = None
    report: AddReport = REPORT
    hits: tuple[Hit, ...] = (HIT,)
    exists: bool = True
    encoders: dict[str, Any] = field(default_factory=dict)

    def _note(self, name: str, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        self.calls.append((name, args, more))
        if self.raises:
            raise self.raises

    def add(self, *paths: Any, **more: Any) -> AddReport:
        self._note("add", paths, more)
        return self.report

    def sync(self, **more: Any) -> AddReport:
        self._note("sync", (), more)
        return self.report

    def remove(self, *names: Any, **more: Any) -> AddReport:
        self._note("remove", names, more)
        return self.report

    def search(self, query: str | None = None, **more: Any) -> Results:
        self._note("search", (query,), more)
        return Results(
            Query(query, image=more["image"], audio=more["audio"], filters=Filters()), self.hits, 4.2, ("a note",)
        )

    def ask(self, question: str, **more: Any) -> Answer:
        self._note("ask", (question,), more)
        return ANSWER

    def ask_stream(self, question: str, **more: Any) -> Iterator[Delta | Answer]:
        self._note("ask_stream", (question,), more)
        yield Delta(reasoning="a thought")
        yield Delta(text="Behind the ")
        yield Delta(text="barometer [1].")
        yield ANSWER

    def status(self) -> Status:
        self._note("status", (), {})
        return STATUS

    def __enter__(self) -> "FakeLibrary":
        return self

    def __exit__(self, *error: object) -> None:
        self.closed += 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake = FakeLibrary()

    def opened(path: Path, *, create: bool = True, **more: Any) -> FakeLibrary:
        fake.opened.append((path, create))
        fake.encoders = more
        if not fake.exists and not create:
            raise LibraryDamagedError(f"there is no library at {path}", hint="Run: deepwell add PATH")
        return fake

    module = ModuleType("deepwell.library.library")
    module.Library = opened  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepwell.library.library", module)
    return fake


@dataclass
class Ran:
    """What a command line printed and returned."""

    code: int
    out: str
    err: str


@pytest.fixture
def deepwell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    monkeypatch.delenv("COLUMNS", raising=False)  # test runners set it for their own workers

    def call(*args: str) -> Ran:
        capsys.readouterr()
        code = run(args)
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return call
