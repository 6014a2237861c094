"""Rows from what was read: files, and texts without a file, whose path is ``text:ID``."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from deepwell.errors import UsageError
from deepwell.library.records import Document, Passage
from deepwell.library.store import NewPassage, StoredDocument, content_id, new_passages

READER = "add_texts"
VERSION = 1

Cutter = Callable[[str], Sequence[str]]
Metadata = Mapping[str, str | int | float]


def _default_cutter() -> Cutter:
    from deepwell.library.readers.passages import cut_text

    return cut_text


def hash_text(text: str) -> str:
    """BLAKE2b of a text, 32 hexadecimal digits; the default id."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def check_texts(
    texts: Sequence[str], ids: Sequence[str] | None, metadata: Sequence[Metadata] | None
) -> tuple[list[str], list[Metadata]]:
    """Ids and metadata, one for each text. Raises ``UsageError`` for wrong numbers, empty ids or an id given twice."""
    if isinstance(texts, str):
        raise UsageError("texts is one string", hint="Give a list of texts.")
    for name, values in (("ids", ids), ("metadata", metadata)):
        if values is not None and len(values) != len(texts):
            raise UsageError(f"{len(texts)} texts but {len(values)} {name}", hint=f"Give one of {name} for each text.")
    names = [hash_text(text) for text in texts] if ids is None else [str(name) for name in ids]
    if not all(names):
        raise UsageError("an id is empty")
    if ids is not None and len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"the id {twice!r} is given twice")
    return names, list(metadata) if metadata is not None else [{} for _ in texts]


def text_document(
    text: str, name: str, metadata: Metadata, before: StoredDocument | None, cut: Cutter | None = None
) -> tuple[StoredDocument, list[NewPassage]] | None:
    """A text as a document and its passages; None when the library holds it just so."""
    file_hash = hash_text(text)
    content = content_id(file_hash, READER, VERSION)
    plain = json.loads(json.dumps(dict(metadata)))
    if before is not None and before.content_id == content and dict(before.metadata) == plain:
        return None
    now = time.time()
    pieces = (cut or _default_cutter())(text) if text.strip() else []
    document = StoredDocument(
        document_id=before.document_id if before else uuid.uuid4().hex,
        path=f"text:{name}",
        kind="text",
        title=str(metadata.get("title", "")) or name,
        content_id=content,
        size=len(text.encode("utf-8", "surrogatepass")),
        mtime_ns=int(now * 1e9),
        file_hash=file_hash,
        reader=READER,
        reader_version=VERSION,
        metadata=plain,
        created=created(metadata, now),
        added=before.added if before else now,
    )
    return document, new_passages(content, [Passage(piece) for piece in pieces])


def created(metadata: Metadata, fallback: float) -> float:
    """A document's own date (metadata ``created``, ISO 8601) in seconds since 1970, else ``fallback``."""
    value = metadata.get("created")
    if isinstance(value, int | float):
        return float(value)
    if value:
        try:
            return datetime.fromisoformat(str(value)).timestamp()
        except (ValueError, OverflowError, OSError):
            pass
    return fallback


def file_document(
    path: str,
    read: Document,
    *,
    file_hash: str,
    reader: str,
    version: int,
    stat: tuple[int, int, int, bool],
    before: StoredDocument | None,
) -> tuple[StoredDocument, list[NewPassage]]:
    """A file that was read as a document and its passages. ``stat`` is size, mtime_ns, inode, nested."""
    size, mtime_ns, inode, nested = stat
    content = content_id(file_hash, reader, version, read.missing)
    document = StoredDocument(
        document_id=before.document_id if before else uuid.uuid4().hex,
        path=path,
        kind=read.kind,
        title=read.title,
        content_id=content,
        size=size,
        mtime_ns=mtime_ns,
        inode=inode,
        nested=nested,
        file_hash=file_hash,
        reader=reader,
        reader_version=version,
        metadata=read.metadata,
        missing=read.missing,
        created=created(read.metadata, mtime_ns / 1e9),
        added=before.added if before else time.time(),
    )
    return document, new_passages(content, read.passages)
