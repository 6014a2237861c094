"""The fakes satisfy the protocols and behave like the real thing where a caller can tell."""

from pathlib import Path

import numpy as np
import pytest

from deepwell.errors import MissingModelError, UnreadableFileError
from deepwell.library.protocols import ChatModel, ImageEncoder, Message, Reader, TextEncoder
from deepwell.testing import FakeReader, FakeSenses, HashEncoder, HashImageEncoder, ScriptedChat


def test_each_fake_satisfies_its_protocol() -> None:
    assert isinstance(HashEncoder(), TextEncoder)
    assert isinstance(HashImageEncoder(), ImageEncoder)
    assert isinstance(FakeReader(), Reader)
    assert isinstance(ScriptedChat(["x"]), ChatModel)


def test_texts_that_share_words_are_near() -> None:
    encoder = HashEncoder()
    rows = encoder.encode(["the red boat sails", "a red boat sails", "stock prices fell", ""])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert rows[0] @ rows[1] > 0.5 > rows[0] @ rows[2]
    assert encoder.encoded == 4
    assert HashEncoder(seed=1).fingerprint != encoder.fingerprint


def test_equal_pictures_have_equal_vectors(tmp_path: Path) -> None:
    for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(data)
    a, b, c = HashImageEncoder().encode_images([tmp_path / name for name in "abc"])
    assert a @ b == pytest.approx(1)
    assert a @ c < 0.9


def test_the_reader_knows_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n\nthree\n")
    passages = FakeReader().read(file, FakeSenses()).passages
    assert [(p.text, p.place.lines) for p in passages] == [("one\ntwo", (1, 2)), ("three", (4, 5))]
    file.write_text("BROKEN")
    with pytest.raises(UnreadableFileError):
        FakeReader().read(file, FakeSenses())


def test_a_sense_that_was_given_nothing_is_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError, match="fake-speech"):
        FakeSenses().transcribe(tmp_path)


def test_a_scripted_chat_streams_reasoning_then_text() -> None:
    chat = ScriptedChat([("thinking it over", "the answer"), "again"])
    asked = [Message("user", "hello")]
    first = list(chat.chat(asked))
    assert "".join(d.reasoning for d in first) == "thinking it over"
    assert "".join(d.text for d in first) == "the answer"
    assert len(first) > 2
    assert "".join(d.text for d in chat.chat(asked)) == "again"
    assert "".join(d.text for d in chat.chat(asked)) == "again"
    assert len(chat.asked) == 3
