"""What a person types in a chat: messages of one line or several, and commands."""

import json
from pathlib import Path

import pytest

from deepwell.cli.conversation import COMMANDS, Conversation, read_message
from deepwell.errors import UsageError


def _typed(*lines: str) -> tuple[str, bool]:
    waiting = list(lines)

    def ask(prompt: str) -> str:
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    return read_message(ask)


@pytest.mark.parametrize(("lines", "message"), [
    (["  How deep? "], "How deep?"), (["/help"], "/help"), ([""], ""), (['"""', "/a", "", " b", '"""'], "/a\n\n b"),
    (['"""one', 'two"""'], "one\ntwo"), (['"""one line"""'], "one line"), (['"""', "cut off"], "cut off"),
])  # fmt: skip
def test_a_message_is_a_line_or_what_stands_between_quotes(lines: list[str], message: str) -> None:
    assert _typed(*lines) == (message, lines == ["/help"])


def test_the_end_of_the_input_is_the_end_of_the_chat() -> None:
    with pytest.raises(EOFError):
        _typed()


def test_commands_change_the_conversation() -> None:
    talk = Conversation()
    assert "nothing" in talk.command("/system")
    assert talk.command("/system  Be brief. ") == "Be brief."
    assert talk.command("/system") == "Be brief."
    talk.turns += [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "hm"}]
    assert [one["role"] for one in talk.messages] == ["system", "user", "assistant"]
    assert talk.command("/thoughts") == "hm"
    assert talk.command("/reset") == talk.command("/new")
    assert talk.messages == [{"role": "system", "content": "Be brief."}]
    assert talk.command("/thoughts") == "There was no thought."
    assert all(command in talk.command("/help") for command in COMMANDS)


def test_a_conversation_is_saved_and_nothing_is_overwritten(tmp_path: Path) -> None:
    talk = Conversation("Ä", [{"role": "user", "content": "a"}])
    file = tmp_path / "a talk.json"
    assert str(file) in talk.command(f"/save {file}")
    assert json.loads(file.read_text(encoding="utf-8")) == talk.messages
    assert "Ä" in file.read_text(encoding="utf-8")
    wrong = [
        (f"/save {file}", "is there already"),
        ("/save", "needs the name"),
        ("/etc/hosts", "no command /etc/hosts"),
    ]
    for line, message in [*wrong, (f"/save {tmp_path}/no/such", "cannot be written")]:
        with pytest.raises(UsageError, match=message):
            talk.command(line)
