"""Source code: cut at functions, classes and blank lines; each passage knows its lines and the names around it.

One reader for all languages: a line that opens a definition is told by the words that do so in that family of
languages, and what it holds by indentation. Comments and decorators above a definition belong to it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from deepwell.library.protocols import Senses
from deepwell.library.readers.decoding import decode, looks_like_text
from deepwell.library.readers.guard import TEXT_LIMIT, document, plain, read_bytes, shown
from deepwell.library.readers.passages import Block, cut
from deepwell.library.records import Document

_LANGUAGES = {
    "python": ".py .pyi .pyw .pyx",
    "javascript": ".js .mjs .cjs .jsx",
    "typescript": ".ts .tsx .mts",
    "java": ".java",
    "kotlin": ".kt .kts",
    "scala": ".scala .sbt",
    "c": ".c .h",
    "c++": ".cc .cpp .cxx .hpp .hh .hxx .ipp .cu .cuh",
    "c#": ".cs",
    "go": ".go",
    "rust": ".rs",
    "swift": ".swift",
    "ruby": ".rb .rake .gemspec",
    "php": ".php",
    "perl": ".pl .pm",
    "shell": ".sh .bash .zsh .fish",
    "powershell": ".ps1 .psm1",
    "lua": ".lua",
    "r": ".r",
    "julia": ".jl",
    "haskell": ".hs",
    "ocaml": ".ml .mli",
    "elixir": ".ex .exs",
    "erlang": ".erl",
    "clojure": ".clj .cljs",
    "lisp": ".lisp .el .scm",
    "sql": ".sql",
    "css": ".css .scss .less",
    "config": ".toml .yaml .yml .ini .cfg .conf .properties .tf .cmake .nix .gradle .proto .graphql",
    "xml": ".xml .xsd .xsl .svg .plist",
    "assembly": ".s .asm",
    "fortran": ".f .f90 .f95",
    "dart": ".dart",
    "vue": ".vue .svelte",
    "zig": ".zig",
    "diff": ".diff .patch",
    "vim": ".vim",
    "make": ".mk",
}
_BY_SUFFIX = {suffix: language for language, suffixes in _LANGUAGES.items() for suffix in suffixes.split()}
_SHEBANG = re.compile(rb"#!\s*\S*/(?:env\s+(?:-S\s+)?)?(python|bash|sh|zsh|perl|ruby|node|lua|php|awk|fish)[\d.]*\b")

_WORDS = (
    r"(?:(?:export|default|public|private|protected|internal|static|abstract|final|async|pub(?:\([\w:]+\))?|unsafe|extern|"
    r"inline|virtual|override|sealed|partial|open|data|suspend|local|declare|const)\s+)*"
    r"(?:class|def|function|func|fn|interface|struct|enum|trait|impl|module|namespace|object|record|protocol|extension|"
    r"sub|package|type|macro_rules!|defmodule|defp?|message|service)\b\*?\s*(?:\([^()]*\)\s*)?"
    r"(?:<[^>]{1,60}>\s*)?([A-Za-z_$][\w$.:?!]*)"
)
_C_LIKE = (
    r"(?:[A-Za-z_][\w:<>,*&\[\]\s]{0,120}?[\s*&])?([A-Za-z_~][\w:~]*)\s*"
    r"\([^;{}]{0,400}\)\s*(?:const\s*)?(?:noexcept\s*)?\{?\s*$"
)
_TABLES = r"(?:create|CREATE)\s+(?:(?:or|OR)\s+(?:replace|REPLACE)\s+)?\w+\s+(\w+)|\[+([\w.\" -]+)\]+\s*$"
_OPENS = re.compile(rf"(\s{{0,16}})(?:{_WORDS}|{_TABLES})")
_OPENS_C = re.compile(rf"()(?!(?:if|for|while|switch|return|else|do|case)\b){_C_LIKE}")
_ABOVE = re.compile(r"\s*(?:#(?!include|define|if|endif|!)|//|/?\*|@|--|;;|\"\"\"|\[[\w(])")


class CodeReader:
    name = "code"
    version = 1
    suffixes = frozenset(_BY_SUFFIX)
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """By suffix, or by the interpreter named in the first line."""
        if not looks_like_text(head):
            return 0.0
        if suffix in self.suffixes:
            return 0.8
        return 0.75 if _SHEBANG.match(head) else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is empty, binary or above 64 MiB."""
        del senses
        data = read_bytes(path, TEXT_LIMIT, "source code")
        text, _ = decode(data, path)
        shebang = _SHEBANG.match(data[:256])
        language = _BY_SUFFIX.get(path.suffix.lower()) or (shebang[1].decode().lower() if shebang else "")
        lines = plain(text).split("\n")
        blocks = code_blocks(lines, c_like=language in ("c", "c++", "c#", "java", "dart"))
        # The whole name: "utils.py" is what people call it.
        metadata = {"language": language, "lines": len(lines)}
        return document("code", path, cut(blocks), title=shown(path), metadata=metadata)


def code_blocks(lines: list[str], *, c_like: bool = False) -> list[Block]:
    """One block from each definition to the next, under the names of the definitions around it."""
    starts: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    stack: list[tuple[int, str]] = []
    for at, line in enumerate(lines):
        if len(line) > 400 or not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        name = _defined(line, c_like=c_like)
        closed = bool(stack) and indent <= stack[-1][0] and not line.lstrip().startswith(("{", "}", ")", "]", "end"))
        if closed:
            while stack and stack[-1][0] >= indent:
                stack.pop()
        if name:
            stack.append((indent, name))
        if name or closed:
            begin = _with_above(lines, at, starts[-1][0])
            path = tuple(part for _, part in stack)
            if begin == starts[-1][0]:
                starts[-1] = (begin, path)
            else:
                starts.append((begin, path))
    borders = [*(begin for begin, _ in starts[1:]), len(lines)]
    return [
        Block("\n".join(lines[begin:end]), path, "lines", line=begin + 1)
        for (begin, path), end in zip(starts, borders, strict=True)
    ]


def _defined(line: str, *, c_like: bool) -> str:
    found = _OPENS.match(line) or (_OPENS_C.match(line) if c_like else None)
    return next((part for part in found.groups()[1:] if part), "").strip(" :.!?") if found else ""


def _with_above(lines: list[str], at: int, floor: int) -> int:
    """Where a definition's own comments and decorators begin."""
    first = at
    while first - 1 >= floor and at - first < 40 and _ABOVE.match(lines[first - 1]):
        first -= 1
    return first
