"""A Jinja environment in which a template from the internet can render a chat and do nothing else.

Chat templates are programs that come with a model. Jinja's immutable sandbox keeps them from Python's internals and
from changing what they are given. It does not keep them from looping for ever or from making gigabytes of text, so here
a rendering has a *budget*: steps (turns of a loop, calls), characters made, and time. The template's syntax tree is
rewritten before it is compiled so that each loop, literal and joined text draws on it; what can blow up in one single
operation (padding to a width, powers, repeated text) is refused or measured before it runs.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 500_000
MAX_CHARACTERS = 256_000_000
MAX_TEXT = 32_000_000
MAX_SECONDS = 10.0
MAX_TEMPLATE = 256_000
"""Steps, characters made in all, characters of one text, wall time, and characters of the template itself. A prompt of
a million tokens has about five million characters; the templates of the hub have up to twenty thousand."""

_FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "forceescape",
    "groupby", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "safe", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper",
    "urlencode", "wordcount",
)  # fmt: skip
_PADDING = frozenset({"format", "format_map", "ljust", "rjust", "center", "zfill", "expandtabs", "translate", "encode"})
_WIDTH = re.compile(r"%[^%a-zA-Z]*(?:\d{3,}|\*)")


class BudgetError(SecurityError):
    """A template used up its budget. The message says which part of it."""


class TemplateRefusalError(jinja2.TemplateError):
    """A template called ``raise_exception``: the chat is not one that it can write."""


class _Budget:
    __slots__ = ("characters", "deadline", "steps")

    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.characters = MAX_CHARACTERS
        self.deadline = time.monotonic() + MAX_SECONDS

    def spend(self, steps: int = 1, characters: int = 0) -> None:
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0:
            raise BudgetError(f"it takes more than {MAX_STEPS:,} steps")
        if self.characters < 0:
            raise BudgetError(f"it makes more than {MAX_CHARACTERS:,} characters")
        if time.monotonic() > self.deadline:
            raise BudgetError(f"it runs for more than {MAX_SECONDS:g} seconds")


_current: ContextVar[_Budget | None] = ContextVar("deepwell_template_budget", default=None)


@contextmanager
def budget() -> Iterator[None]:
    """Compile and render inside this."""
    token = _current.set(_Budget())
    try:
        yield
    finally:
        _current.reset(token)


def _spend(steps: int = 1, characters: int = 0) -> None:
    held = _current.get()
    if held is not None:
        held.spend(steps, characters)


def _check_text(size: int) -> None:
    if size > MAX_TEXT:
        raise BudgetError(f"it makes one text of more than {MAX_TEXT:,} characters")


def _paid(value: Any) -> Any:
    """A value that was just made, drawn from the budget."""
    if isinstance(value, str | list | tuple):
        _spend(0, len(value))
    return value


# ---- what the rewritten tree calls; filters that see the context are never run ahead of time by the compiler ----


@jinja2.pass_context
def _counted(_context: Context, value: Any) -> Any:
    if isinstance(value, jinja2.Undefined):
        return value
    held = value if hasattr(value, "__len__") else list(value)
    _spend(len(held))
    return held


@jinja2.pass_context
def _literal(_context: Context, value: Any) -> Any:
    return value


@jinja2.pass_context
def _joined(_context: Context, values: Any) -> Any:
    texts = [str(value) for value in values]
    _check_text(sum(map(len, texts)))
    return str(_paid("".join(texts)))


@jinja2.pass_context
def _sliced(_context: Context, value: Any, *bounds: int | None) -> Any:
    return _paid(value[slice(*bounds)])


def _emitted(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    _spend(1, len(text))
    return text


class _Rewriter(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filter("deepwell_counted", node.iter)
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802
        return _filter("deepwell_literal", nodes.Const(node.data, lineno=node.lineno))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter("deepwell_joined", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        none = nodes.Const(None, lineno=node.lineno)
        bounds = [bound or none for bound in (node.arg.start, node.arg.stop, node.arg.step)]
        return _filter("deepwell_sliced", node.node, bounds)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter("deepwell_counted", node) if len(node.items) > 16 else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter("deepwell_counted", node) if len(node.items) > 16 else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter("deepwell_counted", node) if node.ctx == "load" and len(node.items) > 16 else node


def _filter(name: str, node: Any, arguments: list[nodes.Expr] | None = None) -> nodes.Filter:
    return nodes.Filter(node, name, arguments or [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """``{% generation %}``, which marks the assistant's words for training; for rendering it is only its content."""

    tags = {"generation"}  # noqa: RUF012  (so declared by jinja)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment for chat templates, with the names that templates of the hub expect."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            finalize=_emitted,
            cache_size=0,
        )
        self.filters = {name: _measured(name, self.filters[name]) for name in _FILTERS}
        self.filters |= {"tojson": _tojson, "indent": _indent, "round": _round}
        self.filters |= {"deepwell_counted": _counted, "deepwell_literal": _literal, "deepwell_joined": _joined}
        self.filters["deepwell_sliced"] = _sliced
        self.globals.pop("lipsum", None)
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def compiled(self, source: str) -> jinja2.Template:
        """A template, ready for ``render``."""
        if len(source) > MAX_TEMPLATE:
            raise BudgetError(f"it has {len(source):,} characters; {MAX_TEMPLATE:,} are allowed")
        with budget():
            return self.from_string(source)

    def variables_of(self, source: str) -> frozenset[str]:
        """The names that a template expects from outside."""
        return frozenset(meta.find_undeclared_variables(self.parse(source[: MAX_TEMPLATE + 1])))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Rewriter().visit(tree)
        tree.set_environment(self)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, str) and attribute in _PADDING:
            return self.unsafe_undefined(obj, attribute)
        return super().getattr(obj, attribute)

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise SecurityError(f"it may not use {attribute!r} of a {type(obj).__name__}")

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, str) and argument in _PADDING:
            return self.unsafe_undefined(obj, argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _spend()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name in {"replace", "join"}:
            _check_growth(name, owner, args)
        return _paid(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _spend()
        if operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise BudgetError("it pads a text to a width of three digits or more")
        if operator == "**" and not (abs(left) <= 1_000_000 and abs(right) <= 64):
            raise BudgetError("it takes a power of large numbers")
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int):
                    _check_text(len(one) * other)
                if isinstance(one, int) and one.bit_length() > 1024:
                    raise BudgetError("it multiplies large numbers")
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _check_text(len(left) + len(right))
        return _paid(super().call_binop(context, operator, left, right))


def _check_growth(name: str, owner: Any, args: tuple[Any, ...]) -> None:
    """Refuse ``text.replace`` and ``glue.join`` that would make too long a text, before they make it."""
    if name == "replace" and len(args) >= 2 and all(isinstance(one, str) for one in args[:2]):
        found = owner.count(args[0])
        _check_text(len(owner) + found * len(args[1]))
    if name == "join" and args:
        held = args[0] if hasattr(args[0], "__len__") else ()
        _check_text(len(held) * len(owner) + sum(len(one) for one in held if isinstance(one, str)))


def _measured(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps the mark by which jinja knows what to pass first
    def measured(*args: Any, **kwargs: Any) -> Any:
        _spend()
        values = args[1:] if hasattr(function, "jinja_pass_arg") else args
        if name == "replace":
            _check_growth(name, str(values[0]), tuple(map(str, values[1:3])))
        if name == "join" and values and hasattr(values[0], "__len__"):
            glue = str(values[1]) if len(values) > 1 else str(kwargs.get("d", ""))
            _check_text(len(values[0]) * len(glue) + sum(len(one) for one in values[0] if isinstance(one, str)))
        return _paid(function(*args, **kwargs))

    return measured


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON as models were trained on it: other scripts as they are, and no escapes for HTML."""
    if indent is not None and not 0 <= int(indent) <= 16:
        raise BudgetError("it indents JSON by more than 16")
    known = {name: options[name] for name in ("separators", "sort_keys") if name in options}
    return str(_paid(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **known)))


def _indent(text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    if not isinstance(width, int) or not 0 <= width <= 64:
        raise BudgetError("it indents text by more than 64")
    _check_text(len(text) + width * (text.count("\n") + 1))
    lines = text.split("\n")
    kept = [" " * width + line if (line or blank) and (first or number) else line for number, line in enumerate(lines)]
    return str(_paid("\n".join(kept)))


def _round(value: float, precision: int = 0) -> float:
    return round(float(value), max(-20, min(20, int(precision))))


def _raise_exception(message: object = "") -> None:
    raise TemplateRefusalError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(str(form)[:100])


def line_of(error: BaseException) -> int | None:
    """The line of the template in which an error came up, if it can be told."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Render within a budget."""
    with budget():
        text = template.render(**variables)
    _check_text(len(text))
    return text
