"""From tokens to a reply: reasoning apart, stop strings in the answer alone, and a form for the answer."""

import json
from typing import Any

import pytest
import torch

from deepwell.errors import UsageError
from deepwell.lm.engine.grammar import Grammars
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.reply import Reply, begin
from deepwell.lm.engine.sampler import sample
from deepwell.lm.engine.spelling import spelled
from deepwell.lm.engine.thinking import Piece, ThoughtSplitter
from deepwell.lm.weights.tokenizer import Tokenizer

SCHEMA = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
    "additionalProperties": False,
}  # fmt: skip


def tell(reply: Reply, tokens: list[int]) -> Piece:
    pieces = [*(reply.push(token) for token in tokens), reply.finish()]
    return Piece("".join(one.text for one in pieces), "".join(one.reasoning for one in pieces))


def write(
    tokenizer: Tokenizer, prompt: str, *, chat: bool = True, tokens: int = 80, **form: Any
) -> tuple[Piece, Reply]:
    """A reply from random logits."""
    params = SamplingParams(seed=1, **form)
    ids = tokenizer.encode(prompt, bos=False, specials=True)
    state, reply = begin(tokenizer, params, ids, Grammars(tokenizer), chat=chat)
    generator = torch.Generator().manual_seed(2)
    made: list[int] = []
    while len(made) < tokens and not state.done:
        token = sample(torch.randn(1, tokenizer.vocab_size, generator=generator), [state])[0].token
        state.accept(token)
        if token in tokenizer.eos_token_ids:
            break
        made.append(token)
    return tell(reply, made), reply


def test_reasoning_is_kept_apart_and_counted(tokenizer: Tokenizer) -> None:
    thought, answer = spelled(tokenizer, "<think>\nno.\n</think>"), spelled(tokenizer, "\n\nyes")
    reply = Reply(tokenizer, splitter=ThoughtSplitter(opened=False))
    assert tell(reply, [*thought, *answer]) == Piece("yes", "no.")
    opening = len(spelled(tokenizer, "<think>"))
    assert 1 <= reply.reasoning_tokens <= len(thought) - opening + 1
    # The closing tag may end inside of a token that begins the answer; that one still counts as the thought's.
    assert len(thought) - 1 <= reply.thought_length <= len(thought)
    plain = Reply(tokenizer)
    assert tell(plain, [*thought, *answer]).text == "<think>\nno.\n</think>\n\nyes"
    assert plain.reasoning_tokens == plain.thought_length == 0


def test_tags_that_are_special_tokens_are_seen_all_the_same(deepseek: Tokenizer) -> None:
    class Hiding:
        """The same tokenizer, with tags that are not shown in texts."""

        def __getattr__(self, name: str) -> Any:
            return getattr(deepseek, name)

        def decode(self, ids: list[int]) -> str:
            return "" if deepseek.token_id("<think>") in ids or deepseek.token_id("</think>") in ids else "x"

        def stream(self) -> Any:
            class Stream:
                def push(self, token: int) -> str:
                    return "" if deepseek.is_control(token) else deepseek.decode([token])

                def finish(self) -> str:
                    return ""

            return Stream()

    ids = deepseek.encode("<think>\nno\n</think>\n\nyes", bos=False, specials=True)
    reply = Reply(Hiding(), splitter=ThoughtSplitter(opened=False))  # type: ignore[arg-type]
    assert tell(reply, ids) == Piece("yes", "no")


def test_stop_strings_end_the_answer_and_not_the_thought(tokenizer: Tokenizer) -> None:
    ids = spelled(tokenizer, "\n<think>\na.b\n</think>\n\nc d.e f.g")
    reply = Reply(tokenizer, [".e", "zz"], splitter=ThoughtSplitter(opened=False))
    assert tell(reply, ids) == Piece("c d", "a.b")
    assert reply.stopped
    unstopped = Reply(tokenizer, ["zz", "gg"], splitter=ThoughtSplitter(opened=False))
    assert tell(unstopped, ids) == Piece("c d.e f.g", "a.b")
    assert not unstopped.stopped


def test_a_stop_string_that_only_the_end_completes_is_found(deepseek: Tokenizer) -> None:
    broken = deepseek.encode("🦉", bos=False)[:1]  # the first byte of four: the end makes a replacement character of it
    reply = Reply(deepseek, ["a\ufffd"])
    assert tell(reply, [*deepseek.encode("xa", bos=False), *broken]).text == "x"
    assert reply.stopped


@pytest.mark.parametrize("thinking", [True, None, False])
def test_json_comes_behind_a_thought_or_at_once(thinking: bool | None, tokenizer: Tokenizer) -> None:
    prompt = "hi<think>\n\n</think>\n\n" if thinking is False else "hi"
    piece, reply = write(tokenizer, prompt, json_schema=SCHEMA, thinking=thinking, thinking_budget=12)
    assert set(json.loads(piece.text)) == {"n"}
    assert bool(piece.reasoning) is bool(thinking)
    assert bool(reply.reasoning_tokens) is bool(thinking)
    opened, _ = write(tokenizer, "hi<think>\n", json_schema=SCHEMA, thinking=thinking, thinking_budget=12)
    assert set(json.loads(opened.text)) == {"n"}
    assert opened.reasoning


def test_a_form_keeps_the_line_breaks_that_it_begins_with(tokenizer: Tokenizer) -> None:
    piece, _ = write(tokenizer, "hi<think>\n", regex="\n\n\nab", thinking_budget=3)
    assert piece.text == "\n\n\nab"


def test_a_text_that_is_continued_is_not_split(tokenizer: Tokenizer) -> None:
    params = SamplingParams(thinking_budget=0)
    ids = spelled(tokenizer, "<think>\na\n</think>\nb")
    state, reply = begin(tokenizer, params, [], Grammars(tokenizer), chat=False)
    assert not state.adjusts
    assert tell(reply, ids) == Piece("<think>\na\n</think>\nb")
    piece, _ = write(tokenizer, "n is ", chat=False, json_schema=SCHEMA, thinking=True)
    assert set(json.loads(piece.text)) == {"n"}


def test_a_budget_holds_without_a_grammar_too(tokenizer: Tokenizer) -> None:
    piece, reply = write(tokenizer, "hi<think>\n", thinking_budget=5, tokens=60)
    assert reply.reasoning_tokens <= 5 + len(spelled(tokenizer, "\n</think>"))
    assert piece.text


def test_a_budget_waits_for_a_thought_that_the_model_may_open(deepseek: Tokenizer) -> None:
    state, _ = begin(deepseek, SamplingParams(thinking_budget=2), [], Grammars(deepseek), chat=True)
    word = spelled(deepseek, "x")[0]
    for token in [*spelled(deepseek, "<think>"), word, word]:
        state.accept(token)
    only = torch.isfinite(state.adjust(torch.zeros(deepseek.vocab_size))).nonzero()[:, 0].tolist()
    assert only == spelled(deepseek, "\n</think>")[:1]


def test_text_that_only_looked_like_a_tag_is_searched_for_stop_strings(deepseek: Tokenizer) -> None:
    reply = Reply(deepseek, ["hin"], splitter=ThoughtSplitter(opened=False))
    assert tell(reply, spelled(deepseek, "<thin", specials=False)).text == "<t"
    assert reply.stopped


def test_a_form_that_cannot_be_kept_is_an_error_at_the_door(deepseek: Tokenizer) -> None:
    with pytest.raises(UsageError, match="regex"):
        begin(deepseek, SamplingParams(regex="("), [], Grammars(deepseek), chat=True)
