"""Sentence borders: abbreviations, numbers, CJK, wrapped lines, headings, lists, very long runs."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.library.answers.sentences import MAX_CHARS, split_sentences


def sentences(text: str) -> list[str]:
    return [span.of(text) for span in split_sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It rained. We left.", ["It rained.", "We left."]),
        ("Dr. Smith met J. R. Jones. They ate.", ["Dr. Smith met J. R. Jones.", "They ate."]),
        ("It cost 3.50 dollars in Jan. 1999. Cheap!", ["It cost 3.50 dollars in Jan. 1999.", "Cheap!"]),
        ("We met at 5 p.m. He left at 6 p.m. sharp.", ["We met at 5 p.m.", "He left at 6 p.m. sharp."]),
        ("See Fig. 3, e.g. the left part. Done.", ["See Fig. 3, e.g. the left part.", "Done."]),
        ('"Stop!" he said. Then he ran.', ['"Stop!" he said.', "Then he ran."]),
        ("He said “go.” She went.", ["He said “go.”", "She went."]),
        ("今天下雨。我们在家！走吗？", ["今天下雨。", "我们在家！", "走吗？"]),
        ("彼は「はい。」と言った。帰った。", ["彼は「はい。」", "と言った。", "帰った。"]),
        ("# Rivers\nThe Severn is long.\nIt is\nmuddy.", ["# Rivers", "The Severn is long.", "It is\nmuddy."]),
        ("Buy:\n- milk\n- bread", ["Buy:", "- milk", "- bread"]),
        ("1. Methods were tried. 2. Results followed.", ["1. Methods were tried.", "2. Results followed."]),
        ("One paragraph\n\nAnother one", ["One paragraph", "Another one"]),
        ("it opened in 1987 . it closed later .", ["it opened in 1987 .", "it closed later ."]),
        ("Wait... what? Yes.", ["Wait... what?", "Yes."]),
        ("", []),
        (" \n ", []),
    ],
)
def test_borders(text, expected):
    assert sentences(text) == expected


def test_wrapped_lines_are_one_sentence():
    text = "The committee met on the third of May in the great hall of the\nTown House and agreed. Then it rose."
    assert len(sentences(text)) == 2


def test_a_run_without_borders_is_cut_between_words():
    text = " ".join(["word"] * 400)
    pieces = sentences(text)
    assert all(len(piece) <= MAX_CHARS for piece in pieces)
    assert " ".join(pieces) == text


@given(st.text(alphabet='aB1 .!?\n。“”"-,;', max_size=1500))
def test_nothing_is_lost_and_order_is_kept(text):
    spans = split_sentences(text)
    assert "".join("".join(span.of(text).split()) for span in spans) == "".join(text.split())
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert all(span.of(text) == span.of(text).strip() != "" for span in spans)
