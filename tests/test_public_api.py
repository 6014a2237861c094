"""Every public name is documented, typed and used by a test."""

import ast
import dataclasses
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

import deepwell

TESTS = Path(__file__).parent
PACKAGE = Path(deepwell.__file__).parent


def _modules() -> dict[str, ast.Module]:
    """Every public module's syntax tree by name; read, not imported, so that collecting tests stays quick."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = ["deepwell", *file.relative_to(PACKAGE).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        if not any(part.startswith("_") for part in parts):
            found[".".join(parts)] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def _exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return list(ast.literal_eval(node.value))
    return []


MODULES = _modules()
PUBLIC = [(module, name) for module, tree in MODULES.items() for name in _exported(tree)]


@cache
def _words_of_tests() -> frozenset[str]:
    return frozenset(
        word
        for file in TESTS.rglob("*.py")
        if file.name != Path(__file__).name
        for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))
    )


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    assert len((ast.get_docstring(MODULES[module]) or "").split()) > 3


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_a_public_name_is_documented_and_used_by_a_test(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return
    documented = inspect.getdoc(value) or ""
    assert documented, f"{module}.{name} has no docstring"
    assert not documented.startswith(f"{name}("), f"{module}.{name} has only the docstring that dataclass made up"
    # A plain record is tested through the function that returns it, and need not be named there.
    assert dataclasses.is_dataclass(value) or name in _words_of_tests(), f"no test uses {module}.{name}"


def test_the_facade_keeps_its_promised_shape() -> None:
    library = deepwell.Library
    search = inspect.signature(library.search).parameters
    assert list(search)[:2] == ["self", "query"]
    for name in ("image", "audio", "kinds", "path", "since", "until", "where", "limit"):
        assert search[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert search["limit"].default == 10
    assert inspect.signature(library.ask).parameters["model"].default is None
    for name in ("add", "add_texts", "sync", "remove", "search", "ask", "ask_stream", "status", "close"):
        assert inspect.getdoc(getattr(library, name))
