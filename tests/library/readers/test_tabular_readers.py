"""CSV, TSV, JSON Lines, JSON, notebooks and Parquet."""

import json
from pathlib import Path

import pytest

from deepwell.errors import UnreadableFileError
from deepwell.library.readers import tables, tabular
from deepwell.library.readers.tabular import CsvReader, JsonReader, ParquetReader
from deepwell.library.readers.tokens import estimate_tokens
from deepwell.library.records import Document
from deepwell.testing import FakeSenses


def read(reader: object, path: Path, data: str | bytes) -> Document:
    path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return reader.read(path, FakeSenses())  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_csv_with_any_delimiter(tmp_path: Path, mark: str) -> None:
    source = "\n".join(mark.join(row) for row in (["well", "depth"], ["Kola", "12262"], ['"Deep, blue"', "7.5"]))
    document = read(CsvReader(), tmp_path / "wells.csv", source)
    schema, rows = document.passages
    assert schema.text.startswith("Table wells: 2 rows, 2 columns.\nwell: Kola, Deep, blue\ndepth: number, 7.5 to ")
    assert rows.text == "well: Kola; depth: 12262\nwell: Deep, blue; depth: 7.5"
    assert rows.place.rows == (1, 2)
    assert document.metadata == {"rows": 2, "columns": "well, depth"}


def test_every_row_can_be_found_at_its_number(tmp_path: Path) -> None:
    source = "id,note\n" + "".join(f"{number},row number {number} says so\n" for number in range(1, 501))
    document = read(CsvReader(), tmp_path / "a.csv", source)
    covered = []
    for passage in document.passages[1:]:
        first, last = passage.place.rows  # type: ignore[misc]
        lines = passage.text.split("\n")
        assert lines[0].startswith(f"id: {first};") and lines[-1].startswith(f"id: {last};")
        assert estimate_tokens(passage.text) <= 300
        covered += list(range(first, last + 1))
    assert covered == list(range(1, 501))


def test_without_a_header_and_with_ragged_rows(tmp_path: Path) -> None:
    document = read(CsvReader(), tmp_path / "a.csv", "1,2\n3,4,5\n\n6\n")
    assert document.passages[1].text == ("column 1: 1; column 2: 2\ncolumn 1: 3; column 2: 4; column 3: 5\ncolumn 1: 6")


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_LIMIT", 100)
    document = read(CsvReader(), tmp_path / "a.csv", "n\n" + "\n".join(f"v{n}" for n in range(1000)))
    assert document.metadata["notice"] == "only the first 100 rows are indexed"
    assert document.metadata["rows_indexed"] == 100
    assert "more than 100 rows" in document.passages[0].text
    monkeypatch.setattr(tabular, "_LINE", 1000)
    with pytest.raises(UnreadableFileError, match="has a line longer than"):
        read(CsvReader(), tmp_path / "b.csv", "a,b\n" + "x" * 5000)


def test_a_long_cell_is_cut_within_its_row(tmp_path: Path) -> None:
    text = "A sentence in a cell that goes on for a while. " * 60
    document = read(JsonReader(), tmp_path / "a.jsonl", json.dumps({"id": 1, "text": text}) + "\n" + '{"id": 2}')
    inner = [passage for passage in document.passages if passage.place.rows == (1, 1)]
    assert len(inner) > 2 and document.passages[-1].place.rows == (2, 2)


def test_json(tmp_path: Path) -> None:
    array = read(JsonReader(), tmp_path / "a.json", '[{"a": {"b": 1}, "c": [1, 2]}, {"c": null, "d": true}]')
    assert array.kind == "table"
    assert array.passages[1].text == "a.b: 1; c: 1, 2\nd: yes"
    plain = read(JsonReader(), tmp_path / "b.json", '{"name": "well", "parts": [{"x": "rope"}]}')
    assert (plain.kind, plain.passages[0].text) == ("text", "name: well\nparts[0].x: rope")
    with pytest.raises(UnreadableFileError, match="not well-formed JSON"):
        read(JsonReader(), tmp_path / "c.json", '{"a": ')
    with pytest.raises(UnreadableFileError, match="at line 2"):
        read(JsonReader(), tmp_path / "d.jsonl", '{"a": 1}\n{"a"\n')
    with pytest.raises(UnreadableFileError, match="not well-formed JSON"):
        read(JsonReader(), tmp_path / "e.json", "[" * 200_000)
    surrogate = read(JsonReader(), tmp_path / "f.jsonl", '{"a": "x\\ud800y\\u0000"}')
    assert surrogate.passages[-1].text == "a: x\ufffdy"


def test_a_notebook(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Depth\n", "\n", "How deep it is."]},
        {"cell_type": "code", "source": "print(1)"},
    ]
    document = read(JsonReader(), tmp_path / "a.ipynb", json.dumps({"cells": cells}))
    assert (document.kind, document.title) == ("code", "Depth")
    assert document.passages[0].text == "# Depth\n\nHow deep it is.\n\nprint(1)"


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"well": ["Kola", None], "depth": [12262.0, 3.5]}), path)
    document = ParquetReader().read(path, FakeSenses())
    assert document.passages[1].text == "well: Kola; depth: 12262\ndepth: 3.5"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UnreadableFileError, match="damaged or truncated"):
        ParquetReader().read(path, FakeSenses())
