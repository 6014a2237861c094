"""A folder appears whole or not at all, and nothing that is not a checkpoint is ever replaced."""

from pathlib import Path

import pytest

from deepwell.errors import ModelFileError, UsageError
from deepwell.lm.weights.replacing import replaced_folder


def _model(folder: Path, content: str = "old") -> None:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(content)


def test_a_new_folder_appears_with_what_was_written(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "a" / "b") as place:
        assert not (tmp_path / "a" / "b").exists()
        (place / "config.json").write_text("new")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["config.json"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_an_old_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    _model(tmp_path / "m")
    with replaced_folder(tmp_path / "m") as place:
        (place / "config.json").write_text("new")
        assert (tmp_path / "m" / "config.json").read_text() == "old"
    assert {path.name: path.read_text() for path in (tmp_path / "m").iterdir()} == {"config.json": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with replaced_folder(tmp_path / "m") as place:
        (place / "config.json").write_text("new")
    assert (tmp_path / "m" / "config.json").is_file()


def test_an_error_inside_leaves_everything_as_it_was(tmp_path: Path) -> None:
    _model(tmp_path / "m")
    with pytest.raises(RuntimeError, match="no"), replaced_folder(tmp_path / "m") as place:
        (place / "config.json").write_text("new")
        raise RuntimeError("no")
    assert (tmp_path / "m" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("stranger", ["notes.txt", "optimizer.pt", "data", ".git", "model.gguf", "deepwell-model.json"])
def test_a_folder_with_anything_else_is_refused_by_name(tmp_path: Path, stranger: str) -> None:
    _model(tmp_path / "m")
    (tmp_path / "m" / stranger).mkdir()
    with pytest.raises(UsageError, match=stranger), replaced_folder(tmp_path / "m"):
        pytest.fail("it was entered")
    assert len(list((tmp_path / "m").iterdir())) == 4


def test_a_folder_of_parts_without_a_config_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "vocab.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no model"), replaced_folder(tmp_path / "m"):
        pytest.fail("it was entered")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("a file")
    with pytest.raises(UsageError, match="is a file"), replaced_folder(tmp_path / "m"):
        pytest.fail("it was entered")


def test_a_move_that_fails_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _model(tmp_path / "m")
    rename = Path.rename

    def once(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise OSError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(ModelFileError, match=r"Permission denied.*unchanged"), replaced_folder(tmp_path / "m") as place:
        (place / "config.json").write_text("new")
    assert (tmp_path / "m" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
