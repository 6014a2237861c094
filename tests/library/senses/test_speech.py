"""Blocks are cut where it is quiet, words keep their time, and what Whisper invents is dropped."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepwell.errors import ModelSourceError
from deepwell.library.protocols import Word
from deepwell.library.senses import speech
from deepwell.library.senses.recordings import RATE
from deepwell.library.senses.speech import SpeechListener, blocks, is_believable, quietest, utterances


def segment(text: str, start: float = 0.0, end: float = 2.0, **more: Any) -> SimpleNamespace:
    words = [SimpleNamespace(word=f" {w}", start=start + i, end=start + i + 0.8) for i, w in enumerate(text.split())]
    settings = {"compression_ratio": 1.2, "avg_logprob": -0.3, "no_speech_prob": 0.1, "words": words} | more
    return SimpleNamespace(text=text, start=start, end=end, **settings)


class FakeWhisper:
    """Says one thing for each block, in the language and with the sureness it was told."""

    def __init__(self, said: list[tuple[str, str, float]]) -> None:
        self.said = said
        self.calls: list[tuple[int, str | None]] = []

    def transcribe(self, samples: np.ndarray, language: str | None = None, **_: Any) -> tuple[Iterator[Any], Any]:
        heard = [block for block, told in self.calls if told is None]
        self.calls.append((len(samples), language))
        text, guess, sure = self.said[len(heard) if language is None else len(heard) - 1]
        info = SimpleNamespace(language=language or guess, language_probability=sure)
        return iter([segment(text)]), info


def listener(monkeypatch: pytest.MonkeyPatch, parts: list[np.ndarray], whisper: FakeWhisper) -> SpeechListener:
    monkeypatch.setattr(speech, "pieces", lambda path: iter(parts))
    monkeypatch.setattr(speech, "_BLOCK_SECONDS", 10.0)
    made = SpeechListener(Path("none"))
    made.__dict__["model"] = whisper
    return made


def loud(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * RATE)).astype(np.float32)


def test_blocks_are_cut_in_silence_and_lose_nothing() -> None:
    sound = loud(30)
    sound[int(8.0 * RATE) : int(8.6 * RATE)] = 0
    cut = list(blocks([sound[: 7 * RATE], sound[7 * RATE :]], seconds=10, seek=4))
    assert len(cut[0]) == pytest.approx(8.3 * RATE, abs=0.2 * RATE)
    np.testing.assert_array_equal(np.concatenate(cut), sound)
    assert all(len(block) <= 10 * RATE for block in cut)


def test_too_short_a_stretch_is_cut_at_its_end() -> None:
    assert quietest(loud(1), first=0, last=100) == 100


def test_words_of_later_blocks_keep_their_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet = np.zeros(10 * RATE, dtype=np.float32)
    monkeypatch.setattr(speech, "blocks", lambda parts: iter([quiet, loud(10), loud(5)]))
    whisper = FakeWhisper([("hello there", "en", 0.9), ("good bye", "cy", 0.3)])
    heard = listener(monkeypatch, [], whisper).transcribe(tmp_path)
    assert [(u.text, u.start, u.end) for u in heard.utterances] == [
        ("hello there", 10.0, 11.8),
        ("good bye", 20.0, 21.8),
    ]
    assert (heard.language, heard.duration) == ("en", 25.0)
    # The silent block was never shown to the network; the unsure one was heard again in the recording's language.
    assert whisper.calls == [(10 * RATE, None), (5 * RATE, None), (5 * RATE, "en")]


def test_silence_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard = listener(monkeypatch, [np.zeros(RATE, dtype=np.float32)] * 30, FakeWhisper([])).transcribe(tmp_path)
    assert (heard.utterances, heard.language, heard.duration) == ((), "", 30.0)


@pytest.mark.parametrize(
    ("heard", "believed"),
    [
        (segment("ask not what your country can do"), True),
        (segment("Thank you."), True),
        (segment("Thank you.", no_speech_prob=0.7), False),
        (segment("so so so so so so", compression_ratio=3.0), False),
        (segment("mumble", avg_logprob=-1.5), False),
        (segment("far too many words for a mouth to say in so short a time", end=0.5), False),
        (segment(" "), False),
    ],
)
def test_what_whisper_invents(heard: SimpleNamespace, believed: bool) -> None:
    assert is_believable(heard) is believed


def test_a_word_that_was_cut_in_two_is_one_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Whisper:
        def transcribe(self, samples: np.ndarray, **_: Any) -> tuple[Iterator[Any], Any]:
            heard = segment("an ill disposed man")
            heard.words = [
                SimpleNamespace(word=w, start=i, end=i + 0.9)
                for i, w in enumerate((" an", " ill", "-disposed", " man"))
            ]
            return iter([heard]), SimpleNamespace(language="en", language_probability=0.9)

    (said,) = listener(monkeypatch, [loud(5)], Whisper()).transcribe(tmp_path).utterances  # type: ignore[arg-type]
    assert said.text == "an ill-disposed man"
    assert (said.words[1].start, said.words[1].end) == (1.0, 2.9)


def test_utterances_end_at_pauses() -> None:
    words = [Word("one", 0, 0.5), Word("two", 0.6, 1.0), Word("three", 2.0, 2.5)]
    assert [(u.text, u.start, u.end, len(u.words)) for u in utterances(words)] == [
        ("one two", 0, 1.0, 2),
        ("three", 2.0, 2.5, 1),
    ]


def test_an_incomplete_model_is_told_and_never_completed_from_the_network(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelSourceError, match=r"tokenizer\.json"):
        _ = SpeechListener(tmp_path).model
