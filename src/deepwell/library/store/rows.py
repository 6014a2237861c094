"""What the store takes and gives: rows of its tables as records, ranked ids, and a scope.

Ids: ``content_id`` is 32 hexadecimal digits that name the bytes of a file *as read* (bytes, reader, version, and what
was missing); ``passage_id`` is ``{content_id}-{ordinal}``. The same id is therefore always the same words: rows of
passages are never changed, only added and, when no document needs them any more, deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from deepwell.library.records import Kind, Label, Modality, Passage, Place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

State = Literal["ok", "failed", "skipped"]
"""Of a document: read; could not be read; not of a kind that can be read."""

CONTENT_ID_LENGTH = 32


def content_id(file_hash: str, reader: str, version: int, missing: Sequence[str] = ()) -> str:
    """Name what a reader made of some bytes; read with fewer models at hand it is something else."""
    parts = "\0".join((file_hash, reader, str(version), *sorted(missing)))
    return hashlib.blake2b(parts.encode("utf-8", "surrogateescape"), digest_size=CONTENT_ID_LENGTH // 2).hexdigest()


def content_of(passage_id: str) -> str:
    """The content that a passage belongs to."""
    return passage_id[:CONTENT_ID_LENGTH]


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A row of the documents table: one file (or one text) that the library knows of.

    Attributes:
        path: As added, absolute; ``text:ID`` for texts. Names that are not UTF-8 hold surrogate escapes, as in
            ``os.fsdecode``; ``shown`` is the printable form.
        size, mtime_ns, inode: Of the file when it was read: one stat tells whether it may have changed.
        nested: The file lies on another disk than its root folder, so a missing one may be an unmounted disk.
        content_id: Its passages; empty when ``state`` is not ``ok``.
        file_hash: Of the bytes.
        missing: Models or extras that would have told more.
        failure, hint: Why it could not be read, and what to do.
        created: Seconds since 1970: the document's own date, else the file's modification time.
        added: Seconds since 1970.
    """

    document_id: str
    path: str
    kind: Kind
    title: str
    content_id: str
    size: int = 0
    mtime_ns: int = 0
    inode: int = 0
    nested: bool = False
    file_hash: str = ""
    reader: str = ""
    reader_version: int = 0
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    state: State = "ok"
    failure: str = ""
    hint: str = ""
    created: float = 0.0
    added: float = 0.0

    @property
    def shown(self) -> str:
        return printable(self.path)

    @property
    def is_text(self) -> bool:
        """Added by ``add_texts``: there is no file behind it."""
        return self.path.startswith("text:")


def printable(path: str) -> str:
    r"""A path that can be printed and stored as UTF-8: bytes that are not UTF-8 are written ``\xff``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class NewPassage:
    """A passage on its way into the store."""

    passage_id: str
    content_id: str
    ordinal: int
    passage: Passage


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A passage and what a hit tells about its document. ``modified`` is the file's time, seconds since 1970."""

    passage_id: str
    text: str
    place: Place
    modality: Modality
    labels: tuple[Label, ...]
    document_id: str
    path: str
    kind: Kind
    title: str
    metadata: Mapping[str, str | int | float]
    modified: float
    created: float
    ordinal: int = 0


def searchable(text: str, place: Place) -> str:
    """What full text and encoder see of a passage: its words, under those headings above it that it does not repeat.

    A long section is cut into several passages, and only the first begins with the heading; the others are about the
    same thing.
    """
    headings = [heading for heading in place.section if heading and heading not in text]
    return "\n".join([*headings, text])


@dataclass(frozen=True, slots=True)
class Ranked:
    """Passages found by one arm, best first.

    Attributes:
        ids: Passage ids [N], each once.
        scores: float32 [N], descending; BM25 for words, cosine for vectors.
    """

    ids: tuple[str, ...]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Scope:
    """The documents that may answer, and their contents. Every arm of a search takes it as a condition, not a wish."""

    documents: frozenset[str]
    contents: frozenset[str]
