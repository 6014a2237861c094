"""A recording to samples, a piece at a time: memory stays small however long it is.

Decoding is FFmpeg's, which the ``av`` wheel carries (it comes with faster-whisper), so flac, mp3, ogg, opus, wav, m4a
and the sound of an mp4 all read alike. A WAV header that promises more than the file holds is found before anything is
decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepwell.errors import MissingExtraError, UnreadableFileError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE = 16_000
"""Samples a second that both listeners (Whisper, YAMNet) want."""

_AGAIN = "Replace it with a whole copy, or save it as WAV, FLAC or MP3."
_OPEN_ENDED = (0, 0xFFFFFFFF, 0x7FFFFFFF)


@dataclass(frozen=True, slots=True)
class RecordingFacts:
    """What a recording's header says. ``duration`` is in seconds, None when the header does not tell."""

    duration: float | None
    tags: dict[str, str] = field(default_factory=dict)
    codec: str = ""
    channels: int = 0
    sample_rate: int = 0


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("recordings need faster-whisper", hint="Run: pip install 'deepwell[audio]'") from error
    av.logging.set_level(av.logging.PANIC)  # FFmpeg writes about every odd frame to standard error
    return av


def check_length(path: Path) -> None:
    """Refuse an empty file and a WAV file that holds less sound than its header promises.

    Recorders that are still running write a length of zero or the largest number; that is no promise and is accepted.
    """
    size = path.stat().st_size
    if size == 0:
        raise UnreadableFileError(f"{path.name} is empty (0 bytes)", hint="Replace it with a whole copy.")
    with path.open("rb") as file:
        if file.read(4) != b"RIFF" or file.seek(8) != 8 or file.read(4) != b"WAVE":
            return
        bytes_a_second = 0
        while len(head := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", head)
            if name == b"fmt " and length >= 16:
                content = file.read(16)
                bytes_a_second = struct.unpack("<8xI4x", content)[0] if len(content) == 16 else 0
                file.seek(length - 16 + length % 2, 1)
            elif name == b"data":
                held = size - file.tell()
                if length not in _OPEN_ENDED and held < 0.98 * length:
                    raise UnreadableFileError(
                        f"{path.name} is cut short: its header promises {_clock(length, bytes_a_second)}, "
                        f"the file holds {_clock(held, bytes_a_second)}",
                        hint="Replace it with a whole copy.",
                    )
                return
            else:
                file.seek(length + length % 2, 1)


def _clock(length: int, bytes_a_second: int) -> str:
    if bytes_a_second <= 0:
        return f"{length:,} bytes"
    seconds = round(length / bytes_a_second)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def facts(path: Path) -> RecordingFacts:
    """Read the header only. Raises ``UnreadableFileError`` when it is not a recording or has no sound in it."""
    av = _av()
    check_length(path)
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = _sound_of(container, path)
            told = {**stream.metadata, **container.metadata}
            tags = {str(key).lower(): str(value).strip() for key, value in told.items()}
            length = container.duration
            context = stream.codec_context
            return RecordingFacts(
                duration=length / av.time_base if length and length > 0 else None,
                tags=tags,
                codec=context.name,
                channels=context.channels,
                sample_rate=context.sample_rate,
            )
    except (av.error.FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from error


def pieces(path: Path, *, seconds: float = 30.0) -> Iterator[NDArray[np.float32]]:
    """Mono samples at 16 kHz between -1 and 1, in pieces of ``seconds`` (the last is shorter).

    A damaged packet in the middle is skipped; a recording none of whose packets decode raises ``UnreadableFileError``.
    """
    import numpy as np

    av = _av()
    check_length(path)
    wanted = int(seconds * RATE)
    kept: list[NDArray[np.int16]] = []
    held, decoded = 0, False
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = _sound_of(container, path)
            stream.thread_type = "NONE"
            resampler = av.audio.resampler.AudioResampler(format="s16", layout="mono", rate=RATE)
            for frame in _frames(av, container, stream):
                if frame is not None:
                    decoded = True
                    frame.pts = None
                for part in resampler.resample(frame) if decoded else ():
                    samples = part.to_ndarray().reshape(-1)
                    kept.append(samples)
                    held += len(samples)
                    while held >= wanted:
                        joined = np.concatenate(kept)
                        yield joined[:wanted].astype(np.float32) / 32768.0
                        kept, held = [joined[wanted:]], held - wanted
    except av.error.FFmpegError as error:
        if not decoded:
            raise _unreadable(path, error) from error
    if not decoded:
        raise UnreadableFileError(f"{path.name} holds no sound that can be decoded", hint=_AGAIN)
    if held:
        yield np.concatenate(kept).astype(np.float32) / 32768.0


def _frames(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames, then None to flush the resampler; packets that do not decode are left out."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue
    yield None


def _sound_of(container: Any, path: Path) -> Any:
    if not container.streams.audio:
        raise UnreadableFileError(f"{path.name} has no sound in it", hint="There is nothing to listen to.")
    return container.streams.audio[0]


def _unreadable(path: Path, error: Exception) -> UnreadableFileError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UnreadableFileError(f"{path.name} is not a recording that can be decoded ({reason})", hint=_AGAIN)
