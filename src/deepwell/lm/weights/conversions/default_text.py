"""A calibration text for those who have none: what Deepwell's own source says about itself.

Every docstring of this package, read from its files, so it is always at hand and free to use. It is English prose with
technical words and little else: a text like those that the network will see is better.
"""

from __future__ import annotations

import ast
from pathlib import Path

__all__ = ["default_text"]


def default_text() -> str:
    """The docstrings of all modules, classes and functions of this package, in the order of their files."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in sorted(Path(__file__).parents[3].rglob("*.py")))
    said = (
        ast.get_docstring(node)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return "\n\n".join(text for text in said if text)
