"""Every kind of file is read in one order, and what cannot be read says where."""

import gzip
import json
import sys
import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.errors import DataError, MissingExtraError
from deepwell.lm.training.data.sources import Document, documents, files_of, repeats
from deepwell.lm.training.recipe import SourceSection


def read(base: Path, path: str, kind: str = "pretrain", **fields: Any) -> list[Document]:
    return list(documents(SourceSection(path=path, **fields), base, kind=kind))


def write_rows(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_a_pattern_gives_its_files_in_order_and_a_folder_those_with_text(tmp_path: Path) -> None:
    for name in ("b/two.md", "a/one.md", "a/deep/three.md", "four.txt", ".hidden/five.md", "picture.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert [one.text for one in read(tmp_path, "**/*.md")] == ["a/deep/three.md", "a/one.md", "b/two.md"]
    assert [one.text for one in read(tmp_path, ".")] == ["a/deep/three.md", "a/one.md", "b/two.md", "four.txt"]
    assert [one.text for one in read(Path("/"), str(tmp_path / "a" / "*.md"))] == ["a/one.md"]


def test_a_folder_of_rows_may_have_a_readme(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about", encoding="utf-8")
    write_rows(tmp_path / "rows.jsonl", [{"text": "a"}])
    assert [one.text for one in read(tmp_path, ".", format="jsonl")] == ["a"]
    assert [one.text for one in read(tmp_path, ".")] == ["about", "a"]
    with pytest.raises(DataError, match="has no files"):
        read(tmp_path, ".", format="parquet")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_json_lines_plain_and_packed(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, [{"text": "eins"}, {"text": "zwei ж"}])
    found = read(tmp_path, name)
    assert [one.text for one in found] == ["eins", "zwei ж"]
    assert found[1].where == f"{tmp_path / name}, line 2"


def test_a_json_array_and_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[\n {"text": "a"},\n {"text": "b"}\n]\n', encoding="utf-8")
    assert [(one.text, one.place) for one in read(tmp_path, "rows.json")] == [("a", "item 1"), ("b", "item 2")]
    (tmp_path / "rows.jsonl").write_text('\n{"text": "a"}\n\n{"text": "b"}', encoding="utf-8")
    assert [one.place for one in read(tmp_path, "rows.jsonl")] == ["line 2", "line 4"]


def test_parquet_by_rows(tmp_path: Path) -> None:
    table = pa.table({"body": [f"row {number}" for number in range(600)], "other": list(range(600))})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=100)
    found = read(tmp_path, "rows.parquet", text="body")
    assert [one.text for one in found] == [f"row {number}" for number in range(600)]
    assert found[599].place == "row 600"
    with pytest.raises(DataError, match=r"rows\.parquet has no field 'text'; it has body, other"):
        read(tmp_path, "rows.parquet")


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"rows\.parquet cannot be read as Parquet"):
        read(tmp_path, "rows.parquet")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "a"', r"line 2 is not JSON: .*column"),
        (b'{"text": "a\xff"}', "line 2: byte 11 is not UTF-8"),
        (b'{"body": "a", "id": 3}', "line 2 has no field 'text'; it has body, id"),
        (b'{"text": 3}', "line 2: text is int where text belongs"),
        (b'{"text": null}', "line 2: text is null where text belongs"),
        (b'{"text": "a\\u0000"}', "line 2: text has a NUL character at 1"),
        (b'{"text": "\\ud800"}', "line 2: text has half of a surrogate pair at 0"),
        (b"[1]", "line 2 is a list, and a row is an object"),
        (b"[" * 100_000, "line 2: this JSON cannot be read|line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_an_error_that_names_it(tmp_path: Path, line: bytes, problem: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=problem):
        read(tmp_path, "rows.jsonl")


def test_a_packed_file_cut_short(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl.gz", [{"text": str(number)} for number in range(5000)])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz cannot be read"):
        read(tmp_path, "rows.jsonl.gz")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no "):
        read(tmp_path, "none.txt")
    with pytest.raises(DataError, match="has no files"):
        read(tmp_path, "*.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no files"):
        files_of(SourceSection(path="empty"), tmp_path)


# ---- conversations ----


def test_messages_are_checked_and_cleaned(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "hi", "tool_calls": None}, {"role": "assistant", "content": "ho"}]
    write_rows(tmp_path / "chats.jsonl", [{"messages": said}])
    (found,) = read(tmp_path, "chats.jsonl", "sft", messages="messages", system="be brief")
    assert found.messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
    )
    assert found.own_text == "hi\nho"


def test_prompt_and_answer(tmp_path: Path) -> None:
    write_rows(tmp_path / "chats.jsonl", [{"q": "2 + 2?", "a": "4"}])
    (found,) = read(tmp_path, "chats.jsonl", "sft", prompt="q", answer="a")
    assert [(one["role"], one["content"]) for one in found.messages] == [("user", "2 + 2?"), ("assistant", "4")]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "messages is not a list of messages"),
        ("hello", "messages is not a list of messages"),
        (["hello"], r"messages\[0\] is a str"),
        ([{"role": "robot", "content": "x"}], r"messages\[0\]\.role is 'robot'; known are system"),
        ([{"role": "user"}], r"messages\[0\]\.content is null"),
        ([{"role": "user", "content": "x"}], "messages has no message of the assistant"),
    ],
)
def test_a_chat_that_is_none(tmp_path: Path, messages: Any, problem: str) -> None:
    write_rows(tmp_path / "chats.jsonl", [{"messages": messages}])
    with pytest.raises(DataError, match=f"line 1: {problem}"):
        read(tmp_path, "chats.jsonl", "sft", messages="messages")


def test_plain_text_is_no_chat(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hi", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.txt is plain text"):
        read(tmp_path, "a.txt", "sft", messages="messages")


# ---- data sets ----


def fake_datasets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    module = types.ModuleType("datasets")

    def load_dataset(name: str, *, split: str, streaming: bool) -> Any:
        calls.append((name, split, streaming))
        if split == "none":
            raise ValueError('Unknown split "none"')
        return iter([{"text": "eins"}, {"text": "zwei"}])

    def load_from_disk(path: str) -> Any:
        calls.append(("disk", path))
        return {"train": [{"text": "drei"}]}

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    module.load_from_disk = load_from_disk  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_a_data_set_by_its_name_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_datasets(monkeypatch)
    found = read(tmp_path, "owner/name", format="huggingface", split="dev")
    assert [(one.text, one.where) for one in found] == [("eins", "owner/name, row 1"), ("zwei", "owner/name, row 2")]
    assert calls == [("owner/name", "dev", True)]
    with pytest.raises(DataError, match=r"owner/name \(split none\) cannot be read: Unknown split"):
        read(tmp_path, "owner/name", format="huggingface", split="none")


def test_a_saved_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_datasets(monkeypatch)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset_dict.json").write_text("{}", encoding="utf-8")
    assert [one.text for one in read(tmp_path, "set", format="huggingface")] == ["drei"]
    assert calls == [("disk", str(tmp_path / "set"))]


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"deepwell\[train\]"):
        read(tmp_path, "owner/name", format="huggingface")


@given(st.fractions(min_value=Fraction(1, 100), max_value=5, max_denominator=100), st.integers(1, 300))
def test_repeats_sum_to_the_epochs(epochs: Fraction, count: int) -> None:
    each = [repeats(float(epochs), number) for number in range(count)]
    assert sum(each) == int(count * epochs)
    assert max(each) - min(each) <= 1
