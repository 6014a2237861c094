"""Recordings: what is said, with the second it is said at, and what else is heard.

Passages follow pauses. A speaker who stops for two seconds has usually ended a thought, so a passage is not carried
over such a silence unless it is still very short; within 150 to 300 tokens it ends at the longest pause there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from deepwell.errors import MissingExtraError, MissingModelError
from deepwell.library.protocols import Senses, SoundTag, Transcript, Word
from deepwell.library.readers.guard import document
from deepwell.library.readers.tokens import estimate_tokens
from deepwell.library.records import Document, Passage, Place
from deepwell.library.senses.recordings import RecordingFacts, facts
from deepwell.library.senses.speech import join_words

LONG_PAUSE = 1.8
"""Seconds of silence that a passage does not cross."""

_MIN_TOKENS, _MAX_TOKENS = 150, 300
_TOO_SHORT = 25
_BREAK = 6.0
_MOST_TAGS = 400
_SPEECH = frozenset(
    {"Speech", "Child speech, kid speaking", "Conversation", "Narration, monologue", "Speech synthesizer",
     "Male speech, man speaking", "Female speech, woman speaking", "Inside, small room", "Silence"}
)  # fmt: skip


class AudioReader:
    """Reads the sound of anything that FFmpeg decodes."""

    name = "audio"
    version = 2
    suffixes = frozenset(
        ".wav .flac .mp3 .ogg .oga .opus .m4a .m4b .aac .wma .aif .aiff .aifc .au .amr .caf .mka"
        " .mp4 .m4v .mov .webm .mkv "
        ".3gp".split()
    )
    cost: Literal["fast", "slow"] = "slow"

    def accepts(self, head: bytes, suffix: str) -> float:
        """A recording's signature is proof; a suffix alone is weak."""
        if head.startswith((b"fLaC", b"OggS", b"ID3", b"caff", b"#!AMR", b"\x1aE\xdf\xa3", b"wvPk")):
            return 0.95
        if head[:4] in {b"RIFF", b"RF64"} and head[8:12] == b"WAVE":
            return 0.95
        if head[:4] == b"FORM" and head[8:12] in {b"AIFF", b"AIFC"}:
            return 0.95
        if head[4:8] == b"ftyp" and head[8:12] not in {b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis", b"hevc"}:
            return 0.9
        if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and suffix in {".mp3", ".aac", ".mp2"}:
            return 0.9
        return 0.4 if suffix in self.suffixes else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Listen to one recording. Raises ``UnreadableFileError`` for one damaged, cut short or without sound."""
        missing: list[str] = []
        told = _facts(path, missing)
        transcript: Transcript | None = None
        tags: Sequence[SoundTag] = ()
        try:
            transcript = senses.transcribe(path)
        except MissingModelError:
            missing.append("whisper-tiny")
        except MissingExtraError:
            _once(missing, "faster-whisper")
        try:
            tags = senses.sounds(path)
        except MissingModelError:
            missing.append("yamnet")
        except MissingExtraError:
            _once(missing, "ai-edge-litert")
        passages = list(spoken(transcript)) if transcript is not None else []
        heard = list(audible(tags))
        name = told.tags.get("title", "") or " ".join(word for word in re.split(r"[\W_]+", path.stem) if word)
        whole = Passage(": ".join(part for part in ("recording", name) if part), Place(start=0.0), modality="text")
        return document(
            "audio",
            path,
            passages + heard or [whole],
            title=told.tags.get("title", ""),
            metadata=_metadata(told, transcript),
            missing=tuple(missing),
        )


def _facts(path: Path, missing: list[str]) -> RecordingFacts:
    try:
        return facts(path)
    except MissingExtraError:
        missing.append("faster-whisper")
        return RecordingFacts(None)


def _once(missing: list[str], name: str) -> None:
    if name not in missing:
        missing.append(name)


def _metadata(told: RecordingFacts, transcript: Transcript | None) -> dict[str, str | int | float | None]:
    duration = transcript.duration if transcript is not None and transcript.duration else told.duration
    date = told.tags.get("date") or told.tags.get("creation_time") or ""
    return {
        "duration": round(duration, 2) if duration else None,
        "language": transcript.language if transcript is not None else None,
        "artist": told.tags.get("artist") or told.tags.get("album_artist"),
        "album": told.tags.get("album"),
        "genre": told.tags.get("genre"),
        "created": date if re.match(r"\d{4}-\d\d-\d\d", date) else None,
        "format": told.codec or None,
        "channels": told.channels or None,
    }


def spoken(transcript: Transcript) -> Iterator[Passage]:
    """Passages of what was said, each with the seconds of its first and last word."""
    words: list[Word] = []
    for utterance in transcript.utterances:
        words.extend(utterance.words or (Word(utterance.text, utterance.start, utterance.end),))
    for part in _thoughts(words):
        yield from (_passage(share, transcript.language) for share in _shares(part))


def _thoughts(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Words between long pauses. A crumb is joined to what follows it unless the break is very long."""
    part: list[Word] = []
    for word in words:
        if part:
            pause = word.start - part[-1].end
            if pause >= _BREAK or (pause >= LONG_PAUSE and _tokens(part) >= _TOO_SHORT):
                yield part
                part = []
        part.append(word)
    if part:
        yield part


def _shares(words: list[Word]) -> Iterator[list[Word]]:
    """Cut what is too long at its longest pauses, a sentence's end counting as a pause of its own."""
    sizes = [estimate_tokens(word.text + " ") for word in words]
    start, left = 0, sum(sizes)
    while left > _MAX_TOKENS:
        # The last share is not left as a crumb: of 320 tokens, two of 160.
        most = min(float(_MAX_TOKENS), left - _TOO_SHORT)
        size, best, longest, taken = 0.0, start + 1, -1.0, sizes[start]
        for i in range(start, len(words) - 1):
            size += sizes[i]
            if size > most:
                break
            silence = (
                words[i + 1].start - words[i].end + (0.5 if words[i].text.endswith((".", "?", "!", "。")) else 0.0)
            )
            if (size >= _MIN_TOKENS or i == start) and silence >= longest:
                best, longest, taken = i + 1, silence if size >= _MIN_TOKENS else -1.0, size
        yield words[start:best]
        start, left = best, left - taken
    yield words[start:]


def _tokens(words: Sequence[Word]) -> float:
    return sum(estimate_tokens(word.text + " ") for word in words)


def _passage(words: Sequence[Word], language: str) -> Passage:
    start, end = max(0.0, words[0].start), max(word.end for word in words)
    return Passage(join_words(words, language), Place(start=start, end=max(start, end)))


def audible(tags: Sequence[SoundTag]) -> Iterator[Passage]:
    """Passages of what is heard besides words. Of a very long recording the surest stretches are kept."""
    told = [tag for tag in tags if any(label.name not in _SPEECH for label in tag.labels)]
    if len(told) > _MOST_TAGS:
        surest = sorted(told, key=lambda tag: -tag.labels[0].score * (tag.end - tag.start))[:_MOST_TAGS]
        told = sorted(surest, key=lambda tag: tag.start)
    for tag in told:
        names = ", ".join(label.name for label in tag.labels)
        yield Passage(f"sound of {names}", Place(start=tag.start, end=tag.end), "audio", tuple(tag.labels))
