"""Messages as a chat template gets them: checked, flattened, and marked where they come from outside.

The mark is how a user is kept from writing control tokens. Every text of a message gets one character, which occurs
nowhere else, beside each character that could begin or end a control token: after it where it could begin one, before
it where it could end one. In the rendered prompt no control token can then begin or end in a user's text, since its
letters do not stand together, and those that the template writes are found as ever. Afterwards the marks are taken out,
and what they parted is letters. The template sees the content otherwise as it is: it can trim and split it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepwell.errors import UsageError

ROLES = ("system", "developer", "user", "assistant", "tool")

_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think>", "</think>"


class Arguments(dict[str, Any]):
    """A function call's arguments. Some templates treat them as an object and some as JSON text; this is both."""

    def __init__(self, content: Mapping[str, Any], text: str) -> None:
        super().__init__(content)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


@dataclass(frozen=True, slots=True)
class Marker:
    """Marks text from outside.

    Attributes:
        mark: The character; it occurs in no message, tool or template.
        first: Characters with which control tokens begin.
        last: Characters with which they end.
        spelled: Letters that act as control tokens in formats that have none (``[INST]`` of Llama 2); a space goes in.
    """

    mark: str
    first: frozenset[str]
    last: frozenset[str]
    spelled: tuple[str, ...] = ()

    @classmethod
    def of(cls, controls: Iterable[str], texts: Sequence[str], spelled: tuple[str, ...] = ()) -> Marker:
        """A marker for these control tokens, with a mark that is in none of ``texts``.

        Raises:
            UsageError: The texts use up every character that could be the mark, which no honest text does.
        """
        controls = list(controls)
        # Noncharacters, which Unicode keeps for use inside a program; then the private planes.
        choices = (chr(number) for block in (range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE)) for number in block)
        mark = next((one for one in choices if not any(one in text for text in (*texts, *controls))), None)
        if mark is None:
            raise UsageError("the messages hold every private character of Unicode; none is left to mark them with")
        return cls(mark, frozenset(one[0] for one in controls), frozenset(one[-1] for one in controls), spelled)

    def text(self, text: str) -> str:
        """``text`` with its marks."""
        for word in self.spelled:
            text = text.replace(word, f"{word[0]} {word[1:]}")
        if not any(letter in text for letter in self.first | self.last):
            return text
        return "".join(
            (self.mark if letter in self.last else "") + letter + (self.mark if letter in self.first else "")
            for letter in text
        )

    def value(self, value: Any) -> Any:
        """Every text in a JSON value with its marks, keys too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Arguments):
            return Arguments({self.text(key): self.value(one) for key, one in value.items()}, self.text(str(value)))
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(one) for one in value]
        return value


def checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as plain dictionaries: content as one text, thoughts apart from it, arguments as objects.

    What an assistant thought is left out of its earlier turns, as DeepSeek asks for; within the turn that is going on
    (after the last user message, while tools are being called) it stays, in ``reasoning_content``.

    Raises:
        UsageError: There is no message, or one is not what the chat API allows; the message says which.
    """
    if not messages:
        raise UsageError("there are no messages; a chat needs at least one")
    plain = [_message(number, message) for number, message in enumerate(messages)]
    asked = max((number for number, message in enumerate(plain) if message["role"] == "user"), default=-1)
    for number, message in enumerate(plain):
        if number < asked:
            message.pop("reasoning_content", None)
    return plain


def _message(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    where = f"messages[{number}]"
    if not isinstance(message, Mapping):
        raise UsageError(f"{where} is a {type(message).__name__}; a message is an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise UsageError(f"{where}.role is {role!r}; known are {', '.join(ROLES)}")
    plain = dict(message)
    plain["role"] = "system" if role == "developer" else role
    plain["content"] = _content(where, message)
    calls = plain.pop("tool_calls", None)
    if calls:
        plain["tool_calls"] = [_call(f"{where}.tool_calls[{index}]", call) for index, call in enumerate(calls)]
    if role == "assistant":
        content = plain["content"] or ""
        if _THOUGHT_ENDS in content:
            thought, _, content = content.partition(_THOUGHT_ENDS)
            plain.setdefault("reasoning_content", thought.removeprefix(_THOUGHT_BEGINS).strip("\n"))
            plain["content"] = content.lstrip("\n")
    if not isinstance(plain.get("reasoning_content", ""), str):
        plain.pop("reasoning_content")
    return plain


def _content(where: str, message: Mapping[str, Any]) -> str | None:
    content = message.get("content")
    if content is None:
        if message.get("tool_calls"):
            return None
        if message.get("reasoning_content"):
            return ""
        raise UsageError(f"{where} has no content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(content):
            return "".join(texts)
    raise UsageError(f"{where}.content is not text; these models read text alone")


def _call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError(f"{where} is not a call of a function: it has no function.name")
    given = function.get("arguments", {})
    try:
        content = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        content = None
    arguments: Any = given
    if isinstance(content, Mapping):
        text = given if isinstance(given, str) else json.dumps(content, ensure_ascii=False)
        arguments = Arguments(content, text)
    return {**call, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
