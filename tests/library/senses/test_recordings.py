"""Recordings are decoded piece by piece, and what is not one is told at once."""

import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from deepwell.errors import UnreadableFileError
from deepwell.library.senses.recordings import RATE, check_length, facts, pieces

pytest.importorskip("av")


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def tone(seconds: float, rate: int = RATE, hertz: float = 440) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate) * 0.5


def test_pieces_join_to_the_whole(tmp_path: Path) -> None:
    sound = tone(5.3)
    parts = list(pieces(write_wav(tmp_path / "a.wav", sound), seconds=2))
    assert [len(part) for part in parts] == [2 * RATE, 2 * RATE, int(1.3 * RATE)]
    assert parts[0].dtype == np.float32
    np.testing.assert_allclose(np.concatenate(parts), sound, atol=1e-4)


def test_other_rates_and_channels_are_mixed_and_resampled(tmp_path: Path) -> None:
    left = tone(2, 44_100)
    path = write_wav(tmp_path / "a.wav", np.stack([left, left], axis=1), 44_100, channels=2)
    sound = np.concatenate(list(pieces(path)))
    assert abs(len(sound) - 2 * RATE) < 50
    spectrum = np.abs(np.fft.rfft(sound[:RATE]))
    assert int(spectrum.argmax()) == 440


def test_facts(tmp_path: Path) -> None:
    told = facts(write_wav(tmp_path / "a.wav", tone(1.5)))
    assert told.duration == pytest.approx(1.5)
    assert (told.channels, told.sample_rate) == (1, RATE)


def test_a_header_that_promises_ten_hours(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "long.wav", tone(0.5))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 40, 36_000 * RATE * 2)
    path.write_bytes(data)
    for look in (check_length, facts, lambda p: list(pieces(p))):
        with pytest.raises(UnreadableFileError, match=r"promises 10:00:00.*holds 0:00:00|promises 10:00:00"):
            look(path)


def test_a_recorder_that_never_closed_its_file_is_read(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "open.wav", tone(0.5))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 40, 0xFFFFFFFF)
    path.write_bytes(data)
    assert sum(len(part) for part in pieces(path)) == RATE // 2


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"hello, this is a text", b"OggS" + b"\0" * 60, b"RIFF\0\0\0\0WAVEfmt "]
)
def test_what_is_no_recording(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"bad\.wav"):
        list(pieces(path))


def test_a_wav_without_a_single_sample(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="no sound"):
        list(pieces(write_wav(tmp_path / "none.wav", np.zeros(0))))
