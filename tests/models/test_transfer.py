import hashlib
from pathlib import Path

import pytest

from deepwell.errors import ModelSourceError
from deepwell.models.transfer import Expected, download, git_sha1_of, open_client

BODY = bytes(range(256)) * 1000
HASH = hashlib.sha256(BODY).hexdigest()
WHOLE = Expected(len(BODY), HASH)


def get(server, target: Path, expected: Expected = WHOLE, **more) -> None:
    with open_client() as client:
        download(client, f"{server.url}/file", target, expected=expected, **more)


def test_a_file_arrives_whole_and_is_reported(server, tmp_path: Path) -> None:
    server.files["/file"] = BODY
    seen: list[tuple[int, int]] = []
    get(server, tmp_path / "deep" / "file", report=lambda done, total: seen.append((done, total)))
    assert (tmp_path / "deep" / "file").read_bytes() == BODY
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "file"]


def test_a_broken_line_is_taken_up_where_it_broke(server, tmp_path: Path) -> None:
    server.files["/file"] = BODY
    server.break_after = [100_000, 50_000]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert [headers.get("range") for _, headers in server.asked] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_part_left_by_a_kill_is_continued(server, tmp_path: Path) -> None:
    server.files["/file"] = BODY
    (tmp_path / "file.part").write_bytes(BODY[:200_000])
    seen: list[int] = []
    get(server, tmp_path / "file", report=lambda done, total: seen.append(done))
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.asked[0][1]["range"] == "bytes=200000-"
    assert seen[0] == 200_000


def test_a_server_that_cannot_resume_starts_again(server, tmp_path: Path) -> None:
    server.files["/file"] = BODY
    server.ranges = False
    (tmp_path / "file.part").write_bytes(b"x" * 200_000)
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_part_of_another_version_is_thrown_away(server, tmp_path: Path) -> None:
    server.files["/file"] = BODY
    (tmp_path / "file.part").write_bytes(b"x" * 200_000)
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert [headers.get("range") for _, headers in server.asked] == ["bytes=200000-", None]


@pytest.mark.parametrize("length", [len(BODY), len(BODY) + 5])
def test_a_part_that_is_too_long_or_just_wrong_is_thrown_away(length: int, server, tmp_path: Path) -> None:
    server.files["/file"] = BODY
    (tmp_path / "file.part").write_bytes(b"x" * length)
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_complete_part_needs_no_request(server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(BODY)
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.asked == []


def test_a_complete_part_of_unknown_size_is_recognised(server, tmp_path: Path) -> None:
    server.files["/file"] = BODY
    (tmp_path / "file.part").write_bytes(BODY)
    get(server, tmp_path / "file", Expected(sha256=HASH))
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_finished_file_is_not_fetched_again(server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BODY)
    get(server, tmp_path / "file")
    assert server.asked == []


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server, tmp_path: Path) -> None:
    server.files["/file"] = BODY[:-1] + b"!"
    with pytest.raises(ModelSourceError, match=r"its SHA-256 is .* and should be") as caught:
        get(server, tmp_path / "file")
    assert "should not be trusted" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_size_is_refused(server, tmp_path: Path) -> None:
    server.files["/file"] = BODY + b"more"
    with pytest.raises(ModelSourceError, match="sends more than"):
        get(server, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_gits_hash_is_checked_where_there_is_no_other(server, tmp_path: Path) -> None:
    server.files["/file"] = b"hello\n"
    get(server, tmp_path / "file", Expected(6, git_sha1="ce013625030ba8dba906f756967f9e9ca394464a"))
    assert git_sha1_of(tmp_path / "file") == "ce013625030ba8dba906f756967f9e9ca394464a"
    with pytest.raises(ModelSourceError, match="its git hash is"):
        get(server, tmp_path / "other", Expected(6, git_sha1="0" * 40))


@pytest.mark.parametrize(("status", "hint"), [(404, "--from"), (403, "HF_TOKEN"), (418, "later")])
def test_a_refusal_is_final_and_says_what_to_do(status: int, hint: str, server, tmp_path: Path) -> None:
    server.status = [status]
    with pytest.raises(ModelSourceError, match=str(status)) as caught:
        get(server, tmp_path / "file")
    assert hint in caught.value.hint
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, tmp_path: Path) -> None:
    server.files["/file"] = BODY
    server.status = [503, 429]
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_server_that_stays_busy_is_given_up_and_the_part_kept(server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(BODY[:1000])
    server.status = [503] * 3
    with pytest.raises(ModelSourceError, match=r"127.0.0.1 could not be read: it answered 503") as caught:
        get(server, tmp_path / "file")
    assert "goes on where it stopped" in caught.value.hint
    assert (tmp_path / "file.part").read_bytes() == BODY[:1000]


def test_nobody_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    with open_client() as client, pytest.raises(ModelSourceError, match="could not be read") as caught:
        download(client, "http://127.0.0.1:9/file", tmp_path / "file", expected=WHOLE)
    assert "network" in caught.value.hint
