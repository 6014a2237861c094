"""Bodies are JSON in UTF-8, and nothing that only Python takes for it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.server.bodies import MOST_NESTED, parse
from deepwell.server.errors import ApiError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES, st.booleans())
def test_what_python_writes_is_read_as_it_was(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        body = text.encode()
    except UnicodeEncodeError:
        return
    assert parse(body) == value


def test_whole_numbers_may_be_written_as_others() -> None:
    assert [type(one) for one in parse(b"[1.0, 1e3, 1.5, 1e300, -0.0]")] == [int, int, float, float, int]


def test_brackets_in_texts_do_not_count() -> None:
    assert parse(json.dumps(["[" * 200, '"[' * 200, "\\" * 3 + "[" * 200]).encode()) is not None
    deepest = b"[" * MOST_NESTED + b"]" * MOST_NESTED
    assert parse(b"[" + b",".join([b"[]"] * 200) + b"]") == [[]] * 200
    assert parse(deepest) is not None
    with pytest.raises(ApiError, match=f"nested more than {MOST_NESTED} deep, at character {MOST_NESTED + 3}"):
        parse(b'["["' + deepest)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\xff", "byte 0 is 0xff"), (b"\xef\xbb\xbf{}", "BOM"), (b"{", "line 1, column 2"), (b"", "line 1"),
        (b"[Infinity]", "Infinity is no JSON"), (b"[1e999]", "too large a number"), (b"9" * 5000, "cannot be read"),
        (b'"\\udc00"', "half of a surrogate"), (b'{"\\ud83d": 1}', "half of a surrogate"),
    ],
)  # fmt: skip
def test_what_is_not_json_is_told_with_its_place(body: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        parse(body)
    assert caught.value.status_code == 400


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert parse(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
