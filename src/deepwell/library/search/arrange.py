"""From scored passages to a page of hits.

A long document that fits the query has many passages that fit; ten of them would hide every other document. At most
``PER_DOCUMENT`` of one document stand before passages of others; the rest follow if there is room. A passage's score is
its own; whether its neighbours' evidence should lift it has not been measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepwell.library.records import Hit, Query

if TYPE_CHECKING:
    from deepwell.library.store import Scope, Store, StoredPassage

PER_DOCUMENT = 3


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate after fusion: its score, each arm's share (0 to 1) and each arm's own score (BM25, cosine)."""

    passage_id: str
    score: float
    shares: Mapping[str, float]
    raw: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Passage ids, best first, and what is known of each; few of them become hits, so it is told when asked for."""

    ids: Sequence[str]
    explain: Callable[[str], Scored] | None


def arrange(store: Store, ranked: Ranking, query: Query, scope: Scope | None) -> tuple[Hit, ...]:
    """Fetch the best passages and lay them out as hits."""
    first: list[StoredPassage] = []
    later: list[StoredPassage] = []
    seen: dict[str, int] = {}
    narrow = scope is not None and len(scope.documents) == 1
    wanted = ranked.ids
    step = query.limit + 2
    for start in range(0, len(wanted), step):
        for passage in store.passages(wanted[start : start + step], within=scope):
            count = seen[passage.document_id] = seen.get(passage.document_id, 0) + 1
            (first if narrow or count <= PER_DOCUMENT else later).append(passage)
        if len(first) >= query.limit:
            break
    if ranked.explain is None:
        return ()
    return tuple(_hit(passage, ranked.explain(passage.passage_id)) for passage in [*first, *later][: query.limit])


def _hit(passage: StoredPassage, item: Scored) -> Hit:
    return Hit(
        document_id=passage.document_id,
        passage_id=passage.passage_id,
        path=passage.path,
        kind=passage.kind,
        text=passage.text,
        place=passage.place,
        score=item.score,
        why=item.shares,
        title=passage.title,
        metadata=passage.metadata,
    )
