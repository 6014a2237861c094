"""Whose a folder is: one run's at a time, with one recipe, whatever has happened to its files."""

import json
from pathlib import Path

import pytest

from deepwell.errors import TrainingError, UsageError
from deepwell.lm.parallel.world import World
from deepwell.lm.training.folder import CHECKPOINTS, JOURNAL, RECIPE, claim, held, write_whole
from deepwell.lm.training.recipe import (
    BatchSection,
    DataSection,
    LogSection,
    ModelSection,
    OptimizerSection,
    Recipe,
    SourceSection,
)

PLAIN = Recipe(
    model=ModelSection(named="debug"),
    data=DataSection(sources=(SourceSection(path="a.txt"),)),
    batch=BatchSection(steps=1),
)
OTHER = PLAIN.replace(optimizer=OptimizerSection(lr=1.0))


def take(folder: Path, recipe: Recipe, *, resume: bool = False) -> None:
    claim(folder, recipe, "mine", folder, resume=resume, world=World())


def noted(folder: Path) -> object:
    return json.loads((folder / RECIPE).read_text(encoding="utf-8"))["recipe"]["optimizer"]


def test_a_run_goes_on_with_its_own_recipe_but_for_what_does_not_change_it(tmp_path: Path) -> None:
    take(tmp_path, PLAIN)
    take(tmp_path, OTHER)  # nothing has happened yet
    assert noted(tmp_path)["lr"] == 1.0  # type: ignore[index]
    (tmp_path / JOURNAL).touch()
    with pytest.raises(UsageError, match="holds a run of mine already"):
        take(tmp_path, OTHER)
    (tmp_path / CHECKPOINTS / "step-00000001").mkdir(parents=True)
    take(tmp_path, OTHER.replace(log=LogSection(tensorboard=False)), resume=True)
    with pytest.raises(UsageError, match="another recipe: optimizer differ"):
        take(tmp_path, PLAIN, resume=True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "mine"}', '{"name": "mine", "recipe": 3}'])
def test_a_damaged_note_is_replaced_by_the_recipe_that_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / RECIPE).write_text(content, encoding="utf-8")
    (tmp_path / JOURNAL).touch()
    with pytest.raises(UsageError, match="holds a run of"):
        take(tmp_path, OTHER)
    (tmp_path / CHECKPOINTS / "step-00000001").mkdir(parents=True)
    take(tmp_path, OTHER, resume=True)
    assert noted(tmp_path)["lr"] == 1.0  # type: ignore[index]


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with held(tmp_path / "run", World()):
        with pytest.raises(UsageError, match="in use by another run"), held(tmp_path / "run", World()):
            pass
        with held(tmp_path / "run", World(rank=1, size=2)):  # another process of the same run
            pass
    with held(tmp_path / "run", World()):
        pass


def test_folders_and_files_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be written.*\n.*--out"), held(tmp_path / "file" / "run", World()):
        pass
    write_whole(tmp_path / "note", "old")
    (tmp_path / "note.partial").mkdir()
    with pytest.raises(TrainingError, match="cannot be written"):
        write_whole(tmp_path / "note", "new")
    assert (tmp_path / "note").read_text(encoding="utf-8") == "old"
