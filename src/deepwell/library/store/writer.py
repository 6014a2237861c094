"""The one writer of a library: puts rows, switches documents over in one commit, and keeps the house clean.

The order of commits is what makes ``kill -9`` harmless at any moment:

1. passages of new contents are appended (invisible: no document refers to them);
2. one merge on ``documents`` shows the new contents and hides the old;
3. vectors are appended in batches; what has none yet is computed from the tables, not remembered;
4. contents that no document refers to are deleted, vectors first, then passages, so that a kill in between leaves
   something that the next collection still finds.

Each step is one Lance commit, which happens wholly or not at all. Whatever an interrupted writer left is either
complete and invisible, or not named by any version and removed at the next cleaning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deepwell.library.records import Passage, to_json
from deepwell.library.store import format as layout
from deepwell.library.store import words
from deepwell.library.store.format import Manifest, VectorTable
from deepwell.library.store.rows import NewPassage, StoredDocument, content_of, searchable
from deepwell.library.store.snapshot import document_row
from deepwell.library.store.tables import Tables, newest_version, quoted

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from deepwell.library.store.store import Store

MOST_VERSIONS = 40
"""Commits to one table before it is compacted."""

TAIL = 1_000
"""Passages not yet in the full-text index, above which it is brought up to date. Lance reads that tail at each query
(85 ms for 1,000 passages); an update costs about 50 ms for each 1,000 passages in the whole index."""

INDEX_VECTORS_FROM = 50_000
"""Vectors from which a table gets an IVF_RQ index; below, a matrix in memory answers."""

_CHUNK = 500


class Writer:
    """Made by ``Store.writing``; not for use after that block."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables: Tables = store.tables
        contents = self._tables.read("passages", _contents)
        self._contents: set[str] = set(contents)
        self._tail = self._unindexed()
        self._indexed = len(contents) - self._tail

    # -- what a library holds ------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        return self._store.manifest

    def set_roots(self, roots: Iterable[str], *, excluded: Iterable[str] | None = None) -> None:
        """Remember which folders and files ``sync`` looks at, and (unless None) what it leaves out."""
        manifest = self.manifest
        new = replace(manifest, roots=tuple(sorted(set(roots))))
        if excluded is not None:
            new = replace(new, excluded=tuple(sorted(set(excluded))))
        if new != manifest:
            self._store.replace_manifest(new)

    def has_content(self, content: str) -> bool:
        """Its passages are stored, whether or not a document refers to them."""
        return content in self._contents

    def put(self, documents: Sequence[StoredDocument], passages: Sequence[NewPassage] = ()) -> int:
        """Add or replace documents by id, in one commit, after the passages they refer to. Returns passages written.

        All passages of one content must come in the same call.
        """
        # Files with the same bytes in one batch bring the same passages: each id is kept once.
        distinct = {passage.passage_id: passage for passage in passages}.values()
        new = [passage for passage in distinct if passage.content_id not in self._contents]
        if new:
            self._tables.get("passages").add(_passages_table(new, self._next_batch("passages")))
            self._contents.update(passage.content_id for passage in new)
            self._tail += len(new)
        if documents:
            import pyarrow as pa

            rows = pa.Table.from_pylist([document_row(d) for d in documents], schema=layout.documents_schema())
            merge = self._tables.get("documents").merge_insert("document_id")
            merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
        self._keep_house()
        return len(new)

    def remove(self, document_ids: Sequence[str]) -> None:
        """Forget documents, in one commit."""
        if document_ids:
            self._tables.get("documents").delete(f"document_id IN ({quoted(document_ids)})")
            self._keep_house()

    # -- vectors -------------------------------------------------------------------------------------------------

    def vector_table(self, space: str, encoder: str, fingerprint: str, dim: int) -> VectorTable:
        """The table for an encoder's vectors, made if need be. The first one of a space answers at once."""
        table = self.manifest.find(space, fingerprint)
        if table is None:
            first = self.manifest.active(space) is None
            table = VectorTable(space, encoder, fingerprint, dim, active=first)
        if not self._tables.exists(table.table):
            self._tables.create(table.table, layout.vectors_schema(dim))
        if self.manifest.find(space, fingerprint) is None:
            self._store.replace_manifest(self.manifest.having(table))
        return table

    def without_vector(self, table: VectorTable, passage_ids: Iterable[str]) -> list[str]:
        """Those of the passages that have no vector yet, in order."""
        done = set(self._tables.read(table.table, lambda t: _column(t, "passage_id")))
        return [passage_id for passage_id in passage_ids if passage_id not in done]

    def put_vectors(self, table: VectorTable, passage_ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Append vectors [N, dim] of passages that have none yet."""
        import numpy as np
        import pyarrow as pa

        if vectors.shape != (len(passage_ids), table.dim):
            raise ValueError(f"expected vectors [{len(passage_ids)}, {table.dim}], got {list(vectors.shape)}")
        flat = pa.array(np.nan_to_num(np.asarray(vectors, dtype=np.float32)).astype(np.float16).ravel())
        batch = self._next_batch(table.table)
        rows = pa.table(
            [
                pa.array(passage_ids, pa.string()),
                pa.array(map(content_of, passage_ids), pa.string()),
                pa.FixedSizeListArray.from_arrays(flat, table.dim),
                pa.array([batch] * len(passage_ids), pa.int64()),
            ],
            schema=layout.vectors_schema(table.dim),
        )
        self._tables.get(table.table).add(rows)
        self._keep_house()

    def switch(self, table: VectorTable) -> None:
        """Let this table answer in its space from now on, and drop the others. The switch is one rename."""
        old = [other for other in self.manifest.vectors if other.space == table.space and other.table != table.table]
        if old or not table.active:
            newest = self.manifest.find(table.space, table.fingerprint) or table
            self._store.replace_manifest(self.manifest.switched_to(newest))
        self._drop_stray_tables()

    def _drop_stray_tables(self) -> None:
        named = {table.table for table in self.manifest.vectors}
        for folder in self._tables.folder.glob("vectors-*.lance"):
            if folder.stem not in named:
                self._tables.drop(folder.stem)

    # -- housekeeping --------------------------------------------------------------------------------------------

    def _next_batch(self, table: str) -> int:
        # Versions grow with each commit and survive compaction, so they number batches without being remembered.
        return newest_version(self._tables.folder, table) + 1

    def _unindexed(self) -> int:
        stats = self._tables.read("passages", lambda table: table.index_stats(f"{words.COLUMN}_idx"))
        return int(stats.num_unindexed_rows) if stats is not None else 0

    def _versions(self, table: str) -> int:
        return sum(1 for _ in (self._tables.folder / f"{table}.lance" / "_versions").glob("*.manifest"))

    def _keep_house(self) -> None:
        if self._tail > max(TAIL, min(self._indexed // 10, 5 * TAIL)) or self._versions("passages") > MOST_VERSIONS:
            self._optimize_passages()
        for table in ("documents", *(table.table for table in self.manifest.vectors)):
            if self._tables.exists(table) and self._versions(table) > MOST_VERSIONS:
                self._tables.optimize(table)

    def _optimize_passages(self) -> None:
        self._tables.optimize("passages")
        self._indexed += self._tail
        self._tail = 0

    def collect(self) -> int:
        """Delete passages and vectors that no document refers to. Returns how many contents went."""
        live = self._store.snapshot().contents
        dead = sorted(self._contents - live)
        for start in range(0, len(dead), _CHUNK):
            chunk = dead[start : start + _CHUNK]
            for table in self.manifest.vectors:
                self._tables.get(table.table).delete(f"content_id IN ({quoted(chunk)})")
            self._tables.get("passages").delete(f"content_id IN ({quoted(chunk)})")
            self._contents.difference_update(chunk)
        return len(dead)

    def finish(self) -> None:
        """Collect what is dead and leave few files, one version of each table, and indexes up to date."""
        self._drop_stray_tables()
        self.collect()
        if (
            self._tail > min(TAIL // 4, max(16, self._indexed // 100))
            or self._versions("passages") > MOST_VERSIONS // 2
        ):
            self._optimize_passages()
        if self._versions("documents") > MOST_VERSIONS // 2:
            self._tables.optimize("documents")
        for table in self.manifest.vectors:
            self._index_vectors(table)
            if self._versions(table.table) > MOST_VERSIONS // 2:
                self._tables.optimize(table.table)

    def _index_vectors(self, table: VectorTable) -> None:
        """Train an index when a table has grown large, and again when it is four times as large."""
        rows = self._tables.read(table.table, lambda t: t.count_rows())
        if rows < self._store.index_vectors_from or rows < 4 * table.trained:
            if table.trained:
                self._tables.optimize(table.table)
            return
        from lancedb.index import IvfRq

        self._tables.optimize(table.table)
        self._tables.get(table.table).create_index("vector", config=IvfRq(distance_type="cosine"))
        self._store.replace_manifest(self.manifest.having(replace(table, trained=rows)))


def _column(table: Any, name: str) -> list[str]:
    values: list[str] = table.search().select([name]).to_arrow().column(name).to_pylist()
    return values


def _contents(table: Any) -> list[str]:
    return _column(table, "content_id")


def _passages_table(passages: Sequence[NewPassage], batch: int) -> pa.Table:
    import pyarrow as pa

    rows = [
        {
            "passage_id": new.passage_id,
            "content_id": new.content_id,
            "ordinal": new.ordinal,
            "text": _clean(new.passage.text),
            "words": _clean(searchable(new.passage.text, new.passage.place)),
            "place": place_json(new.passage),
            "modality": new.passage.modality,
            "labels": json.dumps([[label.name, float(label.score)] for label in new.passage.labels]),
            "batch": batch,
        }
        for new in passages
    ]
    return pa.Table.from_pylist(rows, schema=layout.passages_schema())


def _clean(text: str) -> str:
    """Words that Arrow can hold: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode()


def place_json(passage: Passage) -> str:
    """The place, without what is empty."""
    return json.dumps({key: value for key, value in to_json(passage.place).items() if value not in (None, [])})


def new_passages(content: str, passages: Sequence[Passage]) -> list[NewPassage]:
    """Number the passages of a content."""
    return [NewPassage(f"{content}-{n}", content, n, passage) for n, passage in enumerate(passages)]
