"""A library on disk: ``library.json`` and the schemas of its Lance tables.

    library.json            format version, id, roots, and which encoder's vectors answer in each space
    library.lock            held by the one process that writes; writer.json says who
    tables/documents.lance  one row a file
    tables/passages.lance   one row a passage, with a full-text index on ``text``
    tables/vectors-SPACE-FINGERPRINT.lance    one table for each space and encoder

``library.json`` is replaced as a whole (write, fsync, rename), so a reader sees the old or the new one, never half.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepwell.errors import LibraryDamagedError
from deepwell.library.store.rows import printable

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
MANIFEST = "library.json"
TABLES = "tables"


@dataclass(frozen=True, slots=True)
class VectorTable:
    """The vectors of one encoder in one space. ``trained``: rows when its index was last built; 0 without an index."""

    space: str
    encoder: str
    fingerprint: str
    dim: int
    active: bool
    trained: int = 0

    @property
    def table(self) -> str:
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=6).hexdigest()
        return f"vectors-{self.space}-{digest}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``library.json`` says. ``excluded`` are paths below roots that were removed by hand and stay out."""

    id: str
    format: int = FORMAT_VERSION
    roots: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    vectors: tuple[VectorTable, ...] = field(default_factory=tuple)

    def active(self, space: str) -> VectorTable | None:
        return next((table for table in self.vectors if table.space == space and table.active), None)

    def find(self, space: str, fingerprint: str) -> VectorTable | None:
        return next((t for t in self.vectors if t.space == space and t.fingerprint == fingerprint), None)

    def having(self, table: VectorTable) -> Manifest:
        """With this table added or replaced."""
        others = tuple(t for t in self.vectors if (t.space, t.fingerprint) != (table.space, table.fingerprint))
        return replace(self, vectors=(*others, table))

    def switched_to(self, table: VectorTable) -> Manifest:
        """Only this table is left in its space, and it answers."""
        others = tuple(t for t in self.vectors if t.space != table.space)
        return replace(self, vectors=(*others, replace(table, active=True)))


def read_manifest(folder: Path) -> Manifest:
    """Raises ``LibraryDamagedError`` when the folder is not a library, or is from a newer version."""
    path = folder / MANIFEST
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
        manifest = Manifest(
            id=str(data["id"]),
            format=int(data["format"]),
            roots=_paths_from(data["roots"]),
            excluded=_paths_from(data["excluded"]),
            vectors=tuple(VectorTable(**table) for table in data["vectors"]),
        )
    except FileNotFoundError:
        raise LibraryDamagedError(
            f"{folder} is not a library: it has no {MANIFEST}", hint="Make one with: deepwell add FOLDER"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LibraryDamagedError(
            f"{path} cannot be read: {error}", hint="Restore it from a backup, or index anew into an empty folder."
        ) from None
    if manifest.format > FORMAT_VERSION:
        raise LibraryDamagedError(
            f"{folder} is a library of format {manifest.format}; this Deepwell reads up to {FORMAT_VERSION}",
            hint="Upgrade with: pip install -U deepwell",
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace ``library.json`` in one step."""
    data = asdict(manifest)
    # Hexadecimal, because a name need not be UTF-8; the readable form stands beside it for people.
    for name in ("roots", "excluded"):
        paths: tuple[str, ...] = getattr(manifest, name)
        data[name] = [os.fsencode(path).hex() for path in paths]
        data[f"{name}_shown"] = [printable(path) for path in paths]
    write_atomically(folder / MANIFEST, json.dumps(data, indent=2))


def _paths_from(values: list[str]) -> tuple[str, ...]:
    return tuple(os.fsdecode(bytes.fromhex(value)) for value in values)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that nobody ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def documents_schema() -> pa.Schema:
    import pyarrow as pa

    text, int64 = pa.string(), pa.int64()
    return pa.schema(
        [
            ("document_id", text),
            ("path", text),
            ("path_bytes", pa.binary()),  # only for names that are not UTF-8; null otherwise
            ("kind", text),
            ("title", text),
            ("content_id", text),
            ("size", int64),
            ("mtime_ns", int64),
            ("inode", pa.uint64()),
            ("nested", pa.bool_()),
            ("file_hash", text),
            ("reader", text),
            ("reader_version", int64),
            ("metadata", text),
            ("missing", text),
            ("state", text),
            ("failure", text),
            ("hint", text),
            ("created", pa.float64()),
            ("added", pa.float64()),
        ]
    )


def passages_schema() -> pa.Schema:
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        [
            ("passage_id", text),
            ("content_id", text),
            ("ordinal", pa.int64()),
            ("text", text),
            ("words", text),
            ("place", text),
            ("modality", text),
            ("labels", text),
            ("batch", pa.int64()),
        ]
    )


def vectors_schema(dim: int) -> pa.Schema:
    """``batch`` numbers the commits, so that a reader fetches only what is new to it."""
    import pyarrow as pa

    return pa.schema(
        [
            ("passage_id", pa.string()),
            ("content_id", pa.string()),
            ("vector", pa.list_(pa.float16(), dim)),
            ("batch", pa.int64()),
        ]
    )
