"""Reasoning in every form comes out as reasoning, however the stream is cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.library.answers.thoughts import ThoughtSplitter, strip_thoughts


def split(pieces, hold=True):
    splitter = ThoughtSplitter(hold=hold)
    deltas = [delta for piece in pieces for delta in splitter.feed(piece)]
    deltas += splitter.finish()
    return "".join(d.reasoning for d in deltas), "".join(d.text for d in deltas)


CASES = [
    ("<think>Let me see.</think>It is 4.", "Let me see.", "It is 4."),
    ("\n<think>\nHm\n</think>\n\nIt is 4.", "\nHm\n", "It is 4."),
    ("Let me see. 2 < 3.\n</think>\n\nIt is 4.", "Let me see. 2 < 3.\n", "It is 4."),  # the template opened it
    ("<think>It never ends, the limit came", "It never ends, the limit came", ""),
    ("It is 4, as 3 < 4.", "", "It is 4, as 3 < 4."),
    ("<thinking>A</thinking>B", "A", "B"),
    ("[THINK]A[/THINK]B [1]", "A", "B [1]"),
    ("<think>A</think>B<think>C</think>D", "AC", "BD"),
    ("<think></think>B", "", "B"),
    ("", "", ""),
]


@pytest.mark.parametrize(("reply", "reasoning", "text"), CASES)
def test_however_it_is_cut(reply, reasoning, text):
    for size in (1, 2, 3, 5, 8, 1000):
        assert split([reply[i : i + size] for i in range(0, len(reply), size)]) == (reasoning, text), size


@given(st.sampled_from(CASES), st.lists(st.integers(0, 60), max_size=6))
def test_any_cuts_give_the_same(case, cuts):
    reply, reasoning, text = case
    borders = sorted({0, len(reply), *(min(cut, len(reply)) for cut in cuts)})
    assert split([reply[a:b] for a, b in pairwise(borders)]) == (reasoning, text)


def test_without_holding_text_flows_at_once():
    splitter = ThoughtSplitter(hold=False)
    assert [d.text for d in splitter.feed("It is")] == ["It is"]
    assert split(["<thi", "nk>A</th", "ink>B"], hold=False) == ("A", "B")


def test_with_holding_nothing_is_shown_before_it_is_sure():
    assert list(ThoughtSplitter().feed("It is")) == []


def test_a_server_with_a_field_for_thoughts_lets_text_flow():
    splitter = ThoughtSplitter()
    assert list(splitter.answering()) == []
    assert [d.text for d in splitter.feed("It is 4")] == ["It is 4"]


def test_thoughts_are_stripped_from_earlier_turns():
    assert strip_thoughts("<think>secret</think>It is 4.") == "It is 4."
    assert strip_thoughts("secret</think>It is 4.") == "It is 4."
