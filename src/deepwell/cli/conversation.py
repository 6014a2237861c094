"""What a chat consists of, what a person types into it, and the commands that begin with a slash.

    /reset            begin another conversation
    /system TEXT      what the model is told before the conversation; without TEXT, say what it is
    /thoughts         what the model thought before its last answer
    /save FILE        write the conversation to FILE as messages of the chat API
    /help             this list

A message of several lines stands between two lines of three quotation marks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from deepwell.errors import UsageError

FENCE = '"""'

COMMANDS = {
    "/reset": "begin another conversation",
    "/system TEXT": "what the model is told before it; without TEXT, say what it is",
    "/thoughts": "what the model thought before its last answer",
    "/save FILE": "write the conversation to FILE, as JSON",
    "/help": "this list",
}


@dataclass
class Conversation:
    """The messages so far.

    Attributes:
        system: What the model is told first; empty for nothing.
        turns: Messages of the person and of the model, in turn.
    """

    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """All of them, as the model gets them."""
        before = [{"role": "system", "content": self.system}] if self.system else []
        return [*before, *self.turns]

    def command(self, line: str) -> str:
        """Do what a line that begins with a slash asks for; what to tell the person about it.

        Raises:
            UsageError: There is no such command, or it cannot be done.
        """
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/reset", "/new"):
            self.turns.clear()
            return "A new conversation."
        if name == "/system":
            self.system = rest or self.system
            return self.system or "The model is told nothing before the conversation."
        if name == "/thoughts":
            thoughts = [turn.get("reasoning_content", "") for turn in self.turns if turn["role"] == "assistant"]
            return (thoughts[-1] if thoughts else "") or "There was no thought."
        if name == "/save":
            return self._save(rest)
        if name == "/help":
            width = max(map(len, COMMANDS))
            listed = [f"{command:{width}}  {what}" for command, what in COMMANDS.items()]
            return "\n".join([*listed, f"{FENCE:{width}}  begins and ends a message of several lines"])
        raise UsageError(f"there is no command {name[:60]}", hint=f"/help lists them; {FENCE} begins a text like that.")

    def _save(self, file: str) -> str:
        if not file:
            raise UsageError("/save needs the name of a file", hint="As in: /save talk.json")
        path = Path(file).expanduser()
        try:
            with path.open("x", encoding="utf-8") as out:
                json.dump(self.messages, out, ensure_ascii=False, indent=2)
                out.write("\n")
        except FileExistsError as error:
            raise UsageError(f"{path} is there already", hint="Name another file.") from error
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}", hint="Name another file.") from error
        return f"Saved to {path}."


def read_message(ask: Callable[[str], str]) -> tuple[str, bool]:
    """What the person types next, and whether it is a command.

    Args:
        ask: Reads a line behind a prompt, as ``input`` does.

    Raises:
        EOFError: The input has ended; a message of several lines ends with it too.
    """
    line = ask("\n> ").strip()
    if not line.startswith(FENCE):
        return line, line.startswith("/")
    lines = [line.removeprefix(FENCE)]
    while FENCE not in lines[-1]:
        try:
            lines.append(ask(". "))
        except EOFError:
            break
    lines[-1] = lines[-1].partition(FENCE)[0]
    return "\n".join(lines).strip("\n"), False
