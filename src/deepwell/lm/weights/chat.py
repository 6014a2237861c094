"""Chats to prompts: a model's own Jinja template, or one of ours, rendered so that content stays content.

Three things are decided here and not by the template.

- *Injection.* Text in messages and tools never becomes control tokens: see ``chat_messages`` for how.
- *Thinking.* A template that knows a variable for it (``enable_thinking`` or ``thinking``) is given it. For any other,
  ``thinking=True`` ends the prompt with ``<think>`` and a line break, and ``thinking=False`` with a thought that is
  already over, where the model knows thoughts. Thoughts of earlier turns are left out, as DeepSeek asks for.
- *Going on.* ``continue_last`` opens an answer and puts the last message's text there, for the model to go on with.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from deepwell.errors import MissingExtraError, ModelFileError, UsageError
from deepwell.lm.weights.chat_families import family_of
from deepwell.lm.weights.chat_messages import Marker, checked

if TYPE_CHECKING:
    import jinja2

    from deepwell.lm.weights.tokenizer import Tokenizer

_THINKING = ("enable_thinking", "thinking")
_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt whose text from outside is marked; ``text`` is what the model sees."""

    marked: str
    mark: str

    @property
    def text(self) -> str:
        """The prompt."""
        return self.unmark(self.marked)

    def unmark(self, text: str) -> str:
        """A text without the marks."""
        return text.replace(self.mark, "")


@dataclass(frozen=True)
class ChatTemplate:
    """How one model's chats are written.

    Attributes:
        source: The template, in Jinja.
        name: What errors call it, with the file that it comes from.
        variables: Special tokens by the names that templates use, such as ``bos_token``.
        controls: Every control token of the vocabulary.
        with_tools: Another template for chats with tools: the model's, or ours where its own has no place for them.
        spelled: Marks of the format that are plain letters; see ``chat_families``.
    """

    source: str
    name: str
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    controls: frozenset[str] = frozenset()
    with_tools: str | None = None
    spelled: tuple[str, ...] = ()

    @property
    def thinks(self) -> bool:
        """Whether the model was made to think before it answers, as far as template and vocabulary tell."""
        told = _CLOSE in self.controls or _OPEN in self.source or _CLOSE in self.source
        return told or any(name in self._expected for name in _THINKING)

    @property
    def tool_source(self) -> str | None:
        """The template of chats with tools; None if there is no place for them."""
        source = self.source if self.with_tools is None else self.with_tools
        return source if "tools" in self._variables_of(source) else None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_last: bool = False,
        add_generation_prompt: bool = True,
    ) -> Rendered:
        """Write a chat; the arguments are those of ``Tokenizer.chat``.

        ``add_generation_prompt=False`` leaves out the opening of the answer, as for training on a finished chat.

        Raises:
            UsageError: The messages are not a chat, or the template refuses them.
            ModelFileError: The template is broken, or does not come to an end.
        """
        plain = checked(messages)
        if continue_last and plain[-1]["role"] != "assistant":
            raise UsageError(f"continue_last needs a last message of the assistant; it is the {plain[-1]['role']}'s")
        texts = list(_texts([plain, tools]))
        marker = Marker.of(self.controls, [*texts, self.source, self.with_tools or ""], self.spelled)
        marked = [{**marker.value(message), "role": message["role"]} for message in plain]
        given = None if tools is None else marker.value(list(tools))
        if not continue_last:
            text = self._run(marked, given, thinking, add_generation_prompt)
            if add_generation_prompt:
                text += self._thought(text, thinking)
            return Rendered(text, marker.mark)
        return Rendered(self._continued(marked, given, thinking, marker.mark), marker.mark)

    # ---- inside ----

    def _continued(self, marked: list[dict[str, Any]], tools: Any, thinking: bool | None, mark: str) -> str:
        *before, last = marked
        thought, content = last.get("reasoning_content") or "", last["content"] or ""
        text = self._run(before, tools, True if thought else thinking, True) if before else ""
        if thought:
            text += self._thought(text, True) + thought
            return text + (f"\n{_CLOSE}\n\n{content}" if content else "")
        if thinking is None:
            # What stands between the opening and an answer, such as Llama 2's space, shows in a closed answer only.
            closed = self._run([*before, {"role": "assistant", "content": mark}], tools, None, False)
            head, found, _ = closed.rpartition(mark)
            if found and head.startswith(text):
                text = head
        return text + self._thought(text, thinking) + content

    def _thought(self, text: str, thinking: bool | None) -> str:
        """What to add to a prompt so that it opens a thought, or closes one."""
        if thinking is None or any(name in self._expected for name in _THINKING):
            return ""
        opened = text.rstrip().endswith(_OPEN)
        if thinking:
            return "" if opened else f"{_OPEN}\n"
        if opened:
            return ("" if text.endswith("\n") else "\n") + f"\n{_CLOSE}\n\n"
        return f"{_OPEN}\n\n{_CLOSE}\n\n" if self.thinks else ""

    def _run(self, messages: list[dict[str, Any]], tools: Any, thinking: bool | None, opening: bool) -> str:
        from deepwell.lm.weights import chat_sandbox

        variables: dict[str, Any] = dict(self.variables)
        if thinking is not None:
            variables |= dict.fromkeys(_THINKING, thinking)
        template = self._compiled[1 if tools and self.with_tools is not None else 0]
        with self._blamed():
            return chat_sandbox.render(
                template, {**variables, "messages": messages, "tools": tools, "add_generation_prompt": opening}
            )

    @cached_property
    def _compiled(self) -> list[jinja2.Template]:
        sandbox = _sandbox()
        with self._blamed():
            return [sandbox.compiled(source) for source in (self.source, self.with_tools) if source is not None]

    @cached_property
    def _expected(self) -> frozenset[str]:
        return self._variables_of(self.source)

    def _variables_of(self, source: str) -> frozenset[str]:
        sandbox = _sandbox()
        with self._blamed():
            names: frozenset[str] = sandbox.variables_of(source)
        return names

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Turn what can go wrong in a template into an error that names it and the line."""
        import jinja2

        from deepwell.lm.weights.chat_sandbox import TemplateRefusalError, line_of

        try:
            yield
        except TemplateRefusalError as error:
            raise UsageError(f"the {self.name} refuses this chat: {error}") from error
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise self._broken(error, line_of(error)) from error
        except (RecursionError, MemoryError) as error:
            raise self._broken(f"it goes too deep ({type(error).__name__})", line_of(error)) from error

    def _broken(self, reason: object, line: int | None) -> ModelFileError:
        where = "" if line is None else f", line {line}"
        return ModelFileError(
            f"the {self.name}{where}: {reason}", hint="Give the model's folder a chat_template.jinja that is whole"
        )


def _sandbox() -> Any:
    try:
        from deepwell.lm.weights.chat_sandbox import Sandbox
    except ImportError as error:
        raise MissingExtraError("chat templates need Jinja", hint="Run: pip install 'deepwell[lm]'") from error
    return Sandbox()


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield str(key)
            yield from _texts(one)
        yield str(value)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def template_for(tokenizer: Tokenizer, templates: Mapping[str, str], source: str) -> ChatTemplate:
    """The template of a tokenizer: the one that its files carry, or ours for the family of its control tokens.

    Raises:
        ModelFileError: There is none, and the control tokens are those of no known family.
    """
    parts = tokenizer.parts
    roles = {"bos_token": parts.bos, "eos_token": parts.eos, "pad_token": parts.pad, "unk_token": parts.unk}
    variables = {role: text for role, text in roles.items() if text is not None}
    controls = frozenset(tokenizer.control_tokens)
    family = family_of(controls)
    chosen = templates.get("default") or next(iter(templates.values()), None)
    if chosen is not None:
        name = f"chat template of {source}"
        with_tools = templates.get("tool_use")
        if with_tools is None and family is not None and not re.search(r"\btools\b", chosen):
            # A template that passes tools over in silence would let the model know nothing of them.
            with_tools = family.source
        return ChatTemplate(chosen, name, variables, controls, with_tools=with_tools)
    if family is None:
        raise ModelFileError(
            f"{source} carries no chat template, and its control tokens are those of no format known here",
            hint="Put a chat_template.jinja beside it",
        )
    return ChatTemplate(family.source, f"{family.name} template", variables, controls, spelled=family.spelled)
