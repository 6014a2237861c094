r"""On which line of a TOML document each key stands. ``tomllib`` reads values and forgets where they were.

    >>> lines_of('seed = 1\n[[data.sources]]\npath = "a"\n[[data.sources]]\npath = "b"')["data", "sources", 1, "path"]
    5

A path is the keys from the top down, with an index (from 0) for every element of an array. Tables, arrays and their
elements have lines as well: that of their header, or where they begin. The document must be one that ``tomllib`` has
read without an error, so this scanner checks nothing; it has only to know where strings and comments end.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

Path = tuple[str | int, ...]
"""Keys from the top down; integers are indices into arrays."""

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*'""")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})' r"|'''.*?'''(?:'{0,2})" r'|"(?:\\.|[^"\\])*"' r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]*")


def lines_of(text: str) -> dict[Path, int]:
    """The line (from 1) of every key, table and array element of a valid TOML document."""
    scanner = _Scanner(text.replace("\r\n", "\n"))
    scanner.document()
    return scanner.lines


class _Scanner:
    """Walks once over the text. ``at`` is the place, ``lines`` what was found."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._breaks = [match.start() for match in re.finditer("\n", text)]
        self._counts: dict[Path, int] = {}
        """Elements so far of each array of tables."""

    def document(self) -> None:
        table: Path = ()
        self._skip(_BLANK)
        while self.at < len(self.text):
            if self._peek("["):
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)

    def _peek(self, what: str) -> bool:
        return self.text.startswith(what, self.at)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match is not None, f"no TOML at {self.text[self.at : self.at + 20]!r}"
        self.at = match.end()
        return match[0]

    def _record(self, path: Path, place: int) -> None:
        self.lines.setdefault(path, bisect_right(self._breaks, place) + 1)

    def _key(self) -> list[tuple[str, int]]:
        """The parts of a dotted key, each with its place."""
        parts = []
        while True:
            self._skip(_SPACE)
            place = self.at
            raw = self._skip(_KEY_PART)
            if raw[0] in "\"'":
                raw = tomllib.loads(f"key = {raw}")["key"]
            parts.append((raw, place))
            self._skip(_SPACE)
            if not self._peek("."):
                return parts
            self.at += 1

    def _header(self) -> Path:
        """``[table]`` or ``[[array of tables]]``; returns the path that the keys below it stand under."""
        many = self._peek("[[")
        self.at += 2 if many else 1
        parts = self._key()
        self.at += 2 if many else 1
        path: Path = ()
        for part, place in parts[:-1]:
            path = (*path, part)
            self._record(path, place)
            if path in self._counts:
                path = (*path, self._counts[path] - 1)
        part, place = parts[-1]
        path = (*path, part)
        self._record(path, place)
        if many:
            index = self._counts.get(path, 0)
            self._counts[path] = index + 1
            path = (*path, index)
            self._record(path, place)
        return path

    def _pair(self, table: Path) -> None:
        """``key = value``, here and inside of braces."""
        path = table
        for part, place in self._key():
            path = (*path, part)
            self._record(path, place)
        self.at += 1  # the sign of equality
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._peek("["):
            self._array(path)
        elif self._peek("{"):
            self._inline_table(path)
        elif self._peek('"') or self._peek("'"):
            self._skip(_STRING)
        else:
            self._skip(_SCALAR)

    def _array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self._skip(_BLANK) is not None and not self._peek("]"):
            self._record((*path, index), self.at)
            self._value((*path, index))
            self._skip(_BLANK)
            if self._peek(","):
                self.at += 1
            index += 1
        self.at += 1

    def _inline_table(self, path: Path) -> None:
        self.at += 1
        while self._skip(_BLANK) is not None and not self._peek("}"):
            self._pair(path)
            self._skip(_BLANK)
            if self._peek(","):
                self.at += 1
        self.at += 1
