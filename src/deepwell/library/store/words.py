"""Full text: BM25 by Lance, under the liveness of documents and a scope.

The index holds dead passages until they are collected, and knows nothing of scopes. A narrow scope becomes a condition
that Lance applies before it ranks. A wide one is applied to the ranking, and the search is widened until enough
passages are found or there are no more: the same answer, since a passage's score does not depend on the others allowed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any

from deepwell.library.store.matrix import empty
from deepwell.library.store.rows import Ranked, content_of
from deepwell.library.store.tables import Tables, quoted

if TYPE_CHECKING:
    import pyarrow as pa

NARROW = 500
"""Contents up to which a scope is handed to Lance as a condition."""

COLUMN = "words"
"""The column that is searched: ``rows.searchable``."""

STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this"
    " to was will with".split()
)
"""Lucene's list: words that almost every English text holds."""

TOKENIZER: Mapping[str, Any] = {
    # icu finds words in Chinese and Japanese; stemming and stop words are English and leave other scripts alone.
    "base_tokenizer": "icu",
    "language": "English",
    "stem": True,
    "remove_stop_words": True,
    # Without a list of its own, Lance's icu tokenizer drops the stop words of every language it knows: cat, dog, sea.
    "custom_stop_words": sorted(STOP_WORDS),
    "ascii_folding": True,
    "lower_case": True,
    "with_position": False,  # positions have broken compaction (design.md), and nothing here asks for phrases
}


def create_index(table: Any) -> None:
    from lancedb.index import FTS

    table.create_index(COLUMN, config=FTS(**TOKENIZER))


def _query(words: str | Mapping[str, float]) -> Any:
    queries: Any = importlib.import_module("lancedb.query")
    match_query, occur = queries.MatchQuery, queries.Occur
    if isinstance(words, str):
        return match_query(words, COLUMN) if words.strip() else None
    clauses = [
        (occur.SHOULD, match_query(word, COLUMN, boost=float(weight)))
        for word, weight in words.items()
        if weight > 0 and word.strip()
    ]
    return queries.BooleanQuery(clauses) if clauses else None


def match(tables: Tables, words: str | Mapping[str, float], limit: int, allowed: Set[str]) -> Ranked:
    """Rank live passages by BM25.

    Args:
        tables: Of the library.
        words: A query as typed, or words with weights.
        limit: The most passages to return.
        allowed: Contents that may answer.
    """
    import numpy as np

    if not allowed or limit < 1:
        return empty()
    query = _query(words)
    if query is None:
        return empty()
    where = f"content_id IN ({quoted(sorted(allowed))})" if len(allowed) <= NARROW else None

    def fetch(count: int) -> tuple[list[str], list[float]]:
        def run(table: Any) -> pa.Table:
            search = table.search(query)
            if where:
                search = search.where(where, prefilter=True)
            return search.select(["passage_id", "_score"]).limit(count).to_arrow()

        rows = tables.read("passages", run)
        return rows.column("passage_id").to_pylist(), rows.column("_score").to_pylist()

    ids, scores = widen(fetch, limit, allowed)
    return Ranked(tuple(ids), np.asarray(scores, dtype=np.float32))


def widen(
    fetch: Callable[[int], tuple[list[str], list[float]]], limit: int, allowed: Set[str]
) -> tuple[list[str], list[float]]:
    """Fetch more and more until ``limit`` results are allowed or there are no more."""
    count = limit
    while True:
        ids, scores = fetch(count)
        kept = [(score, passage) for passage, score in zip(ids, scores, strict=True) if content_of(passage) in allowed]
        if len(kept) >= limit or len(ids) < count:
            kept.sort(key=lambda pair: (-pair[0], pair[1]))
            return [passage for _, passage in kept[:limit]], [score for score, _ in kept[:limit]]
        count *= 4
