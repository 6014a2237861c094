"""Records for people: what is marked, what is cut, and what a hostile document cannot do to a terminal."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.cli import render


@pytest.mark.parametrize(
    ("query", "text", "marked"),
    [
        ("the storms of 1911", "A storm in 1911; the Storms", ["storm", "1911", "Storms"]),
        ("heat pumps", "heating by a pump", ["heating", "pump"]),
        ("桫椤", "一株桫椤", ["桫椤"]),
        ("the of", "the end of it", []),
        ("c++ (x", "c++ (x)", []),
        (None, "anything", []),
    ],
)
def test_words_of_the_query_are_marked(query: str | None, text: str, marked: list[str]) -> None:
    pattern = render.query_words(query)
    assert (pattern.findall(text) if pattern else []) == marked


def test_a_snippet_shows_where_the_words_are() -> None:
    text = "filler " * 200 + "the goat is missing " + "filler " * 200
    shown = render.snippet(text, render.query_words("goat")).plain
    assert "goat is missing" in shown
    assert shown.startswith("…")
    assert shown.endswith("…")
    assert len(shown) <= render.SNIPPET + 2


@given(st.text(), st.text())
def test_no_text_moves_the_cursor(text: str, query: str) -> None:
    shown = render.snippet(text, render.query_words(query)).plain
    assert all(character.isprintable() for character in shown)


def test_paths_are_short_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    assert render.short_path(str(tmp_path / "a" / "b.txt")) == "a/b.txt"
    assert render.short_path("/home/ann/c.txt") == "~/c.txt"
    assert render.short_path("/else/d.txt") == "/else/d.txt"
    assert render.short_path("text:42") == "text:42"


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (999, "999 B"), (91_600_000, "91.6 MB"), (5e12, "5000.0 GB")])
def test_sizes_read_well(count: float, words: str) -> None:
    assert render.size(count) == words
