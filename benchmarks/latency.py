"""How long a search takes, whole, at 10,000 and at 100,000 passages, beside txtai; and from the shell.

    python benchmarks/latency.py [--passages 10000 100000] [--queries 300] [--keep DIR] [--without-txtai]

What is timed is ``Library.search(text)`` in a warm process: understanding, encoding the query, words, vectors, fusion,
feedback, and hits with their passages. txtai's is ``Embeddings.search(text, 10)`` with the same encoder over the same
texts (``hybrid=True``, ``content=True``). Each side has a process of its own. Queries are those of Cranfield, CISI and
CACM, each asked once, in random order.

Up to ``ENCODED`` passages the library is the one that ``indexing.py`` makes, every text encoded. Above, encoding would
take hours here: texts are mixed from sentences of two abstracts each, and their vectors from the true vectors of both
and some noise, under the encoder's own fingerprint, so that queries are still encoded. recall@10 is that of the
store's vector search against an exact scan, over the encoded queries. ``--keep DIR`` keeps what was built.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwell.paths import default_data
from indexing import COLLECTIONS, DIM, ENCODER, abstracts, kept_name, measure, say

ENCODED = 20_000
WORDS = 60


def queries_of(data: Path, count: int) -> list[str]:
    """The collections' queries, shuffled."""
    found = []
    for name in COLLECTIONS:
        found += [json.loads(line)["text"] for line in (data / "ir" / name / "queries.jsonl").open(encoding="utf-8")]
    random.Random(0).shuffle(found)
    return found[:count]


def build_mixed(folder: Path, encoded: Path, data: Path, count: int) -> None:
    """A library of texts mixed from two abstracts each, with the vectors of both mixed alike."""
    from deepwell.library.records import Passage
    from deepwell.library.store import Store, StoredDocument, content_id, new_passages

    base = abstracts(6000, data, WORDS)
    source = Store.open(encoded)
    encoder = source.active_encoder("text")
    assert encoder is not None
    by_path = {document.path: f"{document.content_id}-0" for document in source.documents()}
    known = source.vectors("text", [by_path[f"text:{n}"] for n in range(len(base))])
    rng = np.random.default_rng(0)
    shutil.rmtree(folder, ignore_errors=True)
    store = Store.open(folder, create=True)
    with store.writing() as writer:
        table = writer.vector_table("text", ENCODER, encoder.fingerprint, DIM)
        for start in range(0, count, 10_000):
            part = range(start, min(start + 10_000, count))
            first, second = rng.integers(0, len(base), (2, len(part)))
            noise = rng.standard_normal((len(part), DIM)).astype(np.float32) * (0.3 / DIM**0.5)
            vectors = 0.75 * known[first] + 0.5 * known[second] + noise
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            texts = [_mixed(base[a], base[b], n) for a, b, n in zip(first, second, part, strict=True)]
            ids = [content_id(hashlib.md5(str(n).encode()).hexdigest(), "latency", 1) for n in part]
            documents = [StoredDocument(f"d{n}", f"text:{n}", "text", "", i) for n, i in zip(part, ids, strict=True)]
            passages = [p for i, text in zip(ids, texts, strict=True) for p in new_passages(i, [Passage(text)])]
            writer.put(documents, passages)
            writer.put_vectors(table, [p.passage_id for p in passages], vectors)
            say(f"  building: {part.stop:,} of {count:,}")
    store.close()


def _mixed(first: str, second: str, number: int) -> str:
    words, others = first.split(), second.split()
    return " ".join([*words[: 2 * len(words) // 3], *others[len(others) // 2 :], f"note{number}"])


def timed(run: Callable[[str], object], queries: Sequence[str]) -> dict[str, float]:
    """Milliseconds of each query: the first one of the process, and then the middle and the 95th of a hundred."""
    started = time.perf_counter()
    run("boundary layer heat transfer")
    first = (time.perf_counter() - started) * 1000
    for query in queries[:20]:
        run(query)
    took = []
    for query in queries:
        started = time.perf_counter()
        run(query)
        took.append((time.perf_counter() - started) * 1000)
    p50, p95 = np.percentile(took, [50, 95])
    return {"first": first, "p50": float(p50), "p95": float(p95)}


def ours(folder: Path, queries: Sequence[str]) -> dict[str, float]:
    """Deepwell, warm; and the recall of its vector search."""
    from deepwell import Library
    from deepwell.library.encoders import open_text

    with Library(folder, create=False) as library:
        started = time.perf_counter()
        library.warm()
        ready = time.perf_counter() - started
        result = timed(library.search, queries)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    encoder: Any = open_text(ENCODER)
    encoder.encode(["warm up"], query=True)
    encoding = timed(lambda text: encoder.encode([text], query=True), queries[:100])
    vectors = encoder.encode(list(queries), query=True)
    return result | {"ready_s": ready, "mb": peak, "encode": encoding["p50"], "recall": recall(folder, vectors)}


def recall(folder: Path, probes: NDArray[np.float32]) -> float:
    """Of the true ten nearest, the share that the store finds, counted by cosine: twins are as good as each other."""
    from deepwell.library.store import Store

    store = Store.open(folder)
    vectors = store.vectors("text", store.wanted("text"))
    vectors = vectors[np.isfinite(vectors).all(axis=1)]  # an empty text has none
    found = 0
    for probe in probes:
        tenth = np.partition(vectors @ probe, -10)[-10]
        found += int((store.nearest("text", probe, limit=10).scores >= tenth - 1e-5).sum())
    store.close()
    return found / (10 * len(probes))


def txtai(folder: Path, queries: Sequence[str]) -> dict[str, float]:
    """The saved txtai index."""
    from txtai import Embeddings

    embeddings = Embeddings()
    started = time.perf_counter()
    embeddings.load(str(folder))
    ready = time.perf_counter() - started
    result = timed(lambda query: embeddings.search(query, 10), queries)
    return result | {"ready_s": ready, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def from_the_shell(folder: Path) -> float:
    """Seconds of ``deepwell search``, the middle of five, files in the page cache."""
    command = [str(Path(sys.executable).with_name("deepwell")), "--library", str(folder), "search", "boundary layer"]
    took = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, check=False, env=dict(os.environ))
        took.append(time.perf_counter() - started)
        if done.returncode:
            say(f"latency: the command failed: {done.stderr.decode().strip()[:200]}")
            return float("nan")
    return sorted(took)[2]


def in_a_process(side: str, folder: Path, queries: int) -> dict[str, float]:
    """Run one side alone."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--queries", str(queries)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def libraries(count: int, options: argparse.Namespace, keep: Path, data: Path) -> dict[str, Path]:
    """What is to be searched, built where it is not kept."""
    size = min(count, 10_000) if count > ENCODED else count
    shape = argparse.Namespace(passages=size, words=WORDS, stand_in=False)
    sides = ["ours"] if options.without_txtai or count > ENCODED else ["ours", "txtai"]
    for side in sides:
        measure(side, shape, keep)
    if count <= ENCODED:
        return {side: keep / kept_name(side, count, WORDS) for side in sides}
    mixed = keep / f"mixed-{count}"
    if not (mixed / "library.json").exists():
        building = keep / f"mixed-{count}.part"
        build_mixed(building, keep / kept_name("ours", size, WORDS), data, count)
        building.rename(mixed)
    return {"ours": mixed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Latency of search.")
    parser.add_argument("--passages", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--keep", type=Path, help="build libraries here, and use what is here")
    parser.add_argument("--without-txtai", action="store_true")
    parser.add_argument("--side", choices=("ours", "txtai"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    data = default_data()
    if data is None or not (data / "ir").is_dir():
        print("latency: no data here; set DEEPWELL_DATA. Nothing was measured.")
        return 0
    if options.side:
        run = ours if options.side == "ours" else txtai
        print(json.dumps(run(options.folder, queries_of(data, options.queries))))
        return 0
    head = "passages|side|ready s|first ms|p50 ms|p95 ms|of it encoding ms|peak MB|shell s|vector recall@10"
    with tempfile.TemporaryDirectory(prefix="deepwell-latency-") as scratch:
        keep = options.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        print(f"| {' | '.join(head.split('|'))} |\n|{'---|' * 10}", flush=True)
        for count in options.passages:
            for side, folder in libraries(count, options, keep, data).items():
                say(f"  {side}: searching {count:,}")
                r = in_a_process(side, folder, options.queries)
                own = f"{r['encode']:.1f} | " if side == "ours" else " | "
                shell = f"{from_the_shell(folder):.2f} | {r['recall']:.3f}" if side == "ours" else " | "
                times = f"{r['ready_s']:.1f} | {r['first']:.1f} | {r['p50']:.1f} | {r['p95']:.1f}"
                print(f"| {count:,} | {side} | {times} | {own}{r['mb']:.0f} | {shell} |", flush=True)
    if any(count > ENCODED for count in options.passages):
        print(f"\nAbove {ENCODED:,} passages, texts and vectors are mixed from encoded ones; queries are encoded.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
