"""Text, Markdown, HTML and source code."""

from pathlib import Path

import pytest

from deepwell.errors import UnreadableFileError
from deepwell.library.readers.code import CodeReader
from deepwell.library.readers.decoding import decode
from deepwell.library.readers.html import HtmlReader
from deepwell.library.readers.markdown import MarkdownReader
from deepwell.library.readers.plain import TextReader
from deepwell.library.records import Document
from deepwell.testing import FakeSenses

RUSSIAN = "Глубокий колодец ищет ответы на вопросы и хранит тексты на вашем компьютере. " * 4
GERMAN = "Größere Bücher über schöne Häuser möchten wir natürlich auch prüfen können. " * 4
JAPANESE = "深い井戸は、自分の文章や画像を自分のパソコンで検索できる道具です。" * 6


def read(reader: object, path: Path, data: str | bytes) -> Document:
    path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return reader.read(path, FakeSenses())  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (RUSSIAN, "utf-8"),
        (RUSSIAN, "utf-8-sig"),
        (RUSSIAN, "utf-16"),
        (GERMAN, "utf-16-le"),
        (GERMAN, "utf-32"),
        (GERMAN, "cp1252"),
        (RUSSIAN, "cp1251"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
    ],
)
def test_encodings(tmp_path: Path, text: str, encoding: str) -> None:
    assert decode(text.encode(encoding), tmp_path / "a.txt")[0] == text


def test_a_bad_byte_among_good_ones_and_a_cut_character(tmp_path: Path) -> None:
    good = (GERMAN * 10).encode()
    assert decode(good + b"\xff " + good, tmp_path)[0].count("\ufffd") == 1
    assert decode(good + "é".encode()[:1], tmp_path)[1] == "utf-8"


def test_text_knows_its_lines(tmp_path: Path) -> None:
    paragraph = "A sentence that fills the line well enough to be prose.\n" * 20
    document = read(TextReader(), tmp_path / "notes.txt", f"{paragraph}\n\n{paragraph}")
    assert (document.kind, document.title) == ("text", "notes")
    assert document.passages[0].place.lines is not None and document.passages[0].place.lines[0] == 1
    assert document.passages[-1].place.lines is not None and document.passages[-1].place.lines[1] == 42


def test_nothing_that_cannot_be_stored_comes_out(tmp_path: Path) -> None:
    document = read(TextReader(), tmp_path / "a.txt", b"one\x01 two\r\nthree\xed\xa0\x80 four " + b"good words " * 400)
    text = document.passages[0].text
    assert text.startswith("one two\nthree") and text.encode("utf-8")
    with pytest.raises(UnreadableFileError, match="binary"):
        read(TextReader(), tmp_path / "b.txt", b"words \0\0\0 words")


def test_a_line_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate(200 * 1024 * 1024)
    with pytest.raises(UnreadableFileError, match=r"huge.txt has 200 MiB, above the limit of 64 MiB"):
        TextReader().read(path, FakeSenses())


def test_markdown(tmp_path: Path) -> None:
    body = "Some words about this part that fill it. " * 18
    source = f"""---
title: "The Well"
author: Ada
date: 2024-05-06
tags: [deep, water]
---

# The *Deep* Well

{body}

## Use

{body}

```python
# not a heading
print(1)
```

Old style
---------

{body}
"""
    document = read(MarkdownReader(), tmp_path / "a.md", source)
    assert document.title == "The Well"
    assert document.metadata == {"author": "Ada", "tags": "deep, water", "created": "2024-05-06"}
    sections = [passage.place.section for passage in document.passages]
    assert sections == [("The Deep Well",), ("The Deep Well", "Use"), ("The Deep Well", "Old style")]
    assert "# not a heading\nprint(1)" in document.passages[1].text
    assert source.split("\n")[document.passages[0].place.lines[0] - 1] == "# The *Deep* Well"  # type: ignore[index]


def test_html(tmp_path: Path) -> None:
    source = """<!DOCTYPE html><html lang="en"><head><title>Wells &amp; water</title><meta name="author" content="Ada">
    <meta property="article:published_time" content="2024-05-06T07:08:09Z"><style>p {color: red}</style></head><body>
    <nav><a href="/">Home</a></nav><header role="banner">Logo</header><h1>Wells</h1><p>Water is <b>deep</b>
    down.<br>Very.</p><ul><li>one</li><li>two</li></ul><h2>Depths</h2>
    <table><tr><th>well</th><th>metres</th></tr><tr><td>Kola</td><td>12262</td></tr></table>
    <pre>a  b
  c</pre><script>alert("x")</script><footer>Imprint</footer></body></html>"""
    document = read(HtmlReader(), tmp_path / "a.html", source)
    assert document.kind == "web"
    assert document.title == "Wells & water"
    assert document.metadata["author"] == "Ada" and document.metadata["created"] == "2024-05-06T07:08:09+00:00"
    (passage,) = document.passages
    assert passage.text == (
        "Wells\n\nWater is deep down. Very.\n- one\n- two\n\nDepths\n\nwell | metres\nKola | 12262\n\na  b\n  c"
    )


def test_html_of_menus_only_and_very_deep_html(tmp_path: Path) -> None:
    menu = "<html><body><nav>Where to go from here</nav></body></html>"
    assert read(HtmlReader(), tmp_path / "a.html", menu).passages[0].text == "Where to go from here"
    deep = "<html><body>" + "<div>" * 20_000 + "bottom" + "</div>" * 20_000
    assert read(HtmlReader(), tmp_path / "b.html", deep).passages[0].text == "bottom"
    latin = '<html><head><meta charset="iso-8859-1"></head><body><p>caf\xe9 au lait'.encode("latin-1")
    assert read(HtmlReader(), tmp_path / "c.html", latin).passages[0].text == "café au lait"


CODE = '''"""A module."""

import os


class Pump:
    """Brings water up."""

    # How it starts.
    @staticmethod
    def start(power):
        {body}


@decorated
def drain(well):
    {body}
'''


def test_code_is_cut_at_definitions(tmp_path: Path) -> None:
    body = "value = power * 2 + well  # a line of the body\n        " * 16
    document = read(CodeReader(), tmp_path / "pump.py", CODE.replace("{body}", body + "return value"))
    assert (document.kind, document.title, document.metadata["language"]) == ("code", "pump.py", "python")
    drain = next(passage for passage in document.passages if passage.place.section[-1:] == ("drain",))
    assert drain.text.startswith("@decorated\ndef drain(well):\n")
    assert any(passage.place.section[:2] == ("Pump", "start") for passage in document.passages)
    whole = (tmp_path / "pump.py").read_text()
    for passage in document.passages:
        first, last = passage.place.lines  # type: ignore[misc]
        assert "\n".join(whole.split("\n")[first - 1 : last]) == passage.text


def test_c_functions(tmp_path: Path) -> None:
    body = "    total += weights[index] * values[index]; /* more of it */\n" * 12
    source = f"#include <stdio.h>\n\nstatic int add(int a, int b)\n{{\n{body}}}\n\nint main(void) {{\n{body}}}\n"
    document = read(CodeReader(), tmp_path / "a.c", source)
    assert {("add",), ("main",)} <= {passage.place.section for passage in document.passages}
