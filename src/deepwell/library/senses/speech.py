"""What is said in a recording, word by word with times, by Whisper (https://arxiv.org/abs/2212.04356) on CTranslate2.

A recording is heard in blocks of five minutes cut at their quietest moment, so an hour takes no more memory than a
song. Blocks that are all but silent are skipped without a look; in the rest a voice detector (Silero, in
faster-whisper's wheel) leaves only speech for Whisper, which otherwise invents words in silence. What it still invents
is told by its own doubts: a low mean log probability, text that repeats itself, more words than a mouth can say in the
time.

Decoding is by beam search only. Whisper's usual retries at higher temperatures are random, and the same bytes must
give the same passages.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepwell.errors import MissingExtraError, ModelSourceError
from deepwell.library.protocols import Transcript, Utterance, Word
from deepwell.library.senses.recordings import RATE, pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL = "whisper-tiny"

LONG_PAUSE = 0.8
"""Seconds of silence that end an utterance."""

SPACELESS = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})
"""Languages written without spaces between words."""

_BLOCK_SECONDS = 300.0
_SEEK_SECONDS = 15.0
_SILENT = 0.002  # -54 dB of full scale: below the noise of any room that is spoken in
_FILES = ("model.bin", "tokenizer.json", "config.json")
_PHANTOMS = ("thank you", "thanks for watching", "please subscribe", "subtitles by", "you", "bye")


@dataclass
class SpeechListener:
    """Whisper over files.

    Attributes:
        folder: A CTranslate2 Whisper model: ``model.bin``, ``tokenizer.json``, ``config.json``, a vocabulary.
        threads: Threads to use; None for all cores.
    """

    folder: Path
    threads: int | None = None

    @cached_property
    def model(self) -> Any:
        """The faster-whisper model, from local files only."""
        if importlib.util.find_spec("faster_whisper") is None:
            raise MissingExtraError("speech needs faster-whisper", hint="Run: pip install 'deepwell[audio]'")
        for name in _FILES:  # faster-whisper would try to download a tokenizer that is missing
            if not (self.folder / name).exists():
                raise ModelSourceError(f"{self.folder} has no {name}", hint=f"Run: deepwell models pull {MODEL}")
        from faster_whisper import WhisperModel

        return WhisperModel(
            str(self.folder), device="cpu", compute_type="int8", cpu_threads=self.threads or 0, local_files_only=True
        )

    def transcribe(self, path: Path) -> Transcript:
        """What is said, with word times. No speech gives no utterances and an empty language."""
        words: list[Word] = []
        languages: Counter[str] = Counter()
        start = 0.0
        for block in blocks(pieces(path)):
            if float(abs(block).max()) > _SILENT:
                language, heard = self._hear(block, start, likely=languages.most_common(1)[0][0] if languages else None)
                words.extend(heard)
                if heard:
                    languages[language] += len(heard)
            start += len(block) / RATE
        language = languages.most_common(1)[0][0] if languages else ""
        return Transcript(tuple(utterances(words, language)), language, round(start, 3))

    def _hear(self, block: NDArray[np.float32], start: float, *, likely: str | None) -> tuple[str, list[Word]]:
        """Language and words of one block, times counted from the start of the recording."""
        settings = {
            "beam_size": 5,
            "temperature": 0.0,
            "condition_on_previous_text": False,
            "word_timestamps": True,
            "vad_filter": True,
            "vad_parameters": {"min_silence_duration_ms": 500, "speech_pad_ms": 250},
        }
        segments, info = self.model.transcribe(block, **settings)
        if likely is not None and info.language != likely and info.language_probability < 0.7:
            segments, info = self.model.transcribe(block, language=likely, **settings)
        language = str(info.language)
        words: list[Word] = []
        for word in (word for segment in segments if is_believable(segment) for word in segment.words or ()):
            text, begin, end = word.word, start + float(word.start), start + float(word.end)
            if words and not text.startswith(" ") and language not in SPACELESS:
                # Whisper's tokens cut "ill-disposed" in two; what has no space before it belongs to the word before.
                last = words.pop()
                words.append(Word(last.text + text.strip(), last.start, round(end, 2)))
            elif text.strip():
                words.append(Word(text.strip(), round(begin, 2), round(end, 2)))
        return language, words


def blocks(
    parts: Iterable[NDArray[np.float32]], *, seconds: float = _BLOCK_SECONDS, seek: float = _SEEK_SECONDS
) -> Iterator[NDArray[np.float32]]:
    """Join pieces of samples into blocks of about ``seconds``, cut at the quietest moment of their last ``seek``."""
    import numpy as np

    held: list[NDArray[np.float32]] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        while count >= seconds * RATE:
            block = np.concatenate(held)
            cut = quietest(block, first=int((seconds - seek) * RATE), last=int(seconds * RATE))
            yield block[:cut]
            held, count = [block[cut:]], len(block) - cut
    if count:
        yield np.concatenate(held)


def quietest(samples: NDArray[np.float32], *, first: int, last: int, window: int = RATE // 4) -> int:
    """The middle of the quietest quarter second between two samples; ``last`` where they are too close."""
    import numpy as np

    frames = (last - first) // window
    if frames < 2:
        return last
    power = np.square(samples[first : first + frames * window].reshape(frames, window)).mean(axis=1)
    return first + int(power.argmin()) * window + window // 2


def is_believable(segment: Any) -> bool:
    """Whether a segment of Whisper's is likely to have been said (see the module's first lines)."""
    text = segment.text.strip()
    seconds = max(segment.end - segment.start, 0.01)
    if not text or segment.compression_ratio > 2.4 or len(text) / seconds > 40:
        return False
    if segment.avg_logprob < -1.2 or (segment.no_speech_prob > 0.6 and segment.avg_logprob < -0.7):
        return False
    bare = text.lower().strip(" .!,")
    return not (bare.startswith(_PHANTOMS) and len(bare) < 40 and segment.no_speech_prob > 0.4)


def utterances(words: Iterable[Word], language: str = "", *, pause: float = LONG_PAUSE) -> Iterator[Utterance]:
    """Words in order of time, grouped where no silence is as long as ``pause`` seconds."""
    group: list[Word] = []
    for word in words:
        if group and word.start - group[-1].end >= pause:
            yield _utterance(group, language)
            group = []
        group.append(word)
    if group:
        yield _utterance(group, language)


def join_words(words: Iterable[Word], language: str) -> str:
    """Words as a text, in the way that their language is written."""
    return ("" if language in SPACELESS else " ").join(word.text for word in words)


def _utterance(words: list[Word], language: str) -> Utterance:
    end = max(word.end for word in words)
    return Utterance(join_words(words, language), words[0].start, end, tuple(words))
