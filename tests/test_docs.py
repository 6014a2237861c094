"""What the documentation shows can be typed: commands parse, Python runs, links and named files exist."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
CALLS = [
    (page.name, line.removeprefix("$ ").strip())
    for page in PAGES
    for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
PYTHON = [
    (page.name, block)
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]


def test_there_is_something_to_check() -> None:
    assert len(CALLS) > 20
    assert len(PYTHON) >= 3


@pytest.mark.parametrize(("page", "line"), CALLS)
def test_a_shown_command_exists_and_takes_its_options(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line.partition(" #")[0])
    if words[0] == "make":
        assert all(re.search(rf"^{word}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for word in words[1:])
    if words[0] != "deepwell":
        return
    from deepwell.cli.main import cli

    # Parse only: files that an example names need not exist, and nothing is run.
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: Path(value))
    command: click.Command = cli
    context = cli.make_context("deepwell", words[1:], resilient_parsing=True)
    rest = [*context._protected_args, *context.args]
    while isinstance(command, click.Group) and rest:
        found = command.get_command(context, rest[0])
        assert found is not None, f"{page}: no command {rest[0]!r} in: {line}"
        command, rest = found, rest[1:]
        if not isinstance(command, click.Group):
            command.make_context(command.name, list(rest), parent=context)
            return
        context = command.make_context(command.name, list(rest), parent=context, resilient_parsing=True)


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.parametrize(("page", "block"), [(page, b) for page, b in PYTHON if "~" not in b])
def test_shown_python_runs(page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), {"__name__": page})


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_shown_python_compiles(page: str, block: str) -> None:
    compile(block, page, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_guide_names_every_option_of_search_and_every_extra() -> None:
    from deepwell.cli.search import search

    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    for option in search.params:
        if isinstance(option, click.Option):
            assert option.opts[0] in guide, option.opts[0]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in extras.keys() - {"dev", "bench", "demo"}:
        assert f"| `{extra}` |" in guide


def test_the_lock_pins_everything_exactly_and_names_no_index() -> None:
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lock if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    assert "torch==2.13.0" in pins
    assert not [pin for pin in pins if "nvidia" in pin or pin.startswith("deepwell")]
    held = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    for requirement in wanted:
        name = re.split(r"[\[<>=! ]", requirement)[0].lower().replace("_", "-")
        # pip comes with every environment and installs the rest; it is not asked to replace itself meanwhile.
        # datasets is in no extra that developers install: few need it, and the tests put another in its place.
        assert name in held or name in ("deepwell", "pip", "datasets"), requirement


def test_the_example_library_can_be_built_and_is_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skimage")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import make_library

    try:
        assert make_library.build(tmp_path / "a") == make_library.build(tmp_path / "b") > 40
        for file in (tmp_path / "a").rglob("*"):
            twin = tmp_path / "b" / file.relative_to(tmp_path / "a")
            assert file.is_dir() or file.read_bytes() == twin.read_bytes(), file
            assert file.is_dir() or file.stat().st_mtime == twin.stat().st_mtime
    finally:
        for name in ("make_library", "make_pages"):
            sys.modules.pop(name, None)
