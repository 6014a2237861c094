"""In-memory fakes, one for each protocol of a library, for tests here and in plug-ins.

They satisfy the protocols of ``deepwell.library.protocols`` fully and behave like the real thing where a caller can
tell: vectors are unit length and similar for texts that share words, a reader cuts text at blank lines, a chat model
streams. They are deterministic, need no files, no models and no network, and count what was asked of them.

    >>> import numpy as np
    >>> encoder = HashEncoder()
    >>> cat, also_cat, engine = encoder.encode(["a cat sleeps", "the cat sleeps", "diesel engine"])
    >>> bool(cat @ also_cat > cat @ engine)
    True
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from deepwell.errors import MissingModelError, UnreadableFileError
from deepwell.library.protocols import Delta, Message, OcrLine, SoundTag, Transcript
from deepwell.library.records import Document, Label, Passage, Place

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

_T = TypeVar("_T")

__all__ = ["FakeReader", "FakeSenses", "HashEncoder", "HashImageEncoder", "ScriptedChat"]


@dataclass
class HashEncoder:
    """A ``TextEncoder``: each word is hashed to a random direction, a text is the sum of its words, normalised.

    Attributes:
        seed: Another seed is another encoder with another fingerprint, for tests of switching.
        encoded: How many texts were encoded so far.
    """

    name: str = "hash-encoder"
    dim: int = 64
    seed: int = 0
    encoded: int = 0

    @property
    def fingerprint(self) -> str:
        return f"{self.name}-{self.dim}-{self.seed}"

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Unit vectors [N, dim]; ``query`` changes nothing. A text without words is a fixed direction."""
        del query
        self.encoded += len(texts)
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()) or [""]:
                row += self._direction(word)
            row /= np.linalg.norm(row)
        return rows

    def _direction(self, word: str) -> NDArray[np.float32]:
        key = zlib.crc32(word.encode("utf-8", "surrogatepass"), self.seed)
        return np.random.default_rng(key).standard_normal(self.dim).astype(np.float32)


@dataclass
class HashImageEncoder:
    """An ``ImageEncoder`` whose vectors depend on a file's bytes only: equal pictures have cosine 1."""

    name: str = "hash-images"
    dim: int = 32
    seed: int = 0
    encoded: int = 0

    @property
    def fingerprint(self) -> str:
        return f"{self.name}-{self.dim}-{self.seed}"

    def encode_images(self, images: Sequence[Path]) -> NDArray[np.float32]:
        """Unit vectors [N, dim]."""
        self.encoded += len(images)
        rows = np.empty((len(images), self.dim), dtype=np.float32)
        for row, image in zip(rows, images, strict=True):
            key = zlib.crc32(Path(image).read_bytes(), self.seed)
            row[:] = np.random.default_rng(key).standard_normal(self.dim)
            row /= np.linalg.norm(row)
        return rows


@dataclass
class FakeReader:
    """A ``Reader`` of UTF-8 text: one passage a paragraph. A file that begins with ``BROKEN`` cannot be read."""

    name: str = "fake"
    version: int = 1
    suffixes: frozenset[str] = frozenset({".txt"})
    cost: Literal["fast", "slow"] = "fast"
    read_paths: list[Path] = field(default_factory=list)

    def accepts(self, head: bytes, suffix: str) -> float:
        """1 for its suffixes, else 0."""
        del head
        return 1.0 if suffix in self.suffixes else 0.0

    def read(self, path: Path, senses: object) -> Document:
        """Read one file; raises ``UnreadableFileError`` for a broken one."""
        del senses
        self.read_paths.append(path)
        text = path.read_text(encoding="utf-8")
        if text.startswith("BROKEN"):
            raise UnreadableFileError(f"{path} is broken", hint="Mend it.")
        passages, line = [], 1
        for block in re.split(r"(\n\s*\n)", text):
            height = block.count("\n")
            if block.strip():
                passages.append(Passage(block.strip(), Place(lines=(line, line + height))))
            line += height
        return Document("text", path.stem, tuple(passages))


@dataclass
class FakeSenses:
    """``Senses`` that perceive what they were told to. A sense that was given nothing is a missing model."""

    lines: Sequence[OcrLine] | None = None
    seen: Sequence[Label] | None = None
    transcript: Transcript | None = None
    heard: Sequence[SoundTag] | None = None

    def ocr(self, image: Image) -> Sequence[OcrLine]:
        """The lines given."""
        del image
        return _present(self.lines, "fake-ocr")

    def labels(self, image: Image) -> Sequence[Label]:
        """The labels given."""
        del image
        return _present(self.seen, "fake-labels")

    def transcribe(self, path: Path) -> Transcript:
        """The transcript given."""
        del path
        return _present(self.transcript, "fake-speech")

    def sounds(self, path: Path) -> Sequence[SoundTag]:
        """The sounds given."""
        del path
        return _present(self.heard, "fake-sounds")


def _present(value: _T | None, name: str) -> _T:
    if value is None:
        raise MissingModelError(f"model {name} is not on this machine", hint=f"Run: deepwell models pull {name}")
    return value


@dataclass
class ScriptedChat:
    """A ``ChatModel`` that gives prepared replies in turn, a few characters at a time, and keeps what it was asked.

    Each reply is the answer's text, or a pair of reasoning and text. The last one is repeated for ever.
    """

    replies: Sequence[str | tuple[str, str]]
    name: str = "scripted"
    chunk: int = 7
    asked: list[tuple[Message, ...]] = field(default_factory=list)

    def chat(self, messages: Sequence[Message], *, max_tokens: int = 512, temperature: float = 0.0) -> Iterator[Delta]:
        """Stream the next reply; ``max_tokens`` and ``temperature`` change nothing."""
        del max_tokens, temperature
        reply = self.replies[min(len(self.asked), len(self.replies) - 1)]
        self.asked.append(tuple(messages))
        reasoning, text = reply if isinstance(reply, tuple) else ("", reply)
        for start in range(0, len(reasoning), self.chunk):
            yield Delta(reasoning=reasoning[start : start + self.chunk])
        for start in range(0, len(text), self.chunk):
            yield Delta(text=text[start : start + self.chunk])
