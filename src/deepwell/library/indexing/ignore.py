"""Which files a walk passes over: hidden ones, what tools keep for themselves, and what a ``.deepwellignore`` names.

A ``.deepwellignore`` lies in a folder and holds for it and below, one pattern a line, as in ``.gitignore``: ``#``
begins a comment, ``!`` takes a file back in, a trailing ``/`` means folders only, a ``/`` at the start or within ties
the pattern to that folder, ``*`` stays within a name and ``**`` crosses folders. The last pattern that fits decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

IGNORE_FILE = ".deepwellignore"

_FOLDERS = frozenset(
    {
        "node_modules",
        "__pycache__",
        "site-packages",
        "venv",
        "CVS",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "__MACOSX",
    }
)
_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"})
_SUFFIXES = (".pyc", ".pyo", ".o", ".so", ".tmp", ".swp", ".part", ".crdownload", "~")


def ignored_by_default(name: str, *, folder: bool) -> bool:
    """Hidden, a tool's own, or a leftover."""
    if name.startswith((".", "~$")):
        return True
    return name in _FOLDERS if folder else name.lower() in _FILES or name.endswith(_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One line of an ignore file, ready to be tried on paths below ``folder`` (with a final slash)."""

    folder: str
    expression: re.Pattern[str]
    keep: bool
    folders_only: bool


def parse(text: str, folder: str) -> tuple[Pattern, ...]:
    """The patterns of an ignore file that lies in ``folder``."""
    base = folder.rstrip("/") + "/"
    patterns = []
    for raw in text.splitlines():
        line = raw.rstrip()
        if not line or line.startswith("#"):
            continue
        keep = line.startswith("!")
        line = line.removeprefix("!").removeprefix("\\")
        folders_only = line.endswith("/")
        line = line.rstrip("/")
        if line:
            patterns.append(Pattern(base, re.compile(_expression(line)), keep, folders_only))
    return tuple(patterns)


def _expression(glob: str) -> str:
    anchored = "/" in glob
    glob = glob.removeprefix("/")
    out = "" if anchored else "(?:.*/)?"
    position = 0
    while position < len(glob):
        rest = glob[position:]
        character = glob[position]
        if rest.startswith("**/"):
            out, position = out + "(?:.*/)?", position + 3
        elif rest.startswith("**"):
            out, position = out + ".*", position + 2
        elif character == "*":
            out, position = out + "[^/]*", position + 1
        elif character == "?":
            out, position = out + "[^/]", position + 1
        elif character == "[" and "]" in glob[position + 2 :]:
            end = glob.index("]", position + 2)
            inner = glob[position + 1 : end].replace("\\", "\\\\")
            inner = "^" + inner[1:] if inner.startswith("!") else inner
            out, position = out + f"[{inner}]", end + 1
        else:
            out, position = out + re.escape(character), position + 1
    return out + r"\Z"


def is_ignored(path: str, patterns: Sequence[Pattern], *, folder: bool) -> bool:
    """Whether a walk passes over a path: the last pattern that fits decides, else the defaults do."""
    for pattern in reversed(patterns):
        if not path.startswith(pattern.folder) or (pattern.folders_only and not folder):
            continue
        if pattern.expression.match(path[len(pattern.folder) :]):
            return not pattern.keep
    return ignored_by_default(PurePath(path).name, folder=folder)
