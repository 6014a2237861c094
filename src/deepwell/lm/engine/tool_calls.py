"""Calls of functions out of the text that a model writes, piece by piece as it streams.

>>> parser = ToolParser.of(tokenizer, tools)
>>> for piece in stream:
...     for part in parser.push(piece.text):
...         ...                      # a str is text of the answer, a ToolDelta a piece of a call
>>> parser.finish()

The first delta of a call has its id and its name, those behind it have pieces of its arguments, which are JSON. Only
calls of functions that were given are calls; whatever else a model writes stays text, letter for letter, also where it
looks like a call, and so nothing is lost of a reply that a limit cut off.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deepwell.errors import UsageError
from deepwell.lm.engine.stopping import begins_at
from deepwell.lm.engine.tool_formats import (
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    MOST_CALLS,
    PYTHON_TAG,
    SEPARATOR,
    TAG_BEGIN,
    TAG_END,
    ToolFormat,
    format_of,
    functions_of,
)
from deepwell.lm.engine.tool_json import JsonCall, JsonExtent

if TYPE_CHECKING:
    from deepwell.lm.weights.tokenizer import Tokenizer

ToolChoice = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolDelta:
    """A piece of a call.

    Attributes:
        index: Which call of the answer it belongs to, from 0.
        id: The call's own id; in its first piece alone.
        name: The function; in its first piece alone.
        arguments: What comes behind the arguments so far; together they are JSON.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class ToolCall:
    """A whole call: ``arguments`` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str = ""


class ToolParser:
    """Takes the text of one answer as it comes, and tells calls from text.

    Attributes:
        calls: The calls so far; the last one may be unfinished.
        grammar: What the answer must be where a call is asked for, for ``SamplingParams.grammar``; None: anything.
    """

    def __init__(self, form: ToolFormat, names: Sequence[str], *, grammar: str | None = None) -> None:
        """Parse calls of the functions ``names``; ``of`` makes one from a request."""
        self.calls: list[ToolCall] = []
        self.grammar = grammar
        self._names = frozenset(names)
        self._format = form
        self._opening = {"deepseek": CALLS_BEGIN, "tagged": TAG_BEGIN, "bare": PYTHON_TAG}[form.kind]
        self._block: _Block | None = None
        self._held = ""
        self._begun = False

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        tools: Sequence[Mapping[str, Any]] | None,
        tool_choice: ToolChoice | None = None,
        *,
        parallel: bool = True,
    ) -> ToolParser | None:
        """The parser for a request; None if no function may be called.

        Args:
            tokenizer: The model's; its chat template says how calls are written.
            tools: Functions that may be called, as in OpenAI's API.
            tool_choice: "auto" (as None), "none", "required", or ``{"type": "function", "function": {"name": ...}}``.
            parallel: Whether more than one call may be asked for by "required".

        Raises:
            UsageError: The tools or the choice are wrong, or the model has no way to write calls.
        """
        functions = functions_of(tools or ())
        wanted, forced = functions, tool_choice == "required"
        if isinstance(tool_choice, Mapping):
            function = tool_choice.get("function")
            name = function.get("name") if isinstance(function, Mapping) else None
            wanted = [one for one in functions if one.name == name]
            if not wanted:
                raise UsageError(f"tool_choice names {str(name)[:80]!r}, which is none of the tools")
            forced = True
        elif tool_choice not in (None, "auto", "none", "required"):
            raise UsageError(
                f"tool_choice is {str(tool_choice)[:80]!r}", hint="Use auto, none, required, or name a function."
            )
        if not functions:
            if forced:
                raise UsageError("tool_choice asks for a call, and there are no tools")
            return None
        if tool_choice == "none":
            return None
        form = format_of(tokenizer)
        grammar = None
        if forced:
            few = isinstance(tool_choice, Mapping) or not parallel
            grammar = form.grammar(tokenizer, wanted, most=1 if few else MOST_CALLS)
        return cls(form, [one.name for one in functions], grammar=grammar)

    def push(self, text: str) -> list[ToolDelta | str]:
        """What is certain now that ``text`` has come: texts and pieces of calls, in order."""
        self._held += text
        parts: list[ToolDelta | str] = []
        while self._held and self._advance(parts):
            pass
        return _joined(parts)

    def finish(self) -> list[ToolDelta | str]:
        """What was held back, when the answer has ended. A call that was cut off stays as far as it came."""
        held, self._held = self._held, ""
        block, self._block = self._block, None
        if block is None:
            return _joined([held]) if held.strip() or not self.calls else []
        return _joined([*self._deltas(block), block.finish(held)])

    # ---- inside ----

    def _advance(self, parts: list[ToolDelta | str]) -> bool:
        """Take something from the held text; whether there may be more to take."""
        if self._block is None:
            return self._pass_text(parts)
        block = self._block
        self._held = block.push(self._held)
        parts += self._deltas(block)
        if block.broken:
            parts.append(block.raw)
            self._block = None
            self._begun = True
        elif block.over:
            self._block = None
        return self._block is None

    def _pass_text(self, parts: list[ToolDelta | str]) -> bool:
        """Pass text on up to where calls begin; white space around calls is dropped."""
        if not self._begun and self._format.kind == "bare":
            begun = self._held.lstrip()
            if begun.startswith("{"):
                self._open(0, len(self._held) - len(begun))
                return True
            if not begun:
                return False
        begin = self._held.find(self._opening)
        if begin >= 0:
            text = self._held[:begin].rstrip()
            self._say(text, parts)
            self._open(len(text), begin + len(self._opening))
            return True
        end = len(self._held[: begins_at(self._held, (self._opening,))].rstrip())
        self._say(self._held[:end], parts)
        self._held = self._held[end:]
        return False

    def _say(self, text: str, parts: list[ToolDelta | str]) -> None:
        if text:
            self._begun = True
            parts.append(text)

    def _open(self, begin: int, end: int) -> None:
        """Begin a block; the mark, and white space around it, is the held text from ``begin`` to ``end``."""
        mark, self._held = self._held[begin:end], self._held[end:]
        if self._format.kind == "deepseek":
            self._block = _DeepSeekBlock(mark, self._names)
        else:
            closing = TAG_END if self._format.kind == "tagged" else None
            self._block = _JsonBlock(mark, self._names, closing=closing)

    def _deltas(self, block: _Block) -> list[ToolDelta]:
        deltas = []
        for name, arguments in block.take():
            if name is not None:
                self.calls.append(ToolCall(f"call_{secrets.token_hex(12)}", name))
                deltas.append(ToolDelta(len(self.calls) - 1, self.calls[-1].id, name))
            if arguments:
                self.calls[-1].arguments += arguments
                deltas.append(ToolDelta(len(self.calls) - 1, arguments=arguments))
        return deltas


@dataclass(slots=True)
class _Block:
    """Calls from their opening mark on.

    Attributes:
        raw: What was read since the last thing that was certain; text again if this is no call.
        broken: This is no call.
        over: The closing mark has come.
    """

    raw: str
    names: frozenset[str]
    broken: bool = False
    over: bool = False
    found: list[tuple[str | None, str]] = field(default_factory=list)

    def push(self, text: str) -> str:
        """Read as far as is certain; what is left is to be given again with more behind it."""
        raise NotImplementedError

    def finish(self, held: str) -> str:
        """What is text after all, now that nothing comes behind ``held``."""
        raise NotImplementedError

    def take(self) -> list[tuple[str | None, str]]:
        """Names and pieces of arguments that are certain now."""
        found, self.found = self.found, []
        return found


@dataclass(slots=True)
class _JsonBlock(_Block):
    """JSON calls, one or a list of them, up to the closing mark, or to what is none where there is no such mark."""

    closing: str | None = None
    call: JsonCall | None = None
    named: bool = False
    called: bool = False

    def push(self, text: str) -> str:
        while text and not self.broken and not self.over:
            if self.call is not None:
                text = self._within(text, self.call)
            elif self.closing is not None and self.closing.startswith(text) and text != self.closing:
                break
            else:
                text = self._between(text)
        return text

    def finish(self, held: str) -> str:
        rest = self.raw + held
        ended = rest.strip(" \n,;]")
        return "" if self.called and (not ended or (self.closing or "").startswith(ended)) else rest

    def _between(self, text: str) -> str:
        if self.closing is not None and text.startswith(self.closing):
            self.over = True
            # Empty marks are no call.
            self.broken = not self.called
            return text if self.broken else text[len(self.closing) :]
        letter = text[0]
        if letter == "{":
            self.call, self.named = JsonCall(), False
            return text
        if letter.isspace() or letter in ",;[]":
            self.raw += letter
        elif self.closing is None and self.called:
            self.over = True
            return text
        elif not self.called:
            self.broken = True
            return text
        # Small models write a brace too many; nothing between a call and the closing mark is for the reader.
        return text[1:]

    def _within(self, text: str, call: JsonCall) -> str:
        count = call.push(text)
        self.raw += text[:count]
        text = text[count:]
        if call.broken or (call.name is not None and call.name not in self.names) or (call.done and call.name is None):
            self.broken = not self.named
            self.over = self.named and self.closing is None
            self.call = None
        elif call.name is not None:
            pieces = call.take() or ("{}" if call.done and not call.argued else "")
            self.found.append((None if self.named else call.name, pieces))
            self.named = self.called = True
            self.raw = ""
            self.call = None if call.done else call
        return text


_SEPARATED = rf"\s*{re.escape(SEPARATOR)}\s*"
_HEAD = re.compile(
    rf"\s*{re.escape(CALL_BEGIN)}\s*"
    rf"(?:function{_SEPARATED}(?P<fenced>[\w-]+)\s*(?:```(?:json)?\s*){{0,2}}|(?P<plain>[\w-]+){_SEPARATED})"
)
"""What stands before the arguments, in the fenced form and in V3.1's. An empty fence has no arguments."""


@dataclass(slots=True)
class _DeepSeekBlock(_Block):
    """DeepSeek's calls. The head of each is read when its arguments begin; behind them all is skipped to its end."""

    extent: JsonExtent | None = None
    within: bool = False

    def push(self, text: str) -> str:
        while text and not self.broken and not self.over:
            if self.extent is not None:
                count = self.extent.push(text)
                self.found.append((None, text[:count]))
                text = text[count:]
                self.extent = None if self.extent.done else self.extent
            elif self.within:
                end = text.find(CALL_END)
                if end < 0:
                    return text[begins_at(text, (CALL_END,)) :]
                self.within, text = False, text[end + len(CALL_END) :]
            else:
                rest = self._head(text)
                if rest is None:
                    return text
                text = rest
        return text

    def finish(self, held: str) -> str:
        return "" if self.within else self.raw + held

    def _head(self, text: str) -> str | None:
        """Read a call's head; None if it is not whole yet."""
        begun = text.lstrip()
        if begun.startswith(CALLS_END):
            self.over = True
            return begun[len(CALLS_END) :]
        if any(mark.startswith(begun) for mark in (CALLS_END, CALL_BEGIN)):
            return None
        ends = [place for mark in ("{", CALL_END, CALLS_END) if (place := text.find(mark)) >= 0]
        if begun.startswith(CALL_BEGIN) and not ends:
            return None
        head = _HEAD.fullmatch(text[: min(ends, default=0)])
        name = None if head is None else head["fenced"] or head["plain"]
        if name is None or name not in self.names:
            self.broken = True
            return text
        self.raw = ""
        self.within = True
        rest = text[min(ends) :]
        if rest.startswith("{"):
            self.extent = JsonExtent()
            self.found.append((name, ""))
        else:
            self.found.append((name, "{}"))
        return rest


def _joined(parts: Sequence[ToolDelta | str]) -> list[ToolDelta | str]:
    """The parts without empty ones, texts that stand side by side put together."""
    joined: list[ToolDelta | str] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part:
            joined.append(part)
    return joined
