"""A store in memory with the methods that search uses, and a searcher over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deepwell.library.records import Filters, Kind, Modality, Place, SpaceStatus
from deepwell.library.search import Searcher
from deepwell.library.search.tokens import terms as terms_of
from deepwell.library.search.wordindex import WordIndex
from deepwell.library.store.rows import Ranked, Scope, StoredPassage, content_of, searchable
from deepwell.testing import HashEncoder


@dataclass
class MemoryStore:
    """``Store``, with lists instead of tables. ``match`` is asked how often? ``matched`` counts."""

    rows: list[StoredPassage] = field(default_factory=list)
    space_vectors: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    generation: int = 1
    matched: int = 0
    _index: tuple[int, WordIndex] | None = None

    def put(
        self, content: int, texts: Sequence[str], *, path: str = "", kind: Kind = "text", modality: Modality = "text"
    ) -> list[str]:
        ids = []
        for ordinal, text in enumerate(texts):
            name = f"{content:032x}"
            ids.append(f"{name}-{ordinal}")
            place = path or f"/f/{content}.txt"
            document = (f"d{content}", place, kind, f"t{content}", {}, 0.0, 0.0, ordinal)
            self.rows.append(StoredPassage(ids[-1], text, Place(), modality, (), *document))
        self.generation += 1
        return ids

    def remove(self, content: int) -> None:
        self.rows = [r for r in self.rows if content_of(r.passage_id) != f"{content:032x}"]
        self.generation += 1

    def encode(self, encoder: Any, space: str = "text") -> None:
        vectors = encoder.encode([r.text for r in self.rows])
        self.space_vectors[space] = {r.passage_id: v for r, v in zip(self.rows, vectors, strict=True)}
        self.generation += 1

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()

    def scope(self, filters: Filters) -> Scope | None:
        if not filters:
            return None
        keep = [
            r
            for r in self.rows
            if (not filters.kinds or r.kind in filters.kinds) and (not filters.path or fnmatch(r.path, filters.path))
        ]
        return Scope(frozenset(r.document_id for r in keep), frozenset(content_of(r.passage_id) for r in keep))

    def _allowed(self, passage_id: str, within: Scope | None) -> bool:
        return within is None or content_of(passage_id) in within.contents

    def match(self, words: str | Mapping[str, float], *, limit: int, within: Scope | None = None) -> Ranked:
        self.matched += 1
        if self._index is None or self._index[0] != self.generation:
            self._index = (self.generation, WordIndex.build((r.passage_id, r.text) for r in self.rows))
        index = self._index[1]
        weights: dict[str, float] = {}
        for term in terms_of(words) if isinstance(words, str) else words:
            weights[term] = weights.get(term, 0.0) + 1.0
        scores = index.scores(weights)
        order = [r for r in np.argsort(-scores, kind="stable") if scores[r] > 0 and self._allowed(index.ids[r], within)]
        return Ranked(tuple(index.ids[r] for r in order[:limit]), scores[order[:limit]])

    def named(self, words: Sequence[str]) -> list[tuple[str, str, str]]:
        found = {content_of(r.passage_id): (r.path, r.title) for r in self.rows if not r.path.startswith("text:")}
        held = [(c, path, title) for c, (path, title) in found.items()]
        return [
            row for row in held if any(w.lower() in f"{row[1].rpartition('/')[2]}\n{row[2]}".lower() for w in words)
        ]

    def nearest(self, space: str, vector: np.ndarray, *, limit: int, within: Scope | None = None) -> Ranked:
        kept = [(i, v) for i, v in self.space_vectors.get(space, {}).items() if self._allowed(i, within)]
        live = {r.passage_id for r in self.rows}
        kept = [(i, v) for i, v in kept if i in live]
        scores = np.asarray([v @ vector for _, v in kept], dtype=np.float32)
        order = np.argsort(-scores, kind="stable")[:limit]
        return Ranked(tuple(kept[r][0] for r in order), scores[order])

    def vectors(self, space: str, passage_ids: Sequence[str]) -> np.ndarray:
        have = self.space_vectors.get(space, {})
        dim = len(next(iter(have.values()))) if have else 0
        return np.asarray([have.get(i, np.full(dim, np.nan)) for i in passage_ids], np.float32).reshape(-1, dim)

    def passages(self, passage_ids: Sequence[str], *, within: Scope | None = None) -> list[StoredPassage]:
        by_id = {r.passage_id: r for r in self.rows}
        return [by_id[i] for i in passage_ids if i in by_id]

    def live_passages(self, columns: Sequence[str] = ("passage_id", "modality")) -> pa.Table:
        held = {"words": lambda r: searchable(r.text, r.place)}
        return pa.table(
            {
                name: pa.array([held[name](r) if name in held else getattr(r, name) for r in self.rows], pa.string())
                for name in columns
            }
        )

    def active_encoder(self, space: str) -> Any:
        have = self.space_vectors.get(space)
        return SimpleNamespace(encoder="hash", fingerprint="f", dim=len(next(iter(have.values())))) if have else None

    def spaces(self) -> tuple[SpaceStatus, ...]:
        return tuple(SpaceStatus(s, "hash", "f", True, len(v), len(self.rows)) for s, v in self.space_vectors.items())

    def retitle(self, document_id: str, **changes: Any) -> None:
        self.rows = [replace(r, **changes) if r.document_id == document_id else r for r in self.rows]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def encoder() -> HashEncoder:
    return HashEncoder()


@pytest.fixture
def searcher(store: MemoryStore, encoder: HashEncoder) -> Any:
    made: list[Searcher] = []

    def make(**options: Any) -> Searcher:
        options.setdefault("text_encoder", lambda: encoder)
        made.append(Searcher(store, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[..., Searcher]
