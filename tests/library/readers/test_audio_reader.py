"""Passages of a recording follow its pauses and know their seconds."""

import struct
import wave
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwell.errors import UnreadableFileError
from deepwell.library.protocols import Reader, SoundTag, Transcript, Utterance, Word
from deepwell.library.readers.audio import LONG_PAUSE, AudioReader, spoken
from deepwell.library.readers.tokens import estimate_tokens
from deepwell.library.records import Label
from deepwell.testing import FakeSenses

pytest.importorskip("av")

READER = AudioReader()


def recording(path: Path, seconds: float = 1.0) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.zeros(int(seconds * 16_000), dtype="<i2").tobytes())
    return path


def utterance(text: str, start: float, step: float = 0.4) -> Utterance:
    words = tuple(Word(word, start + i * step, start + i * step + step * 0.9) for i, word in enumerate(text.split()))
    return Utterance(text, words[0].start, words[-1].end, words)


def transcript(*utterances: Utterance) -> Transcript:
    return Transcript(utterances, "en", utterances[-1].end if utterances else 0.0)


LONG = " ".join(["the committee discussed the harbour budget again"] * 6) + "."


def test_words_and_sounds(tmp_path: Path) -> None:
    heard = [
        SoundTag(0.0, 4.0, (Label("Speech", 0.9),)),
        SoundTag(4.0, 6.0, (Label("Rain", 0.7), Label("Water", 0.4))),
    ]
    said = transcript(utterance("hello from the boat", 1.0))
    document = READER.read(recording(tmp_path / "note.wav", 2), FakeSenses(transcript=said, heard=heard))
    words, sound = document.passages
    assert (words.text, words.place.start, words.modality) == ("hello from the boat", 1.0, "text")
    assert words.place.end == pytest.approx(1 + 3 * 0.4 + 0.36)
    assert (sound.text, sound.place.start, sound.place.end) == ("sound of Rain, Water", 4.0, 6.0)
    assert (sound.modality, sound.labels[0].name) == ("audio", "Rain")
    assert document.kind == "audio"
    assert document.metadata["language"] == "en"
    assert document.missing == ()


def test_without_models_it_is_found_by_name(tmp_path: Path) -> None:
    document = READER.read(recording(tmp_path / "Interview_with_Ada.wav", 2), FakeSenses())
    assert document.missing == ("whisper-tiny", "yamnet")
    assert [passage.text for passage in document.passages] == ["recording: Interview with Ada"]
    assert document.metadata["duration"] == 2.0


def test_a_passage_is_not_carried_over_a_long_pause() -> None:
    first, second = utterance(LONG, 0.0), utterance(LONG, 60.0)
    assert [p.place.start for p in spoken(transcript(first, second))] == [0.0, 60.0]
    near = utterance(LONG, first.end + 1.0)
    assert len(list(spoken(transcript(first, near)))) == 1


def test_a_crumb_is_joined_to_what_follows_it_soon() -> None:
    greeting = utterance("Good morning.", 0.0)
    assert len(list(spoken(transcript(greeting, utterance(LONG, 4.0))))) == 1
    assert len(list(spoken(transcript(greeting, utterance(LONG, 40.0))))) == 2


def test_chinese_has_no_spaces() -> None:
    said = Transcript((utterance("今天 天气 很好", 0.0),), "zh", 2.0)
    assert [passage.text for passage in spoken(said)] == ["今天天气很好"]


def test_long_talk_is_cut_at_its_longest_pauses() -> None:
    talk, start = [], 0.0
    for i in range(30):
        talk.append(utterance(f"Sentence number {i} of the talk is here for the record.", start))
        start = talk[-1].end + (1.2 if i == 14 else 0.5)
    passages = list(spoken(transcript(*talk)))
    assert len(passages) >= 2
    assert any(passage.text.startswith("Sentence number 15 ") for passage in passages)
    assert all(passage.text.endswith("record.") for passage in passages)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 5)), min_size=1, max_size=40))
def test_no_word_is_lost_and_sizes_and_order_hold(talk: list[tuple[int, float]]) -> None:
    utterances, start = [], 0.0
    for i, (count, pause) in enumerate(talk):
        utterances.append(utterance(" ".join(f"word{i}x{j}" for j in range(count)), start))
        start = utterances[-1].end + pause
    passages = list(spoken(transcript(*utterances)))
    assert " ".join(p.text for p in passages) == " ".join(u.text for u in utterances)
    for passage, following in pairwise(passages):
        assert passage.place.start is not None and passage.place.end is not None and following.place.start is not None
        assert passage.place.start <= passage.place.end <= following.place.start + 1e-6
        assert estimate_tokens(passage.text) <= 301
    assert LONG_PAUSE < 2


def test_a_recording_cut_short_is_refused(tmp_path: Path) -> None:
    path = recording(tmp_path / "meeting.wav")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 40, 36_000 * 32_000)
    path.write_bytes(data)
    with pytest.raises(UnreadableFileError, match="promises 10:00:00"):
        READER.read(path, FakeSenses(transcript=transcript(), heard=()))


def test_signatures_decide_before_suffixes(tmp_path: Path) -> None:
    assert isinstance(READER, Reader)
    assert READER.accepts(recording(tmp_path / "a.wav").read_bytes()[:4096], ".txt") > 0.9
    assert READER.accepts(b"fLaC\0", "") > 0.9
    assert READER.accepts(b"\0\0\0\x20ftypM4A ", ".m4a") > 0.8
    assert READER.accepts(b"\0\0\0\x18ftypheic", ".heic") == 0
    assert 0 < READER.accepts(b"hello", ".mp3") < 0.5
    assert READER.accepts(b"hello", ".txt") == 0
