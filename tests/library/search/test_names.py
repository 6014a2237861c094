"""Files are found by what they are called, renamed ones by the new name, and prose is not taken for a name."""

from pathlib import Path

import pytest

from deepwell.library.library import Library
from deepwell.library.search.names import named
from deepwell.library.search.understand import understand
from deepwell.testing import HashEncoder


def fits(store: object, query: str) -> dict[str, float]:
    return {int(content, 16): round(fit, 2) for content, fit in named(store, understand(query)).items()}  # type: ignore[arg-type, misc]


def test_a_name_fits_better_the_less_else_it_says(store) -> None:
    store.put(1, ["rows"], path="/a/budget.xlsx")
    store.put(2, ["prose"], path="/a/notes on the old budget plan.docx")
    store.put(3, ["other"], path="/budget/holiday.jpg")
    store.put(4, ["text"], path="text:budget")
    found = fits(store, "budget")
    assert found[1] == 1.0
    assert 0 < found[2] < 1.0
    assert set(found) == {1, 2}, "a folder's name is not a file's, and a text has none"
    assert fits(store, "budget.xlsx")[1] == 1.0
    assert fits(store, "BUDGET xlsx")[1] == 1.0


@pytest.mark.parametrize(
    "query", ["how do I ask the council for more money in the budget of next year", "holiday pay", ""]
)
def test_a_sentence_is_no_name(store, query: str) -> None:
    store.put(1, ["rows"], path="/a/budget.xlsx")
    store.put(2, ["rows"], path="/a/holiday.jpg")
    assert fits(store, query) == {}


def test_what_fits_half_the_library_names_nothing(store) -> None:
    for n in range(60):
        store.put(n, ["text"], path=f"/a/report {n}.txt")
    assert fits(store, "report") == {}
    assert set(fits(store, "report 7")) == {7}


def test_a_file_is_found_by_its_name_and_by_its_new_name(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "IMG_0107.txt").write_text("A tabby cat asleep on a chair.")
    for n in range(5):
        (folder / f"{n}.txt").write_text(f"Number {n} speaks of boats and of the weather.")
    with Library(tmp_path / "lib", text_encoder=HashEncoder(), workers=1) as lib:
        lib.add(folder)
        (hit, *_) = lib.search("img_0107")
        assert Path(hit.path).name == "IMG_0107.txt"
        assert hit.why["name"] == 1.0
        (folder / "IMG_0107.txt").rename(folder / "Biscuit.txt")
        assert lib.sync().moved == 1
        assert Path(lib.search("biscuit")[0].path).name == "Biscuit.txt"
        assert all("name" not in hit.why for hit in lib.search("img_0107"))
        assert len(lib.search("biscuit", path="*/0.txt")) <= 1, "a name does not escape a filter"


def test_every_passage_of_a_section_is_found_by_its_heading(tmp_path: Path) -> None:
    filler = "\n\n".join(f"Paragraph {n} goes on about valves, pipes and pumps at some length. " * 6 for n in range(12))
    (tmp_path / "manual.md").write_text(f"# Manual\n\n## Zeppelins\n\n{filler}\n\n## Other\n\nNothing else.\n")
    with Library(tmp_path / "lib", text_encoder=HashEncoder(), workers=1) as lib:
        lib.add(tmp_path / "manual.md")
        hits = [hit for hit in lib.search("zeppelins", limit=50) if "words" in hit.why]
        assert len(hits) >= 3
        assert all("Zeppelins" in hit.place.section for hit in hits)
        assert any("Zeppelins" not in hit.text for hit in hits), "the passage itself is stored as it stands"
