r"""How models write calls of functions: DeepSeek's, Hermes' (Qwen, SmolLM2) and Llama 3's format, and their grammars.

    DeepSeek      <｜tool▁calls▁begin｜>CALL...<｜tool▁calls▁end｜>, where a CALL is
        V3, R1    <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```<｜tool▁call▁end｜>
        V3.1      <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>
    Hermes, Qwen  <tool_call>\n{"name": NAME, "arguments": ARGUMENTS}\n</tool_call>
    SmolLM2       <tool_call>[{"name": NAME, "arguments": ARGUMENTS}, ...]</tool_call>
    Llama 3       {"name": NAME, "parameters": ARGUMENTS}

Which one a model was trained on is told by the chat template that shows it the functions. Where a call is asked for, a
grammar in llguidance's Lark dialect holds the model to the format, to the functions given and to their schemas; marks
that are tokens of the vocabulary are written as those tokens, and letter by letter where they are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deepwell.errors import UsageError
from deepwell.lm.engine.schemas import sound

if TYPE_CHECKING:
    from deepwell.lm.weights.tokenizer import Tokenizer

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
TAG_BEGIN, TAG_END = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"

MOST_CALLS = 8
"""Of one answer, where the grammar counts them: a small model that is unsure would otherwise never stop calling."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Function:
    """A function that a model may call: its name, and the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A way to write calls.

    Attributes:
        kind: Who reads it: DeepSeek's marks, or JSON objects.
        marks: Texts that steer; a reply must show them even where they are special tokens.
        arguments: The key of a JSON call's arguments.
        fenced: DeepSeek's calls with the word "function" and a fence of Markdown (V3, R1), not those of V3.1.
        listed: All calls of an answer stand in one JSON list.
    """

    kind: Literal["deepseek", "tagged", "bare"]
    marks: tuple[str, ...]
    arguments: str = "arguments"
    fenced: bool = False
    listed: bool = False

    @property
    def opening(self) -> str:
        """The mark that begins calls; empty where there is none, and calls are the whole answer."""
        return "" if self.kind == "bare" else self.marks[0]

    def grammar(
        self, tokenizer: Tokenizer, functions: Sequence[Function], *, most: int = MOST_CALLS, opened: bool = False
    ) -> str:
        """The grammar, in llguidance's Lark dialect, of an answer that is from 1 to ``most`` calls and nothing else.

        Args:
            tokenizer: The model's.
            functions: Those that may be called.
            most: How many calls there may be.
            opened: The opening mark is written already. Where each call has marks of its own, one call is meant.

        Raises:
            UsageError: Nothing can be held to a function's schema; the message names the function.
        """
        for function in functions:
            _check(function)
        names = [f"call_{index}" for index in range(len(functions))]
        writer = _Writer(tokenizer)
        lines = [writer.line(f"arguments_{index}", [_schema(one.parameters)]) for index, one in enumerate(functions)]
        for index, (rule, function) in enumerate(zip(names, functions, strict=True)):
            lines.append(writer.line(rule, self._call(function.name, f"arguments_{index}")))
        lines.append(f"call: {' | '.join(names)}")
        opening, between, closing = self._around()
        alone = self.kind == "bare" or (opened and TAG_BEGIN in between)
        more = 0 if alone else most - 1
        opening = opening[1:] if opened else opening
        again = [_Raw(f"({writer.text([*between, _Raw('call')])}){{0,{more}}}")] if more else []
        lines.append(writer.line("start", [*opening, _Raw("call"), *again, *closing]))
        return "\n".join(lines)

    def _around(self) -> tuple[list[_Part], list[_Part], list[_Part]]:
        """What stands before the calls, between two of them, and behind them."""
        if self.kind == "deepseek":
            return [CALLS_BEGIN], ["\n"] if self.fenced else [], [CALLS_END]
        if self.listed:
            return [TAG_BEGIN, "["], [", "], ["]", TAG_END]
        if self.kind == "tagged":
            return [TAG_BEGIN, "\n"], ["\n", TAG_END, "\n", TAG_BEGIN, "\n"], ["\n", TAG_END]
        return [], [], []

    def _call(self, name: str, arguments: str) -> list[_Part]:
        if self.kind == "deepseek":
            if self.fenced:
                head: list[_Part] = [CALL_BEGIN, "function", SEPARATOR, f"{name}\n```json\n"]
                return [*head, _Raw(arguments), "\n```", CALL_END]
            return [CALL_BEGIN, name, SEPARATOR, _Raw(arguments), CALL_END]
        return [f'{{"name": {json.dumps(name)}, "{self.arguments}": ', _Raw(arguments), "}"]


class _Raw(str):
    """A part of a grammar that is not a text to write but a rule."""

    __slots__ = ()


_Part = str


class _Writer:
    """Writes rules; marks become tokens where the vocabulary has them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def line(self, rule: str, parts: Sequence[_Part]) -> str:
        return f"{rule}: {self.text(parts)}"

    def text(self, parts: Sequence[_Part]) -> str:
        return " ".join(part if isinstance(part, _Raw) else self._literal(part) for part in parts)

    def _literal(self, text: str) -> str:
        token = self._tokenizer.token_id(text) if text[:1] == "<" else None
        if token is not None and self._tokenizer.is_control(token):
            return f"<[{token}]>"
        return json.dumps(text, ensure_ascii=False)


def _check(function: Function) -> None:
    with suppress(ImportError):  # whoever keeps the grammar says so
        import llguidance

        form = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(function.parameters, ensure_ascii=False))
        reason = llguidance.LLMatcher.validate_grammar(form)
        if reason:
            short = reason.split("<backtrace>")[0].strip()
            raise UsageError(
                f"the parameters of the tool {function.name!r} cannot be kept: {short}",
                hint="Change the schema, or leave the choice of tools to the model.",
            )


def _schema(parameters: Mapping[str, Any]) -> _Raw:
    form = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return _Raw("%json " + json.dumps({**sound(parameters), "x-guidance": form}, ensure_ascii=False))


def format_of(tokenizer: Tokenizer) -> ToolFormat:
    """The format that a model writes calls in.

    Raises:
        UsageError: Its chat template has no place for functions, or shows calls in a way that is not known.
    """
    source = tokenizer.template.tool_source
    if source is None:
        raise UsageError(
            f"the {tokenizer.template.name} has no place for tools", hint="Leave tools out, or use another model."
        )
    if CALLS_BEGIN in source:
        marks = (CALLS_BEGIN, CALL_BEGIN, SEPARATOR, CALL_END, CALLS_END)
        own = tokenizer.template.source
        return ToolFormat("deepseek", marks, fenced="```json" in (own if CALLS_BEGIN in own else source))
    if TAG_BEGIN in source:
        return ToolFormat("tagged", (TAG_BEGIN, TAG_END), listed=f"{TAG_BEGIN}[" in source)
    if '"parameters"' in source or PYTHON_TAG in source:
        return ToolFormat("bare", (PYTHON_TAG,), arguments="parameters")
    raise UsageError(
        f"the {tokenizer.template.name} writes calls in a way that is not known here",
        hint="Leave tools out, or use another model.",
    )


def keepable(functions: Sequence[Function]) -> list[Function]:
    """The functions, with arguments of any form where nothing can be held to a function's schema."""
    kept = []
    for function in functions:
        try:
            _check(function)
        except UsageError:
            function = Function(function.name, {"type": "object"})
        kept.append(function)
    return kept


def functions_of(tools: Sequence[Mapping[str, Any]]) -> list[Function]:
    """The functions in a request's ``tools``, as OpenAI's API writes them.

    Raises:
        UsageError: One is not a function with a name of its own and an object as its parameters' schema.
    """
    found: dict[str, Function] = {}
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            raise UsageError(f"{where} is not a function", hint='Write {"type": "function", "function": {...}}.')
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"{where}.function.name is {str(name)[:80]!r}",
                hint="Use 1 to 64 letters, digits, underscores and dashes.",
            )
        if name in found:
            raise UsageError(f"{where}.function.name is {name!r}, as that of a tool before it")
        parameters = function.get("parameters")
        if parameters is None:
            parameters = {"type": "object", "properties": {}, "additionalProperties": False}
        if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
            raise UsageError(
                f"{where}.function.parameters is not the schema of an object",
                hint='Give one, as {"type": "object", "properties": {...}}.',
            )
        found[name] = Function(name, {"type": "object", **parameters})
    return list(found.values())
