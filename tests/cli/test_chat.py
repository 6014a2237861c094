"""``deepwell chat`` with a model that says what it is told to: one answer, a conversation, Ctrl-C, errors."""

import builtins
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deepwell as package
from deepwell.cli import ask, chat
from deepwell.errors import UsageError

Call = Callable[..., Any]


class FakeModel:
    """Streams pieces of (text, reasoning), one token each; ``at`` does something before a piece by its number."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, str]] = [("", "Hm"), ("", "."), ("Rome", ""), (" it is\x1b[2J.", "")]
        self.at: dict[int, Callable[[], None]] = {}
        self.asked: list[tuple[list[dict[str, str]], Any]] = []
        self.loaded: list[tuple[str, str, str]] = []
        self.closed = 0

    def load(self, name: str, *, precision: str, device: str) -> "FakeModel":
        self.loaded.append((name, precision, device))
        return self

    def begin(self, messages: Any, params: Any) -> "FakeRequest":
        self.asked.append(([dict(one) for one in messages], params))
        return FakeRequest(self)


class FakeRequest:
    """One answer of the fake model."""

    finish, prompt_tokens, reused_tokens, reasoning_tokens = "stop", 11, 4, 2

    def __init__(self, model: FakeModel) -> None:
        self.model = model

    def __enter__(self) -> "FakeRequest":
        return self

    def __exit__(self, *error: object) -> None:
        self.model.closed += 1

    def pieces(self) -> Iterator[Any]:
        for number, (text, reasoning) in enumerate(self.model.pieces):
            self.model.at.get(number, lambda: None)()
            yield SimpleNamespace(text=text, reasoning=reasoning, tokens=1)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(package, "Model", fake, raising=False)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    return fake


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str | BaseException) -> None:
    """What the person types; the input then ends."""
    waiting = list(lines)

    def read(prompt: str = "") -> str:
        if not waiting:
            raise EOFError
        line = waiting.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", read)


def test_a_question_is_answered_and_on_a_pipe_the_answer_stands_alone(deepwell: Call, model: FakeModel) -> None:
    ran = deepwell("chat", "small", "capital", "of", "Italy?", "--system", "Be brief.", "--seed", "3", "--no-thinking",
                   "--temperature", "0", "--max-tokens", "9", "--device", "cpu")  # fmt: skip
    assert ran.code == 0
    assert ran.out == "Rome it is\ufffd[2J.\n"
    assert model.loaded == [("small", "auto", "cpu")]
    ((messages, params),) = model.asked
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "capital of Italy?"}]
    assert (params.seed, params.thinking, params.temperature, params.max_tokens) == (3, False, 0.0, 9)


def test_a_question_may_be_piped_in(deepwell: Call, model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Which\ncity?\n"))
    assert deepwell("chat", "small").code == 0
    assert model.asked[0][0] == [{"role": "user", "content": "Which\ncity?"}]
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    ran = deepwell("chat", "small")
    assert ran.code == 2
    assert "there is no question" in ran.err


def test_on_a_terminal_thoughts_are_dim_and_the_speed_is_told(
    deepwell: Call, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = deepwell("chat", "small", "capital?").out
    assert "\x1b[2;3mHm\x1b[0m" in out
    assert out.index("Hm") < out.index("\n\n") < out.index("Rome")
    assert "4 tokens, the first after 0.0 s, then " in out
    assert "\x1b[2J" not in out


def test_a_folded_thought_is_told_also_where_no_answer_follows(
    deepwell: Call, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for pieces in ([("", "Hm")], [("", "Hm"), ("Rome", "")]):
        model.pieces = pieces
        out = deepwell("chat", "small", "capital?", "--thoughts", "folded").out
        assert "Hm" not in out
        assert out.count("Thought for 0.0 s") == 1


def test_a_conversation_remembers_and_may_begin_anew(
    deepwell: Call, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "One?", "", "Two?", KeyboardInterrupt(), "/reset", "Three?")
    assert deepwell("chat", "small", "--system", "S").code == 0
    asked = [[one["content"] for one in messages] for messages, _ in model.asked]
    answer = "Rome it is\x1b[2J."
    assert asked == [["S", "One?"], ["S", "One?", answer, "Two?"], ["S", "Three?"]]


def test_commands_act_on_the_conversation_and_wrong_ones_are_told(
    deepwell: Call, model: FakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    lines = ['"""One', "two", '"""', "/thoughts", "/fly", "/system Be brief.", "Four?", f"/save {file}", "/help"]
    typed(monkeypatch, *lines)
    ran = deepwell("chat", "small")
    assert ran.code == 0
    assert model.asked[0][0] == [{"role": "user", "content": "One\ntwo"}]
    assert [one["role"] for one in model.asked[1][0]] == ["system", "user", "assistant", "user"]
    assert "\nHm.\n" in ran.out
    assert "error: there is no command /fly" in ran.err
    assert "/save FILE" in ran.out
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [one["content"] for one in saved][:2] == ["Be brief.", "One\ntwo"]
    assert saved[2]["reasoning_content"] == "Hm."


def test_json_gives_an_answer_on_a_line(deepwell: Call, model: FakeModel) -> None:
    ran = deepwell("chat", "small", "capital?", "--json", "--system", "S")
    assert ran.code == 0
    (line,) = ran.out.splitlines()
    told = json.loads(line)
    assert (told["text"], told["reasoning"], told["finish"]) == ("Rome it is\x1b[2J.", "Hm.", "stop")
    assert (told["prompt_tokens"], told["reused_tokens"], told["tokens"], told["reasoning_tokens"]) == (11, 4, 4, 2)
    assert 0 <= told["seconds_to_first_token"] <= told["seconds"]
    assert [one["content"] for one in model.asked[0][0]] == ["S", "capital?"]


def test_json_from_a_pipe_is_a_conversation_of_lines(
    deepwell: Call, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        model.at.clear()
        raise UsageError("the prompt has 9000 tokens", hint="Begin anew.")

    model.at = {0: fail}
    monkeypatch.setattr(sys, "stdin", io.StringIO('Long?\n\n"two\\nlines"\n[3]\n'))
    ran = deepwell("chat", "small", "--json")
    assert ran.code == 3
    first, second, third = map(json.loads, ran.out.splitlines())
    assert first == {"error": {"code": "bad-usage", "message": "the prompt has 9000 tokens", "hint": "Begin anew."}}
    assert second["text"] == third["text"] == "Rome it is\x1b[2J."
    asked = [[one["content"] for one in messages] for messages, _ in model.asked]
    assert asked == [["Long?"], ["two\nlines"], ["two\nlines", "Rome it is\x1b[2J.", "[3]"]]


def test_json_says_that_an_answer_was_stopped(deepwell: Call, model: FakeModel) -> None:
    model.at = {3: lambda: os.kill(os.getpid(), signal.SIGINT)}
    ran = deepwell("chat", "small", "One?", "--json")
    assert ran.code == 130
    assert json.loads(ran.out)["finish"] == "cancelled"


def test_ctrl_c_stops_the_answer_and_not_the_program(
    deepwell: Call, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    model.at = {2: lambda: os.kill(os.getpid(), signal.SIGINT)}
    typed(monkeypatch, "One?", "Two?")
    ran = deepwell("chat", "small")
    assert ran.code == 0
    assert model.closed == 2
    assert ran.out.count("Rome") == 2
    assert "it is" not in ran.out
    assert model.asked[1][0][1] == {"role": "assistant", "content": "Rome", "reasoning_content": "Hm."}
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_a_single_answer_ends_with_its_exit_code(deepwell: Call, model: FakeModel) -> None:
    model.at = {2: lambda: os.kill(os.getpid(), signal.SIGINT)}
    ran = deepwell("chat", "small", "One?")
    assert ran.code == 130
    assert ran.out == "Rome\n"


def test_a_second_ctrl_c_ends_the_program(deepwell: Call, model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    model.at = {2: twice}
    typed(monkeypatch, "One?", "Two?")
    assert deepwell("chat", "small").code == 130
    assert len(model.asked) == 1


def test_a_question_that_fails_is_told_and_forgotten(
    deepwell: Call, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        model.at.clear()
        raise UsageError("the prompt has 9000 tokens", hint="Begin anew.")

    model.at = {0: fail}
    typed(monkeypatch, "Long?", "Short?")
    ran = deepwell("chat", "small")
    assert ran.code == 0
    assert "error: the prompt has 9000 tokens\n  Begin anew." in ran.err
    assert [one["content"] for one in model.asked[1][0]] == ["Short?"]


def test_wrong_settings_and_unknown_models_are_errors_before_anything_is_loaded(
    deepwell: Call, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = deepwell("chat", "small", "hi", "--top-p", "3")
    assert (ran.code, model.loaded) == (2, [])
    assert "top_p is 3.0" in ran.err
    monkeypatch.undo()
    ran = deepwell("chat", "no-such-model", "hi")
    assert ran.code == 2
    assert "no-such-model" in ran.err


def test_ask_hands_a_model_of_this_machine_to_the_library(
    deepwell: Call, library: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepwell.bridge import LocalChat

    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF")
    assert deepwell("ask", "where?", "--model", str(file)).code == 0
    writer = library.calls[-1][2]["model"]
    assert isinstance(writer, LocalChat)
    assert writer.name == "small.gguf"
    monkeypatch.setenv("DEEPWELL_CHAT", str(file))
    assert deepwell("ask", "where?").code == 0
    assert isinstance(library.calls[-1][2]["model"], LocalChat)
    for name in ("extractive", "openai:m@http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1"):
        assert deepwell("ask", "where?", "--model", name).code == 0
        assert library.calls[-1][2]["model"] == name


def test_ask_does_not_search_for_a_model_that_nobody_knows(deepwell: Call, library: Any) -> None:
    ran = deepwell("ask", "where?", "--model", "exractive")
    assert ran.code == 2
    assert "unknown language model 'exractive'" in ran.err
    assert not library.opened


def test_the_commands_are_the_ones_that_the_list_names() -> None:
    assert chat.chat.name == "chat"
    assert ask.ask.name == "ask"
