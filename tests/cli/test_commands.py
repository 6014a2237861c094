"""Each command: what it asks of the library, what it prints, and the exit code it ends with."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from deepwell.cli import options
from deepwell.errors import LibraryBusyError, MissingModelError
from deepwell.library.records import KINDS, FileChange, FileFailure, to_json

from .conftest import ANSWER, HIT, REPORT, STATUS, FakeLibrary

Call = Callable[..., Any]


def test_the_kinds_are_those_of_the_records() -> None:
    assert options.KINDS == KINDS


def test_search_passes_every_filter_on(deepwell: Call, library: FakeLibrary, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.touch()
    ran = deepwell(
        "search", "spare", "key", "--image", str(picture), "--kind", "pdf", "--kind", "audio", "--path", "*/x/*",
        "--since", "2024", "--until", "2024", "--where", "author=Ann", "--where", "note=a=b", "-n", "3",
    )  # fmt: skip
    assert ran.code == 0
    assert library.calls == [
        (
            "search",
            ("spare key",),
            {
                "image": picture,
                "audio": None,
                "kinds": ("pdf", "audio"),
                "path": "*/x/*",
                "since": datetime(2024, 1, 1).timestamp(),
                "until": datetime(2025, 1, 1).timestamp(),
                "where": {"author": "Ann", "note": "a=b"},
                "limit": 3,
            },
        )
    ]
    assert library.closed == 1


def test_a_hit_says_what_where_and_why(deepwell: Call, library: FakeLibrary) -> None:
    out = deepwell("search", "spare key").out
    for part in (" 1 Moon night", "audio · 0:14–0:19", "0.93", HIT.path, HIT.text, "words 0.81 · meaning 0.66"):
        assert part in out
    assert "note  a note" in out
    assert "1 found in 4 ms" in out
    assert "\x1b" not in out


def test_nothing_found_is_not_a_failure(deepwell: Call, library: FakeLibrary) -> None:
    library.hits = ()
    ran = deepwell("search", "x")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "Nothing found.")


@pytest.mark.parametrize(
    ("words", "record"),
    [
        (["ask", "where?"], ANSWER),
        (["status"], STATUS),
        (["add", "."], REPORT),
        (["sync"], REPORT),
        (["remove", "/x"], REPORT),
    ],
)
def test_json_is_the_record_field_by_field(
    deepwell: Call, library: FakeLibrary, words: list[str], record: object
) -> None:
    ran = deepwell(*words, "--json")
    assert json.loads(ran.out) == json.loads(json.dumps(to_json(record)))
    assert ran.err == ""


def test_json_of_a_search_has_the_fields_of_a_hit(deepwell: Call, library: FakeLibrary) -> None:
    (hit,) = json.loads(deepwell("search", "x", "--json").out)["hits"]
    assert hit["place"]["start"] == 14.0
    assert set(hit) >= {"document_id", "passage_id", "path", "kind", "text", "place", "score", "why"}


def test_an_answer_comes_with_its_sources(deepwell: Call, library: FakeLibrary) -> None:
    ran = deepwell("ask", "where", "is", "it?", "--model", "extractive", "--kind", "audio")
    assert library.calls == [
        (
            "ask",
            ("where is it?",),
            {"model": "extractive", "kinds": ("audio",), "path": None, "since": None, "until": None, "where": None},
        )
    ]
    assert ran.out.startswith("Behind the barometer [1].\n")
    assert "[1] /files/recordings/moon night.ogg  0:14–0:19" in ran.out
    assert "“the spare key hangs behind the barometer”" in ran.out
    assert "2 quotes were not in their source" in ran.out
    assert "a thought" not in ran.out


def test_on_a_terminal_an_answer_is_streamed_once(
    deepwell: Call, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = deepwell("ask", "where?").out
    assert library.calls[0][0] == "ask_stream"
    assert out.index("a thought") < out.index("Behind the ")
    assert out.count("Behind the ") == 1
    assert "barometer" in out


def test_files_that_failed_make_it_partly_done(deepwell: Call, library: FakeLibrary) -> None:
    library.report = replace(REPORT, failed=(FileFailure("/files/bad.pdf", "encrypted", "give the password"),))
    ran = deepwell("add", ".")
    assert ran.code == 3
    assert ran.err == "failed  /files/bad.pdf: encrypted (give the password)\n"
    assert "2 added, 1 failed" in ran.out
    library.report = replace(REPORT, unseen=(FileFailure("/mnt/disk", "not plugged in"),))
    assert deepwell("sync").code == 3


def test_a_dry_run_lists_what_would_be_done(deepwell: Call, library: FakeLibrary) -> None:
    changes = (FileChange("move", "/b.txt", "/a.txt"), FileChange("remove", "/c.txt"))
    library.report = replace(REPORT, added=0, moved=1, removed=1, dry_run=True, changes=changes)
    ran = deepwell("sync", "--dry-run")
    assert library.calls == [("sync", (), {"dry_run": True, "retry": False, "progress": None})]
    assert ran.out.splitlines() == ["move    /b.txt  (was /a.txt)", "remove  /c.txt", "would be: 1 moved, 1 removed"]


def test_status_says_what_is_still_to_do(deepwell: Call, library: FakeLibrary) -> None:
    out = deepwell("status").out
    for part in (
        "/lib",
        "2 (1 audio, 1 text)",
        "text: 9 of 9 (100%) by mini",
        "3 of 9 (33%) by big",
        "not searched yet",
    ):
        assert part in out
    assert "failed  /files/bad.pdf: encrypted" in out
    assert "note  whisper-tiny is not here" in out


def test_only_add_makes_a_library(deepwell: Call, library: FakeLibrary, tmp_path: Path) -> None:
    library.exists = False
    assert deepwell("add", ".", "--library", str(tmp_path)).code == 0
    for words in (["search", "x"], ["ask", "x"], ["sync"], ["remove", "x"], ["status"]):
        ran = deepwell(*words)
        assert ran.code == 1
        assert "Run: deepwell add PATH" in ran.err
    assert [create for _, create in library.opened] == [True] + [False] * 5


def test_the_library_may_be_named_before_after_or_in_the_environment(
    deepwell: Call, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepwell("--library", "a", "status")
    deepwell("status", "--library", "b")
    deepwell("--library", "a", "status", "--library", "b")
    monkeypatch.setenv("DEEPWELL_LIBRARY", "c")
    deepwell("status")
    assert [path for path, _ in library.opened] == [Path("a"), Path("b"), Path("b"), Path("c")]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (LibraryBusyError("pid 7 is writing", hint="Wait."), 1, "error: pid 7 is writing\n  Wait.\n"),
        (MissingModelError("no encoder"), 1, "error: no encoder\n"),
        (KeyboardInterrupt(), 130, "\nStopped.\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_an_error_is_a_message_and_an_exit_code(
    deepwell: Call, library: FakeLibrary, error: BaseException, code: int, message: str
) -> None:
    library.raises = error
    ran = deepwell("status")
    assert (ran.code, ran.err, ran.out) == (code, message, "")


def test_a_fault_of_ours_is_one_line_unless_debugging(
    deepwell: Call, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.raises = ZeroDivisionError("oh")
    ran = deepwell("status")
    assert ran.code == 1
    assert ran.err.startswith("error: ZeroDivisionError: oh\n")
    assert "DEEPWELL_DEBUG=1" in ran.err
    assert "Traceback" not in ran.err
    monkeypatch.setenv("DEEPWELL_DEBUG", "1")
    assert "Traceback" in deepwell("status").err


def test_with_json_an_error_is_json_too(deepwell: Call, library: FakeLibrary) -> None:
    library.raises = LibraryBusyError("pid 7 is writing", hint="Wait.")
    ran = deepwell("status", "--json")
    assert json.loads(ran.out) == {"error": {"code": "library-busy", "message": "pid 7 is writing", "hint": "Wait."}}
    assert (ran.code, ran.err) == (1, "")
    ran = deepwell("search", "--limit", "0", "x", "--json")
    assert (ran.code, json.loads(ran.out)["error"]["code"]) == (2, "bad-usage")
    assert deepwell("search", "--", "--json").err.startswith("error: pid 7")


@pytest.mark.parametrize(
    "words",
    [
        ["serch", "x"],
        ["search", "x", "--kind", "film"],
        ["search", "x", "--limit", "0"],
        ["search", "x", "--since", "soon"],
        ["search", "x", "--where", "author"],
        ["search", "x", "--image", "/no/such/file.png"],
        ["add"],
        ["add", "/no/such/folder"],
        ["ask"],
        ["completion", "tcsh"],
    ],
)
def test_bad_usage_is_2_and_says_where_help_is(deepwell: Call, library: FakeLibrary, words: list[str]) -> None:
    ran = deepwell(*words)
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert ran.out == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_the_variable_that_click_listens_to(deepwell: Call, shell: str) -> None:
    out = deepwell("completion", shell).out
    assert f"_DEEPWELL_COMPLETE={shell}_complete" in out


def test_every_command_has_help(deepwell: Call) -> None:
    from deepwell.cli.main import COMMANDS

    top = deepwell("--help")
    assert top.code == 0
    for name in COMMANDS:
        assert f"  {name} " in top.out
        ran = deepwell(name, "--help")
        assert (ran.code, ran.out.splitlines()[0].split()[:3]) == (0, ["Usage:", "deepwell", name])
        assert "\\b" not in ran.out
    assert "\n    deepwell add ~/Documents " in top.out, "examples stand on lines of their own"


@pytest.mark.parametrize("words", [("add", "."), ("sync",)])
def test_another_encoder_is_handed_on(deepwell: Call, library: FakeLibrary, words: tuple[str, ...]) -> None:
    assert deepwell(*words, "--text-encoder", "bge-small-en-v1.5").code == 0
    assert library.encoders == {"text_encoder": "bge-small-en-v1.5", "image_encoder": None}
