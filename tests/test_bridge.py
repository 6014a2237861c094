"""A model of this machine as a library's chat model: messages in, deltas out, nothing loaded before it is asked."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import deepwell
from deepwell.bridge import LocalChat
from deepwell.errors import ChatError, MissingModelError, UsageError
from deepwell.library.protocols import ChatModel, Delta, Message


class FakeModel:
    """Streams what it was given, and remembers what it was asked."""

    def __init__(self, *pieces: tuple[str, str], error: Exception | None = None) -> None:
        self.pieces, self.error, self.asked = pieces, error, []

    def stream(self, messages: Any, params: Any) -> Iterator[Any]:
        self.asked.append((messages, params))
        if self.error is not None:
            raise self.error
        for text, reasoning in self.pieces:
            yield SimpleNamespace(text=text, reasoning=reasoning)


def test_messages_go_in_and_deltas_come_out() -> None:
    model = FakeModel(("", "Hm."), ("", ""), ("So ", ""), ("it is.", ""))
    chat = LocalChat(model, name="small", thinking=True)  # type: ignore[arg-type]
    assert isinstance(chat, ChatModel)
    assert chat.name == "small"
    asked = [Message("system", "Be brief."), Message("user", "Is it?")]
    deltas = list(chat.chat(asked, max_tokens=7, temperature=0.5))
    assert deltas == [Delta("", "Hm."), Delta("So "), Delta("it is.")]
    ((messages, params),) = model.asked
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
    assert (params.max_tokens, params.temperature, params.thinking) == (7, 0.5, True)


def test_a_model_is_loaded_once_and_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(name: str) -> FakeModel:
        loaded.append(name)
        return FakeModel(("yes", ""))

    monkeypatch.setattr(deepwell, "Model", SimpleNamespace(load=load), raising=False)
    chat = LocalChat("some/folder/small.gguf")
    assert chat.name == "small.gguf"
    assert not loaded
    for _ in range(2):
        assert list(chat.chat([Message("user", "?")])) == [Delta("yes")]
    assert loaded == ["some/folder/small.gguf"]


def test_a_prompt_that_does_not_fit_is_a_chat_error_with_the_counts() -> None:
    model = FakeModel(error=UsageError("the prompt has 9000 tokens; this network reads 8192"))
    with pytest.raises(ChatError, match="small did not accept the question: the prompt has 9000 tokens") as told:
        list(LocalChat(model, name="small").chat([Message("user", "?")]))  # type: ignore[arg-type]
    assert "fewer" in told.value.hint


def test_a_model_that_is_not_here_is_the_error_that_says_how_to_fetch_it() -> None:
    with pytest.raises(MissingModelError, match="smollm2"):
        list(LocalChat("smollm2-135m-instruct").chat([Message("user", "?")]))


@pytest.mark.models
@pytest.mark.slow
def test_the_starter_model_answers_through_the_own_engine() -> None:
    chat = LocalChat("smollm2-135m-instruct")
    asked = [Message("system", "Answer with one word."), Message("user", "What is the capital of France?")]
    first = "".join(delta.text for delta in chat.chat(asked, max_tokens=12))
    assert "Paris" in first
    assert "".join(delta.text for delta in chat.chat(asked, max_tokens=12)) == first
