"""Vectors of a small library: one float32 matrix in memory, searched exactly.

Below about 50,000 passages a matrix product (0.3 ms for 10,000 x 384) beats any index, and finds the true neighbours.
Rows are only ever appended; a refresh fetches the commits it has not seen. Rows whose content is no longer live are
masked, and swept when they are the greater part.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deepwell.library.store.rows import Ranked, content_of
from deepwell.library.store.snapshot import ContentNumbers
from deepwell.library.store.tables import Tables, quoted

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


CANDIDATES = 400
"""What IVF_RQ takes for the nearest is looked at this far down for the true ten (benchmarks/latency.py)."""

PROBES = 40


def empty() -> Ranked:
    import numpy as np

    return Ranked((), np.zeros(0, dtype=np.float32))


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale to length 1; zero stays zero."""
    import numpy as np

    vector = np.asarray(vector, dtype=np.float32).reshape(-1)
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector


def to_numpy(column: pa.ChunkedArray, dim: int) -> NDArray[np.float32]:
    """A column of fixed-size lists as float32 [N, dim]."""
    import numpy as np

    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.zeros((0, dim), dtype=np.float32)
    return np.concatenate(chunks).astype(np.float32, copy=False).reshape(-1, dim)


class Matrix:
    """The vectors of one table, in memory. Reading threads share it; ``refresh`` is guarded."""

    def __init__(self, table: str, dim: int, numbers: ContentNumbers, dtype: str = "float32") -> None:
        import numpy as np

        self.table = table
        self.dim = dim
        self._numbers = numbers
        self._lock = threading.Lock()
        self._vectors: NDArray[Any] = np.zeros((0, dim), dtype=dtype)
        self._contents: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._mute: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._allowed: tuple[NDArray[np.bool_], int, NDArray[np.bool_] | None] | None = None
        self._batch = -1
        self._version = -1

    def __len__(self) -> int:
        return len(self._ids)

    def refresh(self, tables: Tables, version: int) -> None:
        """Fetch the rows committed since the last refresh."""
        import numpy as np

        with self._lock:
            if version == self._version:
                return
            new = tables.read(self.table, self._fetch)
            if new.num_rows:
                ids = new.column("passage_id").to_pylist()
                vectors = to_numpy(new.column("vector"), self.dim)
                start = len(self._ids)
                if start + len(ids) > len(self._vectors):
                    room = max(start + len(ids), int(1.5 * len(self._vectors)))
                    grown = np.zeros((room, self.dim), dtype=self._vectors.dtype)
                    grown[:start] = self._vectors[:start]
                    contents = np.zeros(room, dtype=np.int32)
                    contents[:start] = self._contents[:start]
                    mute = np.zeros(room, dtype=bool)
                    mute[:start] = self._mute[:start]
                    self._vectors, self._contents, self._mute = grown, contents, mute
                self._vectors[start : start + len(ids)] = vectors
                self._mute[start : start + len(ids)] = ~vectors.any(axis=1)
                self._contents[start : start + len(ids)] = self._numbers.numbers(map(content_of, ids))
                self._rows.update(zip(ids, range(start, start + len(ids)), strict=True))
                self._batch = max(new.column("batch").to_pylist())
                self._ids.extend(ids)  # last: a reader takes as many rows as there are ids
            self._version = version

    def _fetch(self, table: Any) -> pa.Table:
        query = table.search()
        if self._batch >= 0:
            query = query.where(f"batch > {self._batch}")
        return query.select(["passage_id", "vector", "batch"]).to_arrow()

    def mostly_dead(self, live: NDArray[np.bool_]) -> bool:
        rows = len(self._ids)
        return rows > 1000 and int(live[self._contents[:rows]].sum()) < rows // 2

    def nearest(self, vector: NDArray[np.float32], limit: int, allowed: NDArray[np.bool_] | None) -> Ranked:
        """The rows with the greatest cosine among those whose content is ``allowed`` (by its number)."""
        import numpy as np

        rows = len(self._ids)
        if rows == 0:
            return empty()
        scores = self._vectors[:rows] @ unit(vector)
        hidden = self._hidden(rows, allowed)
        if hidden is not None:
            scores[hidden] = -np.inf
        if limit < rows:
            best = np.argpartition(scores, rows - limit)[rows - limit :]
            best.sort()  # equal scores stay in the order in which they were stored
            best = best[np.argsort(-scores[best], kind="stable")]
        else:
            best = np.argsort(-scores, kind="stable")
        best = best[np.isfinite(scores[best]) & (scores[best] != 0)]  # a zero vector stands for: no meaning known
        return Ranked(tuple(self._ids[row] for row in best), scores[best].astype(np.float32))

    def _hidden(self, rows: int, allowed: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Which rows are not allowed, None when all are; remembered, since most searches allow the same."""
        if allowed is None:
            return None
        kept = self._allowed
        if kept is not None and kept[0] is allowed and kept[1] == rows:
            return kept[2]
        hidden = ~_at(allowed, self._contents[:rows])
        found = hidden if hidden.any() else None
        self._allowed = (allowed, rows, found)
        return found

    def vectors(self, passage_ids: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        if not len(self._ids):
            return np.full((len(passage_ids), self.dim), np.nan, dtype=np.float32)
        get = self._rows.get
        rows = np.fromiter((get(passage_id, -1) for passage_id in passage_ids), np.int64, len(passage_ids))
        found: NDArray[np.float32] = self._vectors[rows].astype(np.float32, copy=False)
        found[(rows < 0) | self._mute[rows]] = np.nan
        return found


def _at(allowed: NDArray[np.bool_], numbers: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Look numbers up; one given out after the mask was made is not allowed."""
    import numpy as np

    if len(numbers) and int(numbers.max()) >= len(allowed):
        padded = np.zeros(int(numbers.max()) + 1, dtype=bool)
        padded[: len(allowed)] = allowed
        allowed = padded
    return allowed[numbers]


def _without_zeros(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    vectors[~vectors.any(axis=1)] = np.nan
    return vectors


class Indexed:
    """The vectors of a large table, searched through Lance's IVF_RQ index and re-ranked by the true vectors."""

    def __init__(self, table: str, dim: int) -> None:
        self.table = table
        self.dim = dim

    def nearest(
        self, tables: Tables, vector: NDArray[np.float32], limit: int, where: str | None
    ) -> tuple[list[str], list[float]]:
        """Passage ids and cosines, best first. ``where`` is applied before the search."""
        rows = self._search(tables, vector, limit, where, refine=max(10, -(-CANDIDATES // limit)))
        distances = rows.column("_distance").to_pylist()
        return rows.column("passage_id").to_pylist(), [1.0 - distance for distance in distances]

    def candidates(self, tables: Tables, vector: NDArray[np.float32], limit: int, where: str | None) -> list[str]:
        """The passages that the index takes for the nearest, for who has their vectors at hand to tell which are."""
        ids: list[str] = self._search(tables, vector, limit, where).column("passage_id").to_pylist()
        return ids

    def _search(
        self, tables: Tables, vector: NDArray[np.float32], limit: int, where: str | None, refine: int = 0
    ) -> pa.Table:
        def query(table: Any) -> pa.Table:
            search = table.search(unit(vector), vector_column_name="vector").distance_type("cosine").nprobes(PROBES)
            if refine:
                search = search.refine_factor(refine)
            if where:
                search = search.where(where, prefilter=True)
            return search.select(["passage_id", "_distance"]).limit(limit).to_arrow()

        return tables.read(self.table, query)

    def vectors(self, tables: Tables, passage_ids: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        found = np.full((len(passage_ids), self.dim), np.nan, dtype=np.float32)
        if not passage_ids:
            return found
        where = f"passage_id IN ({quoted(passage_ids)})"
        rows = tables.read(
            self.table, lambda table: table.search().where(where).select(["passage_id", "vector"]).to_arrow()
        )
        ids = rows.column("passage_id").to_pylist()
        vectors = dict(zip(ids, to_numpy(rows.column("vector"), self.dim), strict=True))
        for place, passage_id in enumerate(passage_ids):
            if passage_id in vectors:
                found[place] = vectors[passage_id]
        return _without_zeros(found)
