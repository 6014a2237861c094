"""Thoughts are told from answers however they are cut, closed at their budget, and never under a grammar."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepwell.errors import ModelFormatError
from deepwell.lm.engine.spelling import spelled
from deepwell.lm.engine.thinking import Piece, ThoughtGate, ThoughtSplitter, opens_thought
from deepwell.lm.weights.tokenizer import Tokenizer

REPLIES = {
    "<think>\nWhy?\n</think>\n\nSo.": ("So.", "Why?"),
    "\n <think>Why?</think>So.": ("So.", "Why?"),
    "<think>\n\n</think>\n\nSo.": ("So.", ""),
    "<think></think>\n\n\nSo.": ("\nSo.", ""),
    "<think>\nWhy, and never an end": ("", "Why, and never an end"),
    "<think>\nWhy?\n</thin": ("", "Why?\n</thin"),
    "<thi": ("<thi", ""),
    "<thing> is no tag": ("<thing> is no tag", ""),
    "So. <think>is a tag</think>": ("So. <think>is a tag</think>", ""),
    "<think>a</think>b</think>c<think>d": ("b</think>c<think>d", "a"),
    "": ("", ""),
}


def split(pieces: list[str], *, opened: bool = False) -> tuple[str, str]:
    splitter = ThoughtSplitter(opened=opened)
    made = [*(splitter.push(piece) for piece in pieces), splitter.finish()]
    return "".join(one.text for one in made), "".join(one.reasoning for one in made)


@pytest.mark.parametrize("reply", REPLIES)
@given(data=st.data())
def test_a_reply_is_split_however_it_is_cut(reply: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reply)), max_size=8)))
    pieces = [reply[a:b] for a, b in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    assert split(pieces) == REPLIES[reply]
    if reply.startswith("<think>"):
        assert split([piece for piece in [reply[7:]] if piece], opened=True) == REPLIES[reply]


def test_pieces_come_as_soon_as_they_are_certain() -> None:
    splitter = ThoughtSplitter(opened=True)
    assert splitter.push("Let me") == Piece(reasoning="Let me")
    assert splitter.push(" see.\n") == Piece(reasoning=" see.")
    assert splitter.thinking
    assert splitter.push("</think>\n\nIt") == Piece(text="It")
    assert not splitter.thinking
    assert splitter.push(" is </think> so") == Piece(text=" is </think> so")


def test_a_prompt_that_ends_with_the_tag_opens_a_thought(tokenizer: Tokenizer) -> None:
    for text, opens in (("hi<think>\n", True), ("hi<think>", True), ("hi<think> x", False), ("hi", False), ("", False)):
        assert opens_thought(tokenizer, tokenizer.encode(text, bos=False, specials=True)) is opens, text


def test_tags_are_spelled_as_they_are_in_the_middle_of_a_text(tokenizer: Tokenizer) -> None:
    for text in ("\n</think>", "\n\n", "\n", "<think>\n", ""):
        assert b"".join(tokenizer.token_bytes(token) for token in spelled(tokenizer, text)) == text.encode()
    tag = tokenizer.token_id("</think>")
    assert tag is None or tag in spelled(tokenizer, "\n</think>")


def test_a_vocabulary_that_cannot_spell_the_tag_is_an_error() -> None:
    class Mute:
        def encode(self, text: str, **more: Any) -> list[int]:
            return [0]

        def token_bytes(self, token: int) -> bytes:
            return b"?"

    with pytest.raises(ModelFormatError, match="cannot spell"):
        spelled(Mute(), "\n</think>")  # type: ignore[arg-type]


class _Counting:
    """A grammar that allows one token, and counts what it is told."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self.came = allowed, []
        self.done = False

    def restrict(self, logits: Tensor) -> Tensor:
        only = torch.full_like(logits, -math.inf)
        only[self.allowed] = 1.0
        return only

    def accept(self, token: int) -> None:
        self.came.append(token)


def allowed(gate: ThoughtGate, tokenizer: Tokenizer) -> list[int]:
    return torch.isfinite(gate.restrict(torch.zeros(tokenizer.vocab_size))).nonzero()[:, 0].tolist()


def written(gate: ThoughtGate, tokenizer: Tokenizer, words: list[int]) -> bytes:
    """What comes out when the model would write ``words``, and the gate forces what it forces."""
    made, words = b"", list(words)
    for _ in range(60):
        may = allowed(gate, tokenizer)
        if len(may) == 1:
            token = may[0]
        elif words:
            token = words.pop(0)
            assert token in may
        else:
            break
        gate.accept(token)
        made += tokenizer.token_bytes(token)
        if gate.done:
            break
    return made


def test_a_thought_ends_at_its_budget(tokenizer: Tokenizer) -> None:
    word = spelled(tokenizer, "x")[-1]
    for budget in (0, 1, 4):
        gate = ThoughtGate(tokenizer, opened=True, budget=budget)
        assert written(gate, tokenizer, [word] * 6) == b"x" * budget + b"\n</think>\n\n" + b"x" * (6 - budget)
    assert written(ThoughtGate(tokenizer, opened=True, budget=7), tokenizer, [word] * 6) == b"x" * 6


def test_the_budget_counts_from_where_the_model_opens_its_thought(tokenizer: Tokenizer) -> None:
    word = spelled(tokenizer, "x")[-1]
    tag = spelled(tokenizer, "<think>\n")
    gate = ThoughtGate(tokenizer, opened=False, budget=3)
    made = written(gate, tokenizer, [*tag, *[word] * 6])
    thought = made.partition(b"</think>")[0]
    assert made.startswith(b"<think>\nx")
    assert made.endswith(b"x")
    assert 1 <= thought.count(b"x") <= 3
    plain = ThoughtGate(tokenizer, opened=False, budget=3)
    assert written(plain, tokenizer, [word] * 6) == b"x" * 6


def test_a_model_that_ends_its_thought_itself_is_let(tokenizer: Tokenizer) -> None:
    word = spelled(tokenizer, "x")[-1]
    gate = ThoughtGate(tokenizer, opened=True, budget=30)
    own = [word, *spelled(tokenizer, "\n</think>"), *[word] * 40]
    assert written(gate, tokenizer, own).startswith(b"x\n</think>xxxxxxxxxx")
    assert b"</think>" not in written(gate, tokenizer, [word] * 40)


def test_a_grammar_begins_behind_the_thought_and_an_empty_line(tokenizer: Tokenizer) -> None:
    word, brace = spelled(tokenizer, "x")[-1], spelled(tokenizer, "{")[-1]
    for closing in ("</think>", "</think>\n", "</think>\n\n"):
        grammar = _Counting(brace)
        gate = ThoughtGate(tokenizer, opened=True, grammar=grammar)
        for token in [word, *spelled(tokenizer, closing)]:
            assert token in allowed(gate, tokenizer)
            assert not grammar.came
            gate.accept(token)
        made = b""
        while not grammar.came:
            assert len(allowed(gate, tokenizer)) == 1
            made += tokenizer.token_bytes(token := allowed(gate, tokenizer)[0])
            gate.accept(token)
        assert made == b"\n\n"[len(closing) - len("</think>") :] + b"{"
        assert grammar.came == [brace]
        grammar.done = True
        assert gate.done


def test_under_a_grammar_a_thought_cannot_end_the_reply_nor_run_into_the_answer(chatml: Tokenizer) -> None:
    gate = ThoughtGate(chatml, opened=True, grammar=_Counting(0))
    ends = set(chatml.eos_token_ids)
    assert ends
    assert not ends & set(allowed(gate, chatml))
    joined = [token for token in range(chatml.vocab_size) if chatml.token_bytes(token).startswith(b">")]
    late = [token for token in joined if chatml.token_bytes(token)[1:].strip(b"\n")]
    assert late, "the vocabulary has a token that would run on, such as '> '"
    assert set(late) <= set(allowed(gate, chatml))
    for token in spelled(chatml, "</think>")[:-1]:
        gate.accept(token)
    assert not set(late) & set(allowed(gate, chatml))
    assert chatml.encode(">", bos=False)[0] in allowed(gate, chatml)
    free = ThoughtGate(chatml, opened=True, budget=100)
    assert ends <= set(allowed(free, chatml))


def test_a_thought_that_was_asked_for_is_opened(tokenizer: Tokenizer) -> None:
    word = spelled(tokenizer, "x")[-1]
    gate = ThoughtGate(tokenizer, opened=False, opens=True, budget=2, grammar=_Counting(word))
    made = written(gate, tokenizer, [word] * 9)
    assert made.startswith(b"<think>\n")
    assert b"</think>\n\nx" in made
    assert made.partition(b"</think>")[0].count(b"x") == 2
