"""Conversations as tokens, with a mark on those that the assistant says.

A network is tuned on its answers alone: what the user says is read and not learned. The tokenizer's own chat template
writes the conversation, as it will write the prompts later. To find the answers in what it writes, each is replaced by
a placeholder first; around it stand the template's opening of an answer, which is the one that a prompt ends with, and
the token that ends it. Both are checked against the template for each answer, so a template that writes answers in some
other way than it asks for them is an error and not a network that has learned the wrong thing.

Learned are the answer and the token that ends it. A thought between ``<think>`` and ``</think>``, at the beginning of
the content or in ``reasoning_content``, is part of the answer, in every turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import DataError, UsageError
from deepwell.lm.training.data.sources import Document, Message
from deepwell.lm.weights.chat import Rendered
from deepwell.lm.weights.chat_messages import Marker
from deepwell.lm.weights.tokenizer import Tokenizer

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_OPENED_THOUGHT = re.compile(r"\s*<think>\s*(</think>\s*)?")
_HINT = "Answers cannot be told apart with this chat template; give the tokenizer's folder another chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Conversation:
    """``tokens`` [n] int64, and ``learned`` [n] bool: whether the assistant says it."""

    tokens: NDArray[np.int64]
    learned: NDArray[np.bool_]


def encode_conversation(tokenizer: Tokenizer, document: Document) -> Conversation:
    """The tokens of a conversation, as the tokenizer's chat template writes it up to its last answer.

    Raises:
        DataError: The template refuses the conversation, or its answers cannot be told from the rest.
    """
    messages = list(document.messages)
    while messages[-1]["role"] != "assistant":
        messages.pop()
    marks = _placeholders(messages)
    shown: list[Message] = [
        {
            **{key: value for key, value in one.items() if key != "reasoning_content"},
            "content": marks.get(number, one["content"]),
        }
        for number, one in enumerate(messages)
    ]
    try:
        whole = tokenizer.template.render(shown, add_generation_prompt=False)
        pieces = _pieces(tokenizer, messages, shown, marks, whole)
    except UsageError as error:
        raise DataError(f"{document.where}: {error.message}", hint=error.hint) from error
    except _UnclearError as error:
        raise DataError(f"{document.where}: the {tokenizer.template.name} {error}", hint=_HINT) from error
    ids = tokenizer.encode_pieces([piece for piece, _ in pieces])
    learned = [np.full(len(part), said, dtype=np.bool_) for part, (_, said) in zip(ids, pieces, strict=True)]
    return Conversation(np.array([one for part in ids for one in part], dtype=np.int64), np.concatenate(learned))


class _UnclearError(Exception):
    """What a template does that hides where an answer begins or ends."""


def _placeholders(messages: Sequence[Message]) -> dict[int, str]:
    """A text for each answer that occurs nowhere in the conversation."""
    texts = json.dumps(messages, ensure_ascii=False, default=str)
    nonce = 0
    while f"\ue000{nonce}." in texts:
        nonce += 1
    return {
        number: f"\ue000{nonce}.{number}\ue001" for number, one in enumerate(messages) if one["role"] == "assistant"
    }


def _pieces(
    tokenizer: Tokenizer, messages: list[Message], shown: list[Message], marks: dict[int, str], whole: Rendered
) -> list[tuple[Rendered, bool]]:
    """The conversation in pieces, each with whether it is learned."""
    template = tokenizer.template
    answers = {number: _answer(messages[number]) for number in marks}
    texts = [whole.marked, *(text or "" for answer in answers.values() for text in answer), template.source]
    marker = Marker.of(template.controls, texts, template.spelled)
    # The template's mark may stand in an answer, which it has not seen.
    marked = whole.marked.replace(whole.mark, marker.mark)
    pieces: list[tuple[Rendered, bool]] = []
    reached = 0
    for number, mark in marks.items():
        if marked.count(mark) != 1:
            raise _UnclearError(f"writes an answer {marked.count(mark)} times")
        at = marked.index(mark)
        begin = _opening(template.render(shown[:number]).text if number else "", marked[:at], marker.mark)
        after = shown[: number + 1]
        part = whole if len(after) == len(shown) else template.render(after, add_generation_prompt=False)
        tail = _ending(tokenizer, part, mark)
        end = at + len(mark) + len(tail.marked)
        closing = tail.marked.replace(tail.mark, marker.mark)
        if begin < reached or not marked.startswith(closing, at + len(mark)):
            raise _UnclearError("writes an answer in another way once the conversation goes on")
        thought, content = answers[number]
        said = (
            marker.text(content) if thought is None else f"<think>{marker.text(thought)}</think>{marker.text(content)}"
        )
        pieces.append((Rendered(marked[reached:begin], marker.mark), False))
        pieces.append((Rendered(marked[begin:at] + said + closing, marker.mark), True))
        reached = end
    return pieces


def _answer(message: Message) -> tuple[str | None, str]:
    """The thought of an answer, None where there is none, and its content."""
    content = str(message["content"])
    if message.get("reasoning_content"):
        return f"\n{message['reasoning_content']}\n", f"\n\n{content}" if content else ""
    found = _THOUGHT.fullmatch(content)
    return (found[1], found[2]) if found else (None, content)


def _opening(prompt: str, before: str, mark: str) -> int:
    """Where in ``before``, which an answer follows, the prompt ends: after it all is the answer's."""
    if not prompt:
        return len(before)
    plain = before.replace(mark, "")
    if plain.startswith(prompt):
        if mark not in before:
            return len(prompt)
        reached = 0
        for place, letter in enumerate(before):
            if reached == len(prompt):
                return place
            reached += letter != mark
        return len(before)
    if prompt.startswith(plain) and _OPENED_THOUGHT.fullmatch(prompt, len(plain)):
        return len(before)
    raise _UnclearError("opens an answer in another way than it writes one")


def _ending(tokenizer: Tokenizer, rendered: Rendered, mark: str) -> Rendered:
    """What follows the last answer up to the token that ends it, that token included."""
    _, _, tail = rendered.marked.rpartition(mark)
    ends = [tail.find(text) + len(text) for text in _end_texts(tokenizer) if text in tail]
    if not ends:
        raise _UnclearError("ends an answer with no token that ends one")
    return Rendered(tail[: min(ends)], rendered.mark)


def _end_texts(tokenizer: Tokenizer) -> list[str]:
    ids: Any = set(tokenizer.eos_token_ids)
    return [text for text, number in tokenizer.control_tokens.items() if number in ids]
