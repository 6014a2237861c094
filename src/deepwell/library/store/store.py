"""A library on disk, for those who search it and the one who writes it.

Readers share one immutable view of a commit (``_View``): the manifest, the documents in memory, and the vectors. Each
call first asks whether anything was committed since, by this or another process, which costs a few directory listings;
only then is a new view made, and of the vectors only what is new is read. Calls that belong together are made within
``reading``: it asks once, and all of them see the same commit.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepwell.errors import LibraryDamagedError
from deepwell.library.records import FileFailure, Filters, SpaceStatus, Status
from deepwell.library.store import format as layout
from deepwell.library.store import words
from deepwell.library.store.format import MANIFEST, TABLES, Manifest, VectorTable
from deepwell.library.store.lock import current_writer, writer_lock
from deepwell.library.store.matrix import CANDIDATES, Indexed, Matrix, empty, unit
from deepwell.library.store.rows import Ranked, Scope, StoredDocument, StoredPassage, content_of, printable
from deepwell.library.store.shelf import Shelf, stored_passage
from deepwell.library.store.snapshot import ContentNumbers, Snapshot
from deepwell.library.store.tables import Tables, newest_version, quoted
from deepwell.library.store.writer import INDEX_VECTORS_FROM, Writer

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

Signature = tuple[object, ...]

GATHERED_UP_TO = 500_000
"""Vectors of an indexed table that are also kept in memory, as float16 (0.8 kB each), from the second call for vectors
by id on: reading a few hundred rows of a table at every search takes longer than all the rest of it."""


def _watched(manifest: Manifest) -> tuple[str, ...]:
    """The tables whose commits change what a search sees."""
    return ("documents", "passages", *(table.table for table in manifest.vectors))


@dataclass(frozen=True)
class _View:
    signature: Signature
    number: int
    manifest: Manifest
    snapshot: Snapshot
    numbers: ContentNumbers

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        return self.numbers.mask(self.snapshot.contents)

    @cached_property
    def _versions(self) -> dict[str, object]:
        return dict(zip(_watched(self.manifest), self.signature[-len(_watched(self.manifest)) :], strict=True))

    def version(self, table: str) -> int:
        """Of a table when the view was made. There may be a newer one by now."""
        version = self._versions[table]
        assert isinstance(version, int)
        return version


class Store:
    """A library's folder. Safe for reading from several threads; ``writing`` is for one writer at a time."""

    def __init__(self, folder: Path, *, index_vectors_from: int = INDEX_VECTORS_FROM) -> None:
        """Use ``Store.open``."""
        self.folder = folder
        self.index_vectors_from = index_vectors_from
        self.tables = Tables(folder / TABLES)
        self._numbers = ContentNumbers()
        self._lock = threading.RLock()
        self._view_now: _View | None = None
        self._pinned = threading.local()
        self._matrices: dict[str, Matrix] = {}
        self._swept: dict[str, int] = {}
        self._asked: set[str] = set()
        self._shelf = Shelf(self.tables)
        self._scopes: dict[Any, Scope] = {}
        self._spaces: tuple[int, tuple[SpaceStatus, ...]] | None = None

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Store:
        """Open a library.

        Args:
            path: The library's folder.
            create: Make the library when there is none yet.

        Raises:
            LibraryDamagedError: There is no library at ``path``, or it is from a newer version, or parts are missing.
        """
        folder = Path(path).expanduser().absolute()
        if create and not (folder / MANIFEST).exists():
            _create(folder)
        layout.read_manifest(folder)
        return cls(folder)

    def close(self) -> None:
        with self._lock:
            self.tables.close()
            self._matrices.clear()
            self._view_now = None

    # -- one view of a commit --------------------------------------------------------------------------------------

    def _manifest_stamp(self) -> Signature:
        try:
            stat = (self.folder / MANIFEST).stat()
        except FileNotFoundError:
            layout.read_manifest(self.folder)  # raises the proper error
            raise
        return (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def _signature(self, stamp: Signature, manifest: Manifest) -> Signature:
        return (*stamp, *(newest_version(self.tables.folder, name) for name in _watched(manifest)))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let this thread see one commit throughout the block."""
        outer = getattr(self._pinned, "view", None)
        self._pinned.view = outer or self._view()
        try:
            yield
        finally:
            self._pinned.view = outer

    def _view(self) -> _View:
        pinned: _View | None = getattr(self._pinned, "view", None)
        if pinned is not None:
            return pinned
        view = self._view_now
        if view is not None and view.signature == self._signature(self._manifest_stamp(), view.manifest):
            return view
        with self._lock:
            old = self._view_now
            # The signature is taken before the rows: what is read may be newer than it says, but never older.
            stamp = self._manifest_stamp()
            manifest = layout.read_manifest(self.folder)
            signature = self._signature(stamp, manifest)
            if old is not None and old.signature == signature:
                return old
            version = newest_version(self.tables.folder, "documents")
            if old is not None and old.snapshot.version == version:
                snapshot = old.snapshot
            else:
                snapshot = self.tables.read(
                    "documents", lambda table: Snapshot.from_table(version, table.search().to_arrow())
                )
            number = old.number + 1 if old else 1
            self._view_now = view = _View(signature, number, manifest, snapshot, self._numbers)
            self._scopes.clear()
            named = {table.table for table in manifest.vectors}
            for name in [name for name in self._matrices if name not in named]:
                del self._matrices[name]
            return view

    @property
    def generation(self) -> int:
        """Grows whenever anything a search can see was committed, by this process or another."""
        return self._view().number

    @property
    def manifest(self) -> Manifest:
        return self._view().manifest

    def replace_manifest(self, manifest: Manifest) -> None:
        """For the writer."""
        layout.write_manifest(self.folder, manifest)

    def snapshot(self) -> Snapshot:
        """All documents, as of now."""
        return self._view().snapshot

    # -- searching -------------------------------------------------------------------------------------------------

    def scope(self, filters: Filters) -> Scope | None:
        """The documents that may answer; None when all may."""
        if not filters:
            return None
        view = self._view()
        key = (filters.kinds, filters.path, filters.since, filters.until, tuple(sorted(filters.where.items())))
        scope = self._scopes.get(key)
        if scope is None:
            scope = view.snapshot.scope(filters)
            with self._lock:
                self._scopes[key] = scope
        return scope

    def named(self, words: Sequence[str]) -> list[tuple[str, str, str]]:
        """Content id, path and title of the files whose name or title holds one of the words, letter case ignored."""
        columns = self._view().snapshot.columns
        rows = self._view().snapshot.named(words)
        return [(columns.value("content_id", r), columns.value("path", r), columns.value("title", r)) for r in rows]

    def match(self, words_or_weights: str | Mapping[str, float], *, limit: int, within: Scope | None = None) -> Ranked:
        """Full text: the passages with the best BM25 scores for a query, or for words with weights."""
        return words.match(self.tables, words_or_weights, limit, self._allowed(self._view(), within))

    def nearest(self, space: str, vector: NDArray[np.float32], *, limit: int, within: Scope | None = None) -> Ranked:
        """The passages whose vectors [dim] by the active encoder have the greatest cosine with ``vector``."""
        view = self._view()
        table = view.manifest.active(space)
        if table is None or limit < 1 or (within is not None and not within.contents):
            return empty()
        if len(vector) != table.dim:
            raise ValueError(f"space {space!r} holds vectors of {table.dim} numbers, got {len(vector)}")
        if not table.trained:
            matrix = self._matrix(view, table)
            return matrix.nearest(vector, limit, self._mask(view, within))
        return self._nearest_indexed(view, table, vector, limit, within)

    def _nearest_indexed(
        self, view: _View, table: VectorTable, vector: NDArray[np.float32], limit: int, within: Scope | None
    ) -> Ranked:
        import numpy as np

        allowed = self._allowed(view, within)
        where = None
        if len(allowed) <= words.NARROW:
            where = f"content_id IN ({quoted(sorted(allowed))})"
        index = Indexed(table.table, table.dim)
        held = self._matrix(view, table) if table.table in self._matrices else None

        def fetch(count: int) -> tuple[list[str], list[float]]:
            if held is None:
                return index.nearest(self.tables, vector, count, where)
            ids = index.candidates(self.tables, vector, max(CANDIDATES, 2 * count), where)
            cosines = np.nan_to_num(held.vectors(ids) @ unit(vector), nan=-1.0)
            order = np.argsort(-cosines, kind="stable")[:count]
            return [ids[row] for row in order], cosines[order].tolist()

        ids, scores = words.widen(fetch, limit, allowed)
        return Ranked(tuple(ids), np.asarray(scores, dtype=np.float32))

    def vectors(self, space: str, passage_ids: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [N, dim] by the active encoder; rows of nan where there is none. [N, 0] without an encoder."""
        import numpy as np

        view = self._view()
        table = view.manifest.active(space)
        if table is None:
            return np.zeros((len(passage_ids), 0), dtype=np.float32)
        if not table.trained:
            return self._matrix(view, table).vectors(passage_ids)
        if table.trained <= GATHERED_UP_TO and (table.table in self._matrices or table.table in self._asked):
            return self._matrix(view, table).vectors(passage_ids)
        self._asked.add(table.table)
        return Indexed(table.table, table.dim).vectors(self.tables, passage_ids)

    def passages(self, passage_ids: Sequence[str], *, within: Scope | None = None) -> list[StoredPassage]:
        """Passages with their documents, in the order asked; those that are no longer live are left out.

        ``within`` chooses among documents that share the same bytes.
        """
        snapshot = self._view().snapshot
        rows = self._shelf.rows(passage_ids)
        found = (stored_passage(rows[key], snapshot, within) for key in passage_ids if key in rows)
        return [passage for passage in found if passage is not None]

    def _allowed(self, view: _View, within: Scope | None) -> frozenset[str]:
        live = view.snapshot.contents
        return live if within is None else within.contents & live

    def _mask(self, view: _View, within: Scope | None) -> NDArray[np.bool_]:
        return view.live if within is None else self._numbers.mask(self._allowed(view, within))

    def _matrix(self, view: _View, table: VectorTable) -> Matrix:
        with self._lock:
            matrix = self._matrices.get(table.table)
            checked = self._swept.get(table.table) == view.number
            if matrix is None or (not checked and matrix.mostly_dead(view.live)):
                # What is only looked up, and not multiplied, is kept as it is stored.
                dtype = "float16" if table.trained else "float32"
                matrix = self._matrices[table.table] = Matrix(table.table, table.dim, self._numbers, dtype)
            self._swept[table.table] = view.number
        matrix.refresh(self.tables, view.version(table.table))
        return matrix

    # -- the state of a library ------------------------------------------------------------------------------------

    def active_encoder(self, space: str) -> VectorTable | None:
        """Whose vectors answer in a space: its name (``encoder``) and the ``fingerprint`` a query's must have."""
        return self._view().manifest.active(space)

    def live_passages(self, columns: Sequence[str] = ("passage_id", "modality")) -> pa.Table:
        """Columns of all live passages, in the order they were stored."""
        import pyarrow as pa
        import pyarrow.compute as pc

        contents = self._view().snapshot.contents
        wanted = list(dict.fromkeys((*columns, "content_id")))
        rows = self.tables.read("passages", lambda table: table.search().select(wanted).to_arrow())
        keep = pc.is_in(rows.column("content_id"), value_set=pa.array(sorted(contents), pa.string()))
        return rows.filter(keep).select(list(columns))

    def image_contents(self) -> frozenset[str]:
        """Contents that are picture files, whose passages of modality ``image`` have a place in space ``image``."""
        columns = self._view().snapshot.columns
        return frozenset(c for c, kind in zip(columns["content_id"], columns["kind"], strict=True) if kind == "image")

    def wanted(self, space: str) -> list[str]:
        """The passages that should have a vector in a space."""
        rows = self.live_passages()
        ids: list[str] = rows.column("passage_id").to_pylist()
        if space != "image":
            return ids
        pictures = self.image_contents()
        pairs = zip(ids, rows.column("modality").to_pylist(), strict=True)
        return [key for key, modality in pairs if modality == "image" and content_of(key) in pictures]

    def spaces(self) -> tuple[SpaceStatus, ...]:
        """How far the vectors are, for each space and encoder."""
        view = self._view()
        if self._spaces is None or self._spaces[0] != view.number:
            self._spaces = (view.number, tuple(self._space(table) for table in view.manifest.vectors))
        return self._spaces[1]

    def _space(self, table: VectorTable) -> SpaceStatus:
        wanted = self.wanted(table.space)
        have = self.tables.read(table.table, lambda t: t.search().select(["passage_id"]).to_arrow())
        done = len(set(wanted).intersection(have.column("passage_id").to_pylist()))
        return SpaceStatus(table.space, table.encoder, table.fingerprint, table.active, done, len(wanted))

    def status(self) -> Status:
        """Counts, sizes, failures and who is writing."""
        view = self._view()
        snapshot = view.snapshot
        columns = snapshot.columns
        rows = [row for row, state in enumerate(columns["state"]) if state == "ok"]
        failed = tuple(
            FileFailure(columns["path"][row], columns["failure"][row], columns["hint"][row])
            for row, state in enumerate(columns["state"])
            if state == "failed"
        )
        sizes = [path.stat().st_size for path in self.folder.rglob("*") if path.is_file()]
        return Status(
            path=str(self.folder),
            documents=len(rows),
            passages=self.live_passages().num_rows,
            kinds=dict(Counter(columns["kind"][row] for row in rows).most_common()),
            roots=tuple(printable(root) for root in view.manifest.roots),
            spaces=self.spaces(),
            failed=failed,
            bytes_on_disk=sum(sizes),
            files_on_disk=len(sizes),
            writer=current_writer(self.folder),
        )

    def documents(self) -> tuple[StoredDocument, ...]:
        """Every document and every failed file."""
        return tuple(self.snapshot().documents())

    # -- writing ---------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, *, wait: float = 0.0, on_wait: Callable[[str], None] | None = None) -> Iterator[Writer]:
        """Hold the library for writing; on leaving, collect what is dead and tidy up.

        Args:
            wait: Seconds to wait for another writer; negative waits for ever.
            on_wait: Called with a line that names the other writer, before waiting.

        Raises:
            LibraryBusyError: Another process is still writing.
        """
        with writer_lock(self.folder, wait=wait, on_wait=on_wait):
            writer = Writer(self)
            yield writer
            writer.finish()


def _create(folder: Path) -> None:
    """Make an empty library. ``library.json`` is written last, so a killed creation is simply done again."""
    ours = {TABLES, "library.lock", "writer.json", MANIFEST}
    folder.mkdir(parents=True, exist_ok=True)
    foreign = [entry.name for entry in folder.iterdir() if entry.name not in ours and not entry.name.startswith(".")]
    if foreign:
        raise LibraryDamagedError(
            f"{folder} is not a library and not empty (it holds {printable(foreign[0])!r})",
            hint="Choose an empty or new folder for the library.",
        )
    with writer_lock(folder, wait=30):
        if (folder / MANIFEST).exists():
            return
        import uuid

        tables = Tables(folder / TABLES)
        tables.create("documents", layout.documents_schema())
        passages = tables.create("passages", layout.passages_schema())
        if not passages.list_indices():
            words.create_index(passages)
        tables.close()
        layout.write_manifest(folder, Manifest(id=uuid.uuid4().hex))
