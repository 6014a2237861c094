"""What a searching process keeps in memory for one generation of a library, and renews when the library changes.

The word index takes seconds to build for a large library, so it is built in the background, from the second search
on: a process that answers once never pays for it. Until it is ready, and above ``LARGEST`` passages, the store's own
full-text index answers (``pool.py``).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from deepwell.library.search.wordindex import WordIndex
from deepwell.library.store.rows import content_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deepwell.library.store import Scope, Store

LARGEST = 250_000
"""Passages up to which the word index is kept in memory; beyond, building it would keep a core busy for too long."""

SAMPLE = 512
"""Passages of a modality whose vectors stand for all of them."""

MODALITIES = ("text", "image", "audio")


@dataclass(frozen=True)
class Census:
    """Which passages there are.

    Attributes:
        ids: Live passage ids [N].
        modality: int8 [N], index into ``MODALITIES``.
    """

    generation: int
    ids: list[str]
    modality: NDArray[np.int8]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Passage id to its place in ``ids``."""
        return {passage_id: row for row, passage_id in enumerate(self.ids)}

    def count(self, modality: int) -> int:
        """Passages of a modality."""
        return int((self.modality == modality).sum())

    def sample(self, modality: int) -> list[str]:
        """Up to ``SAMPLE`` passages of a modality, evenly spread, the same ones each time."""
        rows = np.flatnonzero(self.modality == modality)
        if len(rows) > SAMPLE:
            rows = rows[np.linspace(0, len(rows) - 1, SAMPLE).astype(np.int64)]
        return [self.ids[row] for row in rows]


class Resident:
    """The memory of a ``Searcher``. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._thread: threading.Thread | None = None
        self._census: Census | None = None
        self._index: tuple[int, WordIndex] | None = None
        self._samples: dict[tuple[int, str, int], NDArray[np.float32]] = {}
        self._masks: tuple[WordIndex, frozenset[str], NDArray[np.bool_]] | None = None
        self._searches = 0

    def census(self, *, renew: bool = False) -> Census:
        """The passages of the library: as of now with ``renew``, else as of the last time that was asked."""
        census = self._census
        if census is not None and not renew:
            return census  # asking the store costs a few system calls, and a search asks often
        generation = self._store.generation
        if census is None or census.generation != generation:
            rows = self._store.live_passages(("passage_id", "modality"))
            kinds = {name: number for number, name in enumerate(MODALITIES)}
            modality = np.fromiter(
                (kinds[name] for name in rows.column("modality").to_pylist()), np.int8, rows.num_rows
            )
            census = self._census = Census(generation, rows.column("passage_id").to_pylist(), modality)
        return census

    def background(self, space: str, modality: int) -> NDArray[np.float32]:
        """Vectors [S, dim] of a sample of a modality's passages, as random company for a query."""
        census = self.census()
        key = (census.generation, space, modality)
        sample = self._samples.get(key)
        if sample is None:
            vectors = self._store.vectors(space, census.sample(modality))
            sample = vectors[np.isfinite(vectors).all(axis=1)] if vectors.shape[1] else vectors[:0]
            with self._lock:
                self._samples = {k: v for k, v in self._samples.items() if k[0] == census.generation}
                self._samples[key] = sample
        return sample

    def words(self) -> WordIndex | None:
        """The word index, if it is ready and up to date; else it is being built, or the library is too large."""
        generation = self.census().generation
        if self._index is not None and self._index[0] == generation:
            return self._index[1]
        with self._lock:
            self._searches += 1
            idle = self._thread is None or not self._thread.is_alive()
            if self._searches > 1 and idle and self.census().ids and len(self.census().ids) <= LARGEST:
                self._thread = threading.Thread(target=self.build, name="deepwell-word-index", daemon=True)
                self._thread.start()
        return None

    def build(self) -> WordIndex | None:
        """Bring the word index up to date now and return it; None when the library is too large for it."""
        with self._building:
            census = self.census(renew=True)
            if len(census.ids) > LARGEST:
                return None
            if self._index is not None and self._index[0] == census.generation:
                return self._index[1]
            old = self._index[1] if self._index else None
            rows = self._store.live_passages(("passage_id", "words"))
            ids, texts = rows.column("passage_id").to_pylist(), rows.column("words").to_pylist()
            if old is None:
                index = WordIndex.build(zip(ids, texts, strict=True))
            else:
                new = [(i, text) for i, text in zip(ids, texts, strict=True) if i not in old.rows]
                index = old.extended(new, ids)
            self._index = (census.generation, index)
            return index

    def mask(self, index: WordIndex, scope: Scope) -> NDArray[np.bool_]:
        """Which rows of the index a scope allows; the last scope's is remembered."""
        kept = self._masks
        if kept is not None and kept[0] is index and kept[1] == scope.contents:
            return kept[2]
        allowed = np.fromiter((content_of(i) in scope.contents for i in index.ids), dtype=bool, count=len(index.ids))
        self._masks = (index, scope.contents, allowed)
        return allowed

    def close(self) -> None:
        """Wait for the background thread, if there is one."""
        if self._thread is not None:
            self._thread.join()
