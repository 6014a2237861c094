"""How an answer is shown: thoughts dim, folded or hidden, and nothing that moves the cursor."""

import io
import time

import pytest
from rich.console import Console

from deepwell.cli.answering import THOUGHTS, Display, Said, Thoughts, visible

PIECES = [("", "Let me "), ("", "see."), ("Nine", ""), (" metres", "")]


def _shown(thoughts: Thoughts, *, terminal: bool = True, pieces: list[tuple[str, str]] = PIECES) -> str:
    out = Console(file=io.StringIO(), force_terminal=terminal, color_system=None, width=80)
    display, said = Display(out, thoughts), Said(times=[time.perf_counter()])
    for text, reasoning in pieces:
        said.note(1)
        display.show(said, text, reasoning)
        said.text += text
        said.reasoning += reasoning
    display.end(said)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_thoughts_are_shown_as_they_are_wanted() -> None:
    dim, folded, hidden = (_shown(thoughts) for thoughts in THOUGHTS)
    assert "Let me see.\n\nNine metres\n4 tokens, the first after" in dim
    assert "Let me" not in folded + hidden
    assert "Thinking ..." in folded
    assert folded.index("Thought for 0.") < folded.index("Nine metres\n")
    assert hidden.startswith("Nine metres\n")


@pytest.mark.parametrize("thoughts", THOUGHTS)
def test_on_a_pipe_the_answer_stands_alone(thoughts: Thoughts) -> None:
    assert _shown(thoughts, terminal=False) == "Nine metres\n"


def test_a_thought_without_an_answer_is_folded_too() -> None:
    shown = _shown("folded", pieces=[("", "Hm"), ("", "...")])
    assert "Thought for" in shown


def test_a_display_whose_answer_failed_leaves_nothing_moving() -> None:
    out = Console(file=io.StringIO(), force_terminal=True, color_system=None)
    display = Display(out, "folded")
    display.show(Said(times=[0.0]), "", "Hm")
    display.close()
    display.close()
    with out.status("another one may begin"):
        pass


def test_speed_is_told_from_the_second_token_on() -> None:
    said = Said(tokens=11, first_tokens=1, times=[0.0, 2.0, 4.0])
    assert said.speed == "11 tokens, the first after 2.0 s, then 5.0 tokens/s"
    said.stopped = True
    assert said.speed.endswith(", stopped")
    assert Said(times=[0.0]).speed == "0 tokens, the first after 0.0 s"
    assert said.message == {"role": "assistant", "content": ""}


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert visible("a\x1b[2J\tb\nc\u202e") == "a\ufffd[2J\tb\nc\ufffd"
