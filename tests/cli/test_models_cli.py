import io
import json
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from deepwell.cli.models import ModelName, _progress_bar, models, readable
from deepwell.errors import MissingModelError, ModelSourceError, UsageError
from deepwell.models.progress import Step

CATALOGUE = """
[sets]
ours = ["here", "gone"]

[models.here]
task = "sounds"
family = "test"
licence = "MIT"
about = "On the stick"
files = ["weights.bin"]

[[models.here.sources]]
kind = "folder"
path = "../stick/here"

[models.gone]
task = "sounds"
family = "test"
files = ["weights.bin"]

[[models.gone.sources]]
kind = "folder"
path = "../stick/gone"
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "catalogue.toml").write_text(CATALOGUE)
    (tmp_path / "stick" / "here").mkdir(parents=True)
    (tmp_path / "stick" / "here" / "weights.bin").write_bytes(b"12345")
    monkeypatch.setenv("DEEPWELL_MODELS", str(folder))
    return folder


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(models, args, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def test_list_has_one_line_a_model_when_piped(place: Path) -> None:
    lines = {line.split("\t")[0]: line.split("\t") for line in run("list").stdout.splitlines()}
    assert lines["whisper-tiny"][1:5] == ["-", "78.1 MB", "speech", "MIT"]
    run("pull", "here")
    lines = {line.split("\t")[0]: line.split("\t") for line in run("list").stdout.splitlines()}
    assert lines["here"][1] == "here"


def test_list_as_json(place: Path) -> None:
    run("pull", "here")
    data = json.loads(run("list", "--json").stdout)
    assert data["folder"] == str(place)
    assert data["sets"]["ours"] == ["here", "gone"]
    rows = {row["name"]: row for row in data["models"]}
    assert rows["here"]["present"] is True
    assert rows["here"]["folder"] == str(place / "here")
    assert rows["all-minilm-l6-v2"]["dim"] == 384
    assert rows["all-minilm-l6-v2"]["sources"][0]["verified"] is True
    assert rows["whisper-tiny"]["sets"] == ["starter"]


def test_pull_path_verify_remove(place: Path) -> None:
    assert "from folder" in run("pull", "here").stdout
    assert "already here" in run("pull", "here").stdout
    assert run("path", "here").stdout == f"{place / 'here'}\n"
    assert "here: good, 1 files, 5 B" in run("verify").stdout
    assert run("remove", "here").stdout.startswith("here: removed")
    with pytest.raises(MissingModelError):
        run("path", "here")


def test_the_same_as_json(place: Path) -> None:
    pulled = json.loads(run("pull", "here", "--json").stdout)
    assert pulled["failed"] == []
    assert pulled["pulled"][0]["name"] == "here"
    assert pulled["pulled"][0]["folder"] == str(place / "here")
    assert json.loads(run("path", "here", "--json").stdout) == {"name": "here", "folder": str(place / "here")}
    assert json.loads(run("verify", "--json").stdout)["models"][0]["ok"] is True
    assert json.loads(run("remove", "here", "--json").stdout)["removed"][0]["name"] == "here"


def test_a_set_that_half_works_is_partly_done(place: Path) -> None:
    result = run("pull", "ours", code=3)
    assert "here: 5 B" in result.stdout
    assert "gone: 'gone' was not pulled" in result.stderr
    data = json.loads(run("pull", "ours", "--json", code=3).stdout)
    assert [one["name"] for one in data["pulled"]] == ["here"]
    assert (data["failed"][0]["name"], data["failed"][0]["code"]) == ("gone", "model-source")
    assert data["failed"][0]["hint"]


def test_one_model_that_fails_is_an_error() -> None:
    with pytest.raises(ModelSourceError, match="'gone' was not pulled"):
        run("pull", "gone")


def test_an_unknown_name_stops_before_anything_is_pulled(place: Path) -> None:
    with pytest.raises(UsageError):
        run("pull", "here", "nobody")
    assert not (place / "here").exists()


def test_from_a_folder(place: Path, tmp_path: Path) -> None:
    (tmp_path / "usb" / "gone").mkdir(parents=True)
    (tmp_path / "usb" / "gone" / "weights.bin").write_bytes(b"1")
    run("pull", "gone", "--from", str(tmp_path / "usb"))
    assert (place / "gone" / "weights.bin").read_bytes() == b"1"


def test_damage_is_shown_with_the_way_out_and_fails(place: Path) -> None:
    run("pull", "here")
    (place / "here" / "weights.bin").write_bytes(b"54321")
    result = run("verify", code=1)
    assert "here: DAMAGED" in result.stdout
    assert "weights.bin: its content has changed" in result.stdout
    assert "run: deepwell models pull here --force" in result.stdout
    assert json.loads(run("verify", "here", "--json", code=1).stdout)["models"][0]["problems"]


def test_verify_of_nothing_points_to_the_starter_set() -> None:
    assert "deepwell models pull starter" in run("verify").stdout


def test_names_are_completed(place: Path) -> None:
    run("pull", "here")
    completion = ShellComplete(models, {}, "models", "_MODELS_COMPLETE")
    assert {item.value for item in completion.get_completions(["pull"], "sta")} == {"starter"}
    assert {item.value for item in completion.get_completions(["path"], "")} == {"here"}
    assert ModelName().shell_complete(click.Context(models), models.params[0] if models.params else None, "yam")  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_shown_a_bar_and_the_output_stays_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, output = Terminal(), io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with _progress_bar({"here": " (1 of 2)"}) as progress:
        assert progress is not None
        progress(Step("here", "fetching weights.bin", 0, 1000))
        progress(Step("here", "fetching weights.bin", 500, 1000))
        progress(Step("here", "checking", 1000, 1000))
        print("done")
    assert "fetching weights.bin" in screen.getvalue()
    assert "(1 of 2)" in screen.getvalue()
    assert output.getvalue() == "done\n"


def test_a_terminal_is_shown_a_table(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    run("pull", "here")
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    models.main(["list"], standalone_mode=False)
    shown = screen.getvalue()
    assert "On the stick" in shown
    assert "starter" in shown
    assert str(place) in shown
    assert max(len(line) for line in click.unstyle(shown).splitlines()[:-1]) <= 80


def test_no_terminal_is_shown_nothing() -> None:
    with _progress_bar({}) as progress:
        assert progress is None


@pytest.mark.parametrize(("size", "text"), [(5, "5 B"), (1500, "1.5 kB"), (91_567_913, "91.6 MB"), (1.6e9, "1.6 GB")])
def test_readable(size: float, text: str) -> None:
    assert readable(size) == text
