"""Ranking quality on public test collections, beside bm25s, txtai and the usual ways to fuse.

    python benchmarks/retrieval.py [--collections cranfield cisi cacm] [--peers/--no-peers] [--keep FOLDER]

Each collection is added to a library of its own through ``Library.add_texts``, so passages are cut as a user's would
be; a document's rank is that of its best passage. Prints nDCG@10 and recall@100 (ir_measures) of

- words: the library without an encoder; vectors: the encoder alone;
- deepwell: ``Library.search``, nDCG and time from a page of 30 hits as a user asks for it (a document has at most
  three hits on a page, so these are ten documents or more), recall from a long page; and the same without feedback;
- min-max and RRF: the same two lists of passages, fused half and half by scores brought to 0..1, or by reciprocal rank;
- bm25s on whole documents; txtai's hybrid index on whole documents with the same encoder weights.

Needs the data sets (``DEEPWELL_DATA``) and the text encoder (``deepwell models pull starter``); says so and exits 0
when they are absent. ``--keep`` keeps libraries and txtai's indexes between runs, since encoding takes nearly all of
the time; a run that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from deepwell import Library
from deepwell.errors import DeepwellError
from deepwell.library.records import Query
from deepwell.library.search import Searcher
from deepwell.paths import default_data

Run = Callable[[str], list[str]]
DEPTH = 100
PAGE = 30
SYSTEMS = ("bm25s", "txtai hybrid", "words", "deepwell", "deepwell without feedback")
"""What answers a query by itself, so that its time means something; the others share the arms' lists."""


class Collection:
    """Documents, queries and judgements of one test collection."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        documents = [json.loads(line) for line in (folder / "docs.jsonl").open(encoding="utf-8")]
        self.ids = [str(d["id"]) for d in documents]
        self.texts = [f"{d.get('title') or ''}\n{d.get('text') or ''}".strip() or "(empty)" for d in documents]
        self.judged: dict[str, dict[str, int]] = {}
        for line in (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines():
            query, document, grade = line.split("\t")[-3:]
            if grade.lstrip("-").isdigit():
                self.judged.setdefault(query, {})[document] = int(grade)
        queries = [json.loads(line) for line in (folder / "queries.jsonl").open(encoding="utf-8")]
        self.queries = {str(q["id"]): q["text"] for q in queries if str(q["id"]) in self.judged}


def documents(passages: Iterable[str], owner: Mapping[str, str]) -> list[str]:
    """Documents in the order of their first passage."""
    return list(dict.fromkeys(owner[p] for p in passages if p in owner))[:DEPTH]


def measure(collection: Collection, run: Run, deep: Run | None = None) -> tuple[float, float, float]:
    """nDCG@10, recall@100 (from ``deep`` where it differs), and milliseconds for a query."""
    import ir_measures

    started = time.perf_counter()
    found = {key: run(text) for key, text in collection.queries.items()}
    took = (time.perf_counter() - started) * 1000 / len(found)
    deeper = {key: deep(text) for key, text in collection.queries.items()} if deep else found

    def score(metric: Any, lists: Mapping[str, list[str]]) -> float:
        scored = {key: {d: 1.0 / (n + 1) for n, d in enumerate(docs)} for key, docs in lists.items()}
        return float(ir_measures.calc_aggregate([metric], collection.judged, scored)[metric])

    return score(ir_measures.nDCG @ 10, found), score(ir_measures.R @ 100, deeper), took


def deepwell_runs(library: Library) -> dict[str, tuple[Run, Run | None]]:
    """Our arms, ours fused, and the usual ways to fuse our arms. Each with one for recall where that is another."""
    store, encoder = library._store, library._encoder("text", active=True)
    paths = {row.passage_id: row.path.removeprefix("text:") for row in _all_passages(store)}
    depth = 3 * DEPTH

    def by_search(searcher: Searcher) -> tuple[Run, Run]:
        searcher.warm()

        def run(text: str, limit: int) -> list[str]:
            return documents((h.passage_id for h in searcher.search(Query(text=text, limit=limit))), paths)

        return lambda text: run(text, PAGE), lambda text: run(text, depth)

    def by_library(text: str, limit: int) -> list[str]:
        return documents((h.passage_id for h in library.search(text, limit=limit)), paths)

    @functools.cache
    def arms(text: str) -> tuple[dict[str, float], dict[str, float]]:
        words = store.match(text, limit=depth)
        near = store.nearest("text", encoder.encode([text], query=True)[0], limit=depth)
        return dict(zip(words.ids, words.scores, strict=True)), dict(zip(near.ids, near.scores, strict=True))

    def fused(mix: Callable[[dict[str, float]], dict[str, float]]) -> Run:
        def run(text: str) -> list[str]:
            total: dict[str, float] = {}
            for arm in arms(text):
                for passage, score in mix(arm).items():
                    total[passage] = total.get(passage, 0.0) + score
            return documents(sorted(total, key=lambda p: -total[p]), paths)

        return run

    return {
        "words": by_search(Searcher(store)),
        "words (Lance)": (lambda text: documents(arms(text)[0], paths), None),
        "vectors": (lambda text: documents(arms(text)[1], paths), None),
        "min-max half and half": (fused(_min_max), None),
        "reciprocal rank fusion": (fused(lambda arm: {p: 1 / (61 + n) for n, p in enumerate(arm)}), None),
        "deepwell without feedback": by_search(Searcher(store, text_encoder=lambda: encoder, feedback=False)),
        "deepwell": (lambda text: by_library(text, PAGE), lambda text: by_library(text, depth)),
    }


def _all_passages(store: Any) -> list[Any]:
    ids = store.live_passages(("passage_id",)).column("passage_id").to_pylist()
    return store.passages(ids)


def _min_max(arm: dict[str, float]) -> dict[str, float]:
    if not arm:
        return {}
    low, high = min(arm.values()), max(arm.values())
    return {p: (s - low) / (high - low) if high > low else 1.0 for p, s in arm.items()}


def bm25s_run(collection: Collection) -> Run:
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize(collection.texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False
    )
    depth = min(DEPTH, len(collection.ids))

    def run(text: str) -> list[str]:
        tokens = bm25s.tokenize([text], stopwords="en", stemmer=stemmer, show_progress=False)
        found, scores = index.retrieve(tokens, k=depth, show_progress=False)
        return [collection.ids[n] for n, score in zip(found[0], scores[0], strict=True) if score > 0]

    return run


def txtai_run(collection: Collection, model: Path, keep: Path) -> Run:
    from txtai.embeddings import Embeddings

    index = Embeddings(path=str(model), method="sentence-transformers" if _has_st() else "meanpooling", hybrid=True)
    saved = keep / f"txtai-{collection.name}"
    if saved.exists():
        index.load(str(saved))
    else:
        index.index([(key, text, None) for key, text in zip(collection.ids, collection.texts, strict=True)])
        index.save(str(saved))
    return lambda text: [str(key) for key, _ in index.search(text, DEPTH)]


def _has_st() -> bool:
    return importlib.util.find_spec("sentence_transformers") is not None


def open_library(collection: Collection, keep: Path) -> Library:
    library = Library(keep / collection.name)
    if library.status().documents != len(collection.ids):
        library.add_texts(collection.texts, ids=collection.ids)
    elif any(space.active and space.done < space.total for space in library.status().spaces):
        library.sync()  # an earlier run was ended while it encoded
    return library


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--collections", nargs="+", default=["cranfield", "cisi", "cacm"])
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    data = default_data()
    if data is None or not all((data / "ir" / name).is_dir() for name in options.collections):
        print("retrieval: no test collections here; set DEEPWELL_DATA. Nothing was measured.")
        return 0
    if options.peers and any(importlib.util.find_spec(name) is None for name in ("bm25s", "txtai", "ir_measures")):
        print("retrieval: peers are not installed; run: pip install 'deepwell[bench]'. Nothing was measured.")
        return 0
    try:
        from deepwell import models

        model = models.folder("all-minilm-l6-v2")
    except DeepwellError as error:
        print(f"retrieval: {error.message}; {error.hint}. Nothing was measured.")
        return 0
    table: dict[str, dict[str, tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        keep = options.keep or Path(temporary)
        for name in options.collections:
            collection = Collection(data / "ir" / name)
            with open_library(collection, keep) as library:
                library.warm()
                runs = deepwell_runs(library)
                if options.peers:
                    runs = {
                        "bm25s": (bm25s_run(collection), None),
                        "txtai hybrid": (txtai_run(collection, model, keep), None),
                        **runs,
                    }
                for label, (run, deep) in runs.items():
                    table.setdefault(label, {})[name] = measure(collection, run, deep)
    print(f"nDCG@10 / recall@100 ({date.today()}, {platform.processor() or platform.machine()})\n")
    print("| |" + "".join(f" {name} |" for name in options.collections) + " mean | ms a query |")
    print("|---|" + "---|" * (len(options.collections) + 2))
    for label, row in table.items():
        cells = "".join(f" {row[name][0]:.3f} / {row[name][1]:.3f} |" for name in options.collections)
        mean, recall, took = (float(np.mean([value[k] for value in row.values()])) for k in range(3))
        timed = f"{took:.1f}" if label in SYSTEMS else ""
        print(f"| {label} |{cells} {mean:.4f} / {recall:.3f} | {timed} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
