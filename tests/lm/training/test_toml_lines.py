"""Lines of keys: for every document that tomllib reads, each key has one, and the key stands there."""

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from deepwell.lm.training.toml_lines import Path, lines_of


def _paths(value: Any, path: Path = ()) -> list[Path]:
    """Every key, table and element that tomllib found."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: list[Path] = [path] if path else []
    for key, child in inner:
        found += _paths(child, (*path, key))
    return found


def test_every_form_of_key_has_its_line() -> None:
    text = """# [not.a.table]
title = "a = 1 # no comment"   # b = 2
"quoted key" . 'an other'.plain = 3
many = '''
key = "inside of a string"
\"\"\" ''' # after
esc = \"\"\"one \\\"\"\" [two]
x = 1\"\"\"\"
list = [ # comment ]
  1, [2,
  3], { a.b = 4, "c" = [5] },
]
when = 1979-05-27 07:32:00

[data]
n = 1
[[data.sources]]
path = "a"
[data.sources.more]
deep = true
[[data.sources]]
path = "b"
[[data.sources.parts]]
p = 1
[[data.sources.parts]]
p = 2
"""
    lines = lines_of(text)
    assert sorted(lines, key=repr) == sorted(_paths(tomllib.loads(text)), key=repr)
    assert lines["quoted key", "an other", "plain"] == 3
    assert lines["many",] == 4
    assert lines["esc",] == 7
    assert lines["list", 1, 1] == 11
    assert lines["list", 2, "a", "b"] == 11
    assert lines["when",] == 13
    assert lines["data", "sources", 0, "path"] == 18
    assert lines["data", "sources", 0, "more", "deep"] == 20
    assert lines["data", "sources", 1, "path"] == 22
    assert lines["data", "sources", 1, "parts", 1, "p"] == 26


def test_windows_line_ends_count_once() -> None:
    assert lines_of('a = 1\r\n\r\nb = """x\r\ny"""\r\nc = 2\r\n')["c",] == 5


# ---- documents by chance ----

_TEXTS = st.text(st.sampled_from("ab\"'#=[]{}\\.,\n x"), max_size=8)
_WORDS = st.text(st.sampled_from("abcXYZ019_-"), min_size=1, max_size=4)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _key(draw: st.DrawFn, depth: int = 1) -> str:
    parts = [draw(st.one_of(_WORDS, _TEXTS.map(_quoted))) for _ in range(draw(st.integers(1, depth)))]
    return draw(st.sampled_from([".", " . "])).join(parts)


def _value(draw: st.DrawFn, depth: int = 2) -> str:
    kinds = ["number", "date", "basic", "literal", "long", "long literal", *(["array", "table"] if depth else [])]
    match draw(st.sampled_from(kinds)):
        case "number":
            return draw(st.sampled_from(["1", "-2.5e3", "0xff", "inf", "true", "1_000"]))
        case "date":
            return draw(st.sampled_from(["1979-05-27T07:32:00Z", "1979-05-27 07:32:00", "07:32:00"]))
        case "basic":
            return _quoted(draw(_TEXTS))
        case "literal":
            return "'" + draw(_TEXTS).replace("'", "").replace("\n", "") + "'"
        case "long":
            return '"""' + draw(_TEXTS).replace("\\", "\\\\").replace('"""', "").replace('"', '\\"') + '"""'
        case "long literal":
            return "'''" + draw(_TEXTS).replace("'", "") + "'''"
        case "array":
            break_ = draw(st.sampled_from([" ", "\n", " # ] no end\n"]))
            inner = [_value(draw, depth - 1) for _ in range(draw(st.integers(0, 3)))]
            return "[" + break_ + f",{break_}".join(inner) + break_ + "]"
        case _:
            inner = [f"{_key(draw, 2)} = {_value(draw, depth - 1)}" for _ in range(draw(st.integers(0, 3)))]
            return "{ " + ", ".join(inner) + " }"


@st.composite
def _documents(draw: st.DrawFn) -> str:
    lines = []
    for _ in range(draw(st.integers(1, 8))):
        match draw(st.sampled_from(["pair", "pair", "pair", "table", "array", "comment", "blank"])):
            case "pair":
                lines.append(f"{draw(st.sampled_from(['', '  ']))}{_key(draw, 2)} = {_value(draw)}")
            case "table":
                lines.append(f"[{_key(draw, 3)}]  # ] [x]")
            case "array":
                lines.append(f"[[ {draw(st.sampled_from(['a', 'b', 'a.b', 'a.c']))} ]]")
            case "comment":
                lines.append('# key = """')
            case _:
                lines.append("")
    return "\n".join(lines)


@given(_documents())
def test_lines_of_generated_documents(text: str) -> None:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # a key given twice, or a table over a value: chance writes those as well
    lines = lines_of(text)
    assert set(lines) == set(_paths(content))
    rows = text.split("\n")
    for path, line in lines.items():
        key = path[-1]
        if isinstance(key, str):
            row = rows[line - 1]
            assert key in row or _quoted(key) in row
