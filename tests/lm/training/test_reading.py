"""Recipes as TOML: what is read, what is written back, and what people are told when something is wrong."""

import dataclasses
import json
from pathlib import Path

import pytest

from deepwell.errors import RecipeError
from deepwell.lm.model.config import ModelConfig, RopeScaling
from deepwell.lm.training.building import Wrong, build, build_values, expected
from deepwell.lm.training.reading import from_dict, read, shipped, to_dict, to_toml
from deepwell.lm.training.recipe import (
    BatchSection,
    DataSection,
    ModelSection,
    OptimizerSection,
    Recipe,
    SourceSection,
)

GOOD = """kind = "pretrain"
seed = 3

[model]
named = "debug-moe"
config.num_hidden_layers = 3

[[data.sources]]
path = "a.txt"
[[data.sources]]
path = "b.jsonl"
text = "body"
epochs = 2

[data]
sequence_length = 64

[batch]
steps = 10
sequences = 4
ramp = [[0, 2], [0.5, 4]]

[optimizer]
lr = 1
betas = [0.8, 0.9]
"""


def written(folder: Path, text: str = GOOD) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, old: str, new: str, sets: tuple[str, ...] = ()) -> str:
    """What is said when a part of the good file is replaced, with the folder's path left out."""
    assert not old or old in GOOD
    path = written(folder, GOOD.replace(old, new, 1) if old else GOOD)
    with pytest.raises(RecipeError) as caught:
        read(path, sets)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "")


def test_a_file_becomes_a_recipe(tmp_path: Path) -> None:
    found = read(written(tmp_path))
    assert found.name == "mine"
    assert found.base == tmp_path
    recipe = found.recipe
    assert recipe.seed == 3
    assert recipe.model == ModelSection(named="debug-moe", config={"num_hidden_layers": 3})
    assert recipe.data.sources == (SourceSection(path="a.txt"), SourceSection(path="b.jsonl", text="body", epochs=2.0))
    assert recipe.batch.ramp == ((0.0, 2.0), (0.5, 4.0))
    assert recipe.optimizer.lr == 1.0
    assert isinstance(recipe.optimizer.lr, float)
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.checkpoint == Recipe(model=recipe.model, data=recipe.data, batch=recipe.batch).checkpoint


def test_a_wrong_key_names_line_and_the_nearest_right_one(tmp_path: Path) -> None:
    told = complaint(tmp_path, "sequences = 4", "sequence = 4")
    assert told.startswith("mine.toml, line 20: there is no key batch.sequence\n")
    assert "did you mean sequences?" in told
    assert "[batch] knows steps, tokens, epochs, sequences, micro_sequences, ramp" in told
    told = complaint(tmp_path, "[optimizer]", "[optimiser]")
    assert told.startswith("mine.toml, line 23: there is no key optimiser\n  did you mean optimizer?")
    told = complaint(tmp_path, 'text = "body"', 'txt = "body"')
    assert told.startswith("mine.toml, line 12: there is no key data.sources.1.txt\n  did you mean text?")
    told = complaint(tmp_path, "config.num_hidden_layers", "config.hidden_layers")
    assert told.startswith("mine.toml, line 6: there is no key model.config.hidden_layers")
    assert "did you mean num_hidden_layers?" in told


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seed = 3", 'seed = "3"', "mine.toml, line 2: seed is '3'; expected a whole number"),
        ("seed = 3", "seed = true", "mine.toml, line 2: seed is true; expected a whole number"),
        ("steps = 10", "steps = 1e1", "line 19: batch.steps is 10.0; expected a whole number\n  write 10"),
        ("lr = 1", "lr = true", "line 24: optimizer.lr is true; expected a number"),
        ("lr = 1", "lr = nan", "line 24: optimizer.lr is nan; expected a number"),
        ("lr = 1", "lr = -1", "line 24: optimizer.lr is -1.0; it is above 0"),
        ("lr = 1", 'name = "adam"', 'line 24: optimizer.name is \'adam\'; expected one of "adamw", "muon"\n  did you'),
        ("[0.8, 0.9]", "[0.8]", "line 25: optimizer.betas is [0.8]; expected a list of 2 values, each a number"),
        ("[0.8, 0.9]", "[0.8, 'x']", "line 25: optimizer.betas.1 is 'x'; expected a number"),
        ("[0.8, 0.9]", "[0.8, 1]", "line 25: optimizer.betas has 1.0; it is at least 0 and below 1"),
        ("[0.5, 4]", "[0.5, 4, 5]", "line 21: batch.ramp.1 is [0.5, 4, 5]; expected a list of 2 values"),
        ("steps = 10", "steps = 10\ntokens = 5", "line 18: batch needs exactly one of steps, tokens and epochs"),
        ("epochs = 2", "epochs = 0", "line 13: data.sources.epochs is 0.0; it is above 0"),
        ('path = "b.jsonl"', "", "line 10: data.sources.path is missing"),
        ('text = "body"', 'messages = "m"', 'line 12: data.sources.messages is for kind = "sft"'),
        ("sequence_length = 64", "sequence_length = 4", "line 16: data.sequence_length is 4; it is at least 8"),
        ("sequence_length = 64", "sequence_length = 600", "line 16: data.sequence_length is 600, and the network"),
        ('"debug-moe"', '"debug-mo"', "line 5: model.named: no network shape is called 'debug-mo'"),
        ("num_hidden_layers = 3", "num_experts_per_tok = 9", "line 6: model.config: num_experts_per_tok (9)"),
        ("num_hidden_layers = 3", "rope_scaling = 3", "line 6: model.config.rope_scaling is 3; expected a table"),
        ("num_hidden_layers = 3", 'rope_scaling = {kind="yarn"}', "line 6: model.config.rope_scaling has no factor"),
        ('[model]\nnamed = "debug-moe"\nconfig.num_hidden_layers = 3\n', "", "mine.toml: the recipe has no [model]"),
        ('named = "debug-moe"\n', "", "line 5: model.config lacks hidden_size"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, old: str, new: str, told: str) -> None:
    said = complaint(tmp_path, old, new)
    assert told in said, said


def test_syntax_errors_keep_their_line(tmp_path: Path) -> None:
    assert "mine.toml is not valid TOML" in complaint(tmp_path, '"pretrain"', "pretrain")
    assert "(at line 1, column" in complaint(tmp_path, '"pretrain"', "pretrain")


def test_changes(tmp_path: Path) -> None:
    path = written(tmp_path)
    recipe = read(
        path,
        [
            "optimizer.lr=2e-4",
            "optimizer.name=muon",
            "data.sources.1.path=c d.txt",
            'log.prompts=["a", "b"]',
            "model.config.rope_scaling=false",
            "batch.tokens=5_000",
        ],
    ).recipe
    assert recipe.optimizer.lr == 2e-4
    assert recipe.optimizer.name == "muon"
    assert [source.path for source in recipe.data.sources] == ["a.txt", "c d.txt"]
    assert recipe.log.prompts == ("a", "b")
    assert recipe.model.config == {"num_hidden_layers": 3, "rope_scaling": None}
    assert (recipe.batch.steps, recipe.batch.tokens) == (0, 5000)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("batch.stps=3", "--set batch.stps=3: there is no key batch.stps\n  did you mean steps?"),
        ("batch.sequences=x", "--set batch.sequences=x: batch.sequences is 'x'; expected a whole number"),
        ("batch.sequences=0", "--set batch.sequences=0: batch.sequences is 0; it is at least 1"),
        ("batch.micro_sequences=9", "--set batch.micro_sequences=9: batch.micro_sequences is 9, and a step has 4 rows"),
        ("batch.ramp=[[0, 1, 2]]", "--set batch.ramp=[[0, 1, 2]]: batch.ramp.0 is [0, 1, 2]"),
        ("data.sources.2.path=x", "--set data.sources.2.path=x: data.sources is a list, and '2' is none of its places"),
        ("data.sources.path=x", "--set data.sources.path=x: data.sources is a list, and 'path' is none"),
        ("data.sources.1.epochs=0", "--set data.sources.1.epochs=0: data.sources.epochs is 0.0"),
        ("seed.a=1", "--set seed.a=1: seed is a value, not a table"),
        ("seed", "--set seed: a change is written section.key=value"),
        ("model.config.n_group=3", "--set model.config.n_group=3: model.config: n_routed_experts (16) and n_group (3)"),
    ],
)
def test_wrong_changes_are_named(tmp_path: Path, change: str, told: str) -> None:
    said = complaint(tmp_path, "", "", (change,))
    assert said.startswith(told), said


def test_an_unknown_recipe_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read("pretrain-tny")
    assert "did you mean pretrain-tiny?" in str(caught.value)
    assert "sft-smollm2" in str(caught.value)
    with pytest.raises(RecipeError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'about = "\xe9"')
    with pytest.raises(RecipeError, match="not UTF-8 text, byte 9"):
        read(tmp_path / "latin.toml")


def test_environment_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, GOOD.replace('"a.txt"', '"$MY_TEXTS/a.txt"').replace('"b.jsonl"', '"${DEEPWELL_DATA}/b"'))
    monkeypatch.setenv("MY_TEXTS", "/texts")
    monkeypatch.setenv("DEEPWELL_DATA", str(tmp_path))
    assert [source.path for source in read(path).recipe.data.sources] == ["/texts/a.txt", f"{tmp_path}/b"]
    monkeypatch.delenv("MY_TEXTS")
    with pytest.raises(RecipeError) as caught:
        read(path)
    assert "mine.toml, line 9: data.sources.0.path names $MY_TEXTS, which is not set" in str(caught.value)
    assert read(path, ["data.sources.0.path=x"]).recipe.data.sources[0].path == "x"


def everything_changed() -> Recipe:
    """A recipe in which no section is at its default, with all that is hard to write down."""
    return Recipe(
        kind="sft",
        about='quotes " and \\ and \x7f, ünïcode, a\nline',
        model=ModelSection(
            config={
                **dataclasses.asdict(ModelConfig.named("debug-moe")),
                "rope_scaling": RopeScaling(kind="yarn", factor=4.0),
                "eos_token_id": (1, 2),
            },
        ),
        data=DataSection(
            sources=(
                SourceSection(path="a", messages="m"),
                SourceSection(path="b", prompt="p", answer="a", epochs=0.5),
            ),
        ),
        batch=BatchSection(epochs=1.5, ramp=((0.0, 1.0), (0.5, 8.0))),
        optimizer=OptimizerSection(eps=1e-12, betas=(0.0, 0.5)),
    )


def test_a_recipe_survives_json_and_toml(tmp_path: Path) -> None:
    recipe = everything_changed()
    assert from_dict(json.loads(json.dumps(to_dict(recipe))), "recipe.json") == recipe
    assert read(written(tmp_path, to_toml(recipe))).recipe == recipe
    assert ModelConfig(**recipe.model.config).rope_scaling == RopeScaling(kind="yarn", factor=4.0)


def test_what_is_written_is_only_what_differs() -> None:
    recipe = Recipe(
        model=ModelSection(named="debug"),
        data=DataSection(sources=(SourceSection(path="a"),)),
        batch=BatchSection(steps=5),
    )
    assert (
        to_toml(recipe) == '[model]\nnamed = "debug"\n\n[data]\n\n[[data.sources]]\npath = "a"\n\n[batch]\nsteps = 5\n'
    )


def test_from_dict_says_where() -> None:
    with pytest.raises(RecipeError, match=r"^runs/x/recipe.json: there is no key batch.stride"):
        from_dict({"batch": {"stride": 1}}, "runs/x/recipe.json")


def test_build_names_the_place_that_a_record_refuses() -> None:
    with pytest.raises(Wrong) as caught:
        build(SourceSection, {"path": "x", "epochs": -1}, ("data", "sources", 4))
    assert caught.value.place == ("data", "sources", 4, "epochs")
    assert build_values(BatchSection, {"ramp": [[0, 2]]}, ("batch",)) == {"ramp": ((0.0, 2.0),)}
    assert expected(tuple[SourceSection, ...]) == "a list of tables"
    assert expected(int | None) == "a whole number, or false for none"


def test_shipped_names_all_and_each_says_what_it_is() -> None:
    listed = shipped()
    assert [name for name, _ in listed] == sorted(name for name, _ in listed)
    assert all(20 < len(about) < 100 for _, about in listed)
