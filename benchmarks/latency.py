"""How long a search takes in a warm process, on a library of 10,000 and of 100,000 passages, and from the shell.

    python benchmarks/latency.py [--passages 10000 100000] [--queries 300] [--peer]

Passages are resampled from the collections in ``DEEPWELL_DATA``: sentences shuffled between documents, so that no two
are the same; queries are the collections' own. Vectors are synthetic and clustered as real ones are: a latency does not
depend on what they mean, and encoding 100,000 passages takes an hour. With the starter encoder at hand each query is
also encoded, as in use; ``--peer`` adds txtai over the same texts, which it encodes.

Prints p50 and p95 in milliseconds of ``Searcher.search`` warm, the time of ``deepwell search`` from the shell, and
recall@10 of the vector index against an exact scan. Says so and exits 0 when data are absent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import DeepwellError
from deepwell.library.records import Passage, Query
from deepwell.library.search import Searcher
from deepwell.library.store import Store, StoredDocument, content_id, new_passages
from deepwell.paths import default_data

DIM = 384


def texts_and_queries(data: Path, count: int) -> tuple[list[str], list[str]]:
    sentences, queries = [], []
    for name in ("cranfield", "cisi", "cacm"):
        for line in (data / "ir" / name / "docs.jsonl").open(encoding="utf-8"):
            sentences += [s.strip() for s in json.loads(line)["text"].split(".") if len(s) > 30]
        queries += [json.loads(line)["text"] for line in (data / "ir" / name / "queries.jsonl").open(encoding="utf-8")]
    rng = random.Random(0)
    return [". ".join(rng.choices(sentences, k=6)) for _ in range(count)], queries


def vectors_like_real(count: int) -> NDArray[np.float32]:
    """Unit vectors [count, DIM] around a few hundred centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((400, DIM)).astype(np.float32)
    rows = centres[rng.integers(0, 400, count)] + 0.8 * rng.standard_normal((count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class QueryEncoder:
    """The real encoder's time, where it is here, and a vector near some passage."""

    name, fingerprint, dim = "all-minilm-l6-v2", "latency", DIM

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors
        self._rng = np.random.default_rng(1)
        self._real: Any = None
        try:
            from deepwell.library.encoders import open_text

            self._real = open_text("all-minilm-l6-v2")
        except DeepwellError as error:
            print(f"latency: queries are not encoded ({error.message})")

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        if self._real is not None:
            self._real.encode(texts, query=query)
        rows = self._vectors[self._rng.integers(0, len(self._vectors), len(texts))]
        rows = rows + 0.03 * self._rng.standard_normal(rows.shape).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def build(folder: Path, texts: Sequence[str], vectors: NDArray[np.float32]) -> Store:
    store = Store.open(folder, create=True)
    ids = [content_id(hashlib.md5(str(n).encode()).hexdigest(), "latency", 1) for n in range(len(texts))]
    with store.writing() as writer:
        table = writer.vector_table("text", "all-minilm-l6-v2", "latency", DIM)
        for start in range(0, len(texts), 5_000):
            part = range(start, min(start + 5_000, len(texts)))
            passages = [p for n in part for p in new_passages(ids[n], [Passage(texts[n])])]
            writer.put([StoredDocument(f"d{n}", f"text:{n}", "text", "", ids[n]) for n in part], passages)
            writer.put_vectors(table, [p.passage_id for p in passages], vectors[part.start : part.stop])
    return store


def timed(run: Callable[[str], object], queries: Sequence[str]) -> tuple[float, float]:
    for query in queries[:5]:
        run(query)
    took = []
    for query in queries:
        started = time.perf_counter()
        run(query)
        took.append((time.perf_counter() - started) * 1000)
    return float(np.percentile(took, 50)), float(np.percentile(took, 95))


def recall(store: Store, vectors: NDArray[np.float32], count: int = 100) -> float:
    """Of the true ten nearest, the share that the store finds, by cosine (ids differ only by number)."""
    rng = np.random.default_rng(2)
    probes = vectors[rng.integers(0, len(vectors), count)] + 0.03 * rng.standard_normal((count, DIM)).astype(np.float32)
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    found = 0
    for probe in probes:
        tenth = np.partition(vectors @ probe, -10)[-10]
        found += int((store.nearest("text", probe, limit=10).scores >= tenth - 1e-3).sum())
    return found / (10 * count)


def from_the_shell(folder: Path) -> float:
    command = [str(Path(sys.executable).with_name("deepwell")), "--library", str(folder), "search", "boundary layer"]
    took = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, check=False, env=dict(os.environ))
        took.append(time.perf_counter() - started)
        if done.returncode:
            print(f"latency: the command failed: {done.stderr.decode().strip()[:200]}")
            return float("nan")
    return min(took)


def txtai_time(texts: Sequence[str], queries: Sequence[str]) -> tuple[float, float]:
    from txtai.embeddings import Embeddings

    from deepwell import models

    index = Embeddings(path=str(models.folder("all-minilm-l6-v2")), method="meanpooling", hybrid=True, content=True)
    index.index(list(texts))
    return timed(lambda query: index.search(query, 10), queries)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Latency of search.")
    parser.add_argument("--passages", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--peer", action="store_true", help="also txtai, which encodes the texts of the first size")
    options = parser.parse_args(arguments)
    data = default_data()
    if data is None or not (data / "ir").is_dir():
        print("latency: no data here; set DEEPWELL_DATA. Nothing was measured.")
        return 0
    print("| passages | warm p50 ms | warm p95 ms | shell s | vector recall@10 |\n|---|---|---|---|---|")
    for count in options.passages:
        texts, queries = texts_and_queries(data, count)
        queries = queries[: options.queries]
        vectors = vectors_like_real(count)
        with tempfile.TemporaryDirectory() as folder:
            store = build(Path(folder) / "library", texts, vectors)
            encoder = QueryEncoder(vectors)
            with Searcher(store, text_encoder=lambda encoder=encoder: encoder) as searcher:
                searcher.warm()
                p50, p95 = timed(lambda text, searcher=searcher: searcher.search(Query(text=text)), queries)
            shell = from_the_shell(Path(folder) / "library")
            print(f"| {count:,} | {p50:.1f} | {p95:.1f} | {shell:.2f} | {recall(store, vectors):.3f} |", flush=True)
            store.close()
        if options.peer and count == options.passages[0]:
            p50, p95 = txtai_time(texts, queries)
            print(f"| {count:,} (txtai) | {p50:.1f} | {p95:.1f} | | |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
