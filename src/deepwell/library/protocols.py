"""The few seams of a library: what a reader, an encoder, the senses and a language model must offer.

Readers and encoders are found by entry point (groups ``deepwell.readers`` and ``deepwell.encoders``); the built-in ones
come through the same door. ``deepwell.testing`` has an in-memory fake for each protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from deepwell.library.records import Box, Document, Label


@dataclass(frozen=True, slots=True)
class OcrLine:
    """A line of text read from a picture: its words, where they stand, and how sure the reader is (0 to 1)."""

    text: str
    box: Box
    score: float


@dataclass(frozen=True, slots=True)
class Word:
    """A spoken word and when, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """Words spoken without a long pause, in seconds from the start of the recording."""

    text: str
    start: float
    end: float
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a recording, by whom is not told. ``language`` is an ISO 639-1 code."""

    utterances: tuple[Utterance, ...]
    language: str
    duration: float


@dataclass(frozen=True, slots=True)
class SoundTag:
    """What was heard between two seconds, best first."""

    start: float
    end: float
    labels: tuple[Label, ...]


class Senses(Protocol):
    """Pixels and samples to words, for readers.

    Each method raises ``MissingModelError`` or ``MissingExtraError`` when its model or package is not here; a reader
    then goes on without and names it in ``Document.missing``.
    """

    def ocr(self, image: Image) -> Sequence[OcrLine]:
        """Lines of text in reading order; empty when there are none."""
        ...

    def labels(self, image: Image) -> Sequence[Label]:
        """What the picture shows, best first."""
        ...

    def transcribe(self, path: Path) -> Transcript:
        """What is said in a recording."""
        ...

    def sounds(self, path: Path) -> Sequence[SoundTag]:
        """What else is heard in a recording: music, rain, a dog."""
        ...


@runtime_checkable
class Reader(Protocol):
    """A file to passages.

    Attributes:
        name: As in its entry point.
        version: Raised when the same bytes would give other passages; files read by an older version are read again.
        suffixes: Lower case with the dot. Signatures decide first: see ``accepts``.
        cost: ``fast`` files (a text layer) are read before ``slow`` ones (OCR, speech).
    """

    name: str
    version: int
    suffixes: frozenset[str]
    cost: Literal["fast", "slow"]

    def accepts(self, head: bytes, suffix: str) -> float:
        """How sure the reader is that it can read a file, from its first 4,096 bytes and suffix: 0 no, 1 certain."""
        ...

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is damaged, encrypted or too large."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Words to vectors.

    Attributes:
        name: As in the catalogue of models.
        fingerprint: Changes whenever vectors would: weights' hash, dimension, pooling, prompt, normalisation.
        dim: Numbers in a vector.
    """

    name: str
    fingerprint: str
    dim: int

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Unit vectors [N, dim] in the order of ``texts``. ``query`` adds the model's query prompt where it has one."""
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """A ``TextEncoder`` that knows how long texts are for it. It encodes the beginning of one that is too long.

    Attributes:
        max_tokens: Of a text, special tokens and the prompt of queries included.
    """

    max_tokens: int

    def count_tokens(self, texts: Sequence[str], *, query: bool = False) -> list[int]:
        """Tokens of each text as a whole; may be more than ``max_tokens``."""
        ...


@runtime_checkable
class ImageEncoder(Protocol):
    """Pictures to vectors. One that also satisfies ``TextEncoder`` has words and pictures in one space (SigLIP 2)."""

    name: str
    fingerprint: str
    dim: int

    def encode_images(self, images: Sequence[Path]) -> NDArray[np.float32]:
        """Unit vectors [N, dim] in the order of ``images``."""
        ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """A passage handed to a language model, under the number it is cited by. ``text`` is data, never instructions.

    Attributes:
        about: Its document's title and the headings above it, one a line.
        words: False when the text is a classifier's list of what a picture or a recording holds, not anybody's words.
    """

    n: int
    text: str
    path: str
    where: str
    score: float = 0.0
    about: str = ""
    words: bool = True


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. ``evidence`` repeats, as structure, what ``content`` quotes from the library."""

    role: Literal["system", "user", "assistant"]
    content: str
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a reply as it streams: of the answer, of the reasoning before it, or of both."""

    text: str = ""
    reasoning: str = ""


@runtime_checkable
class ChatModel(Protocol):
    """Messages in, tokens and reasoning out: the only door between a library and a language model."""

    name: str

    def chat(self, messages: Sequence[Message], *, max_tokens: int = 512, temperature: float = 0.0) -> Iterator[Delta]:
        """Stream a reply. Raises ``ChatError`` when the model cannot answer."""
        ...
