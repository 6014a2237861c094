"""How fast texts become searchable, beside txtai with the same encoder and texts, and what memory that takes.

    python benchmarks/indexing.py                                  # 10,000 short abstracts, ours and txtai's
    python benchmarks/indexing.py --words 0 --passages 1000        # whole abstracts
    python benchmarks/indexing.py --passages 100000 --words 12 --without-txtai          # peak memory
    python benchmarks/indexing.py --passages 100000 --without-txtai --stand-in --keep DIR

Texts are the abstracts of Cranfield, CISI and CACM with their titles, the first ``--words`` words of each, repeated
with a word of difference so that none is stored twice. Both sides encode with all-MiniLM-L6-v2 in float32 or whatever
they choose themselves, and keep full text and vectors on disk (txtai: ``hybrid=True``, ``content=True``, saved). Each
side runs in a process of its own, so that peaks of memory are its own.

``--stand-in`` indexes with vectors that are made up instead of encoded (they lie in clusters, as real ones do): for
sizes that would take a machine hours. The output says so. ``--keep DIR`` leaves libraries and results there; what is
there already is not made again, and ``latency.py --keep DIR`` searches in it.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepwell.paths import default_data

ENCODER = "all-minilm-l6-v2"
DIM = 384
COLLECTIONS = ("cranfield", "cisi", "cacm")


def abstracts(count: int, data: Path, words: int) -> list[str]:
    """That many different texts of at most ``words`` words; 0 is whole abstracts."""
    base = []
    for name in COLLECTIONS:
        for line in (data / "ir" / name / "docs.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            text = f"{row['title']} {row['text']}".split()
            base.append(" ".join(text[:words] if words else text))
    return [base[n % len(base)] + (f" variant{n // len(base)}" if n >= len(base) else "") for n in range(count)]


class StandIn:
    """A ``TextEncoder`` that makes vectors up: unit vectors around centres that a text's words choose."""

    name, fingerprint, dim = "stand-in", "stand-in", DIM

    def __init__(self) -> None:
        import numpy as np

        self._centres = np.random.default_rng(0).standard_normal((512, DIM)).astype(np.float32)

    def encode(self, texts: Sequence[str], *, query: bool = False) -> Any:  # noqa: ARG002
        import zlib

        import numpy as np

        seeds = [zlib.crc32(text.encode()) for text in texts]
        rng = np.random.default_rng(seeds[0] if seeds else 0)
        rows = self._centres[[zlib.crc32(text[:24].encode()) % 512 for text in texts]]
        rows = rows + 0.8 * rng.standard_normal(rows.shape).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def say(line: str) -> None:
    """Progress goes to stderr; the table alone is the output."""
    print(line, file=sys.stderr, flush=True)


def ours(texts: Sequence[str], folder: Path, *, stand_in: bool = False) -> dict[str, float]:
    """Index with Deepwell; seconds until words, and until vectors, are complete."""
    from deepwell.library.encoders import open_text
    from deepwell.library.indexing import Encoders, Indexer, Options, Progress
    from deepwell.library.store import Store

    encoder: Any = StandIn() if stand_in else open_text(ENCODER)
    encoder.encode(["warm up"])
    words_done: list[float] = []
    spoke = [0.0]

    def note(progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase == "vectors" and not words_done:
            words_done.append(now - started)
        if now - spoke[0] > 10:
            spoke[0] = now
            say(f"  ours: {progress.phase} {progress.done:,} of {progress.total:,}, {now - started:.0f} s")

    store = Store.open(folder, create=True)
    # One passage a text, as txtai has it.
    indexer = Indexer(store, encoders=Encoders(text=encoder), options=Options(cut=lambda t: [t]), progress=note)
    started = time.monotonic()
    report = indexer.add_texts(texts, [str(n) for n in range(len(texts))])
    took = time.monotonic() - started
    return {"passages": report.passages, "words_s": words_done[0], "all_s": took}


def txtai(texts: Sequence[str], folder: Path) -> dict[str, float]:
    """Index with txtai, the same encoder and texts."""
    from txtai import Embeddings

    from deepwell import models

    embeddings = Embeddings(path=str(models.folder(ENCODER)), method="transformers", content=True, hybrid=True)
    embeddings.batchtransform(["warm up"])
    say("  txtai: indexing (it tells no progress)")
    started = time.monotonic()
    embeddings.index(list(texts))
    embeddings.save(str(folder))
    took = time.monotonic() - started
    return {"passages": len(texts), "words_s": took, "all_s": took}


def kept_name(side: str, passages: int, words: int, *, stand_in: bool = False) -> str:
    """The name, below ``--keep``, of what a side made."""
    return f"{side}-{passages}-{words}" + ("-standin" if stand_in else "")


def measure(side: str, options: argparse.Namespace, keep: Path) -> dict[str, Any]:
    """Run one side in a process of its own, or take the result that is kept."""
    folder = keep / kept_name(side, options.passages, options.words, stand_in=options.stand_in)
    result = folder.with_suffix(".json")
    if not result.exists():
        shutil.rmtree(folder, ignore_errors=True)
        shape = ["--passages", str(options.passages), "--words", str(options.words)]
        command = [sys.executable, __file__, *shape, "--side", side, "--folder", str(folder)]
        done = subprocess.run(
            command + ["--stand-in"] * options.stand_in, check=True, stdout=subprocess.PIPE, text=True
        )
        result.write_text(done.stdout.strip().splitlines()[-1])
    loaded: dict[str, Any] = json.loads(result.read_text())
    return loaded


def run_side(options: argparse.Namespace, data: Path) -> None:
    """In the child: index and print a line of JSON."""
    texts = abstracts(options.passages, data, options.words)
    folder = Path(options.folder)
    result: dict[str, Any] = dict(
        ours(texts, folder, stand_in=options.stand_in) if options.side == "ours" else txtai(texts, folder)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result | {"peak_mb": peak, "when": time.strftime("%Y-%m-%d %H:%M")}))


def print_table(options: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    """What was measured, and what was not."""
    cut = f"of at most {options.words} words" if options.words else "whole"
    print(f"{options.passages:,} abstracts, {cut}; encoder {ENCODER}")
    if options.stand_in:
        print("The vectors are made up (--stand-in): the times hold no encoding and the memory no encoder.")
    print(f"\n| side | words searchable s | all s | passages/s | peak memory MB | measured |\n|{'---|' * 6}")
    for side, result in results.items():
        rate = result["passages"] / result["all_s"]
        print(
            f"| {side} | {result['words_s']:.1f} | {result['all_s']:.1f} | {rate:.0f} "
            f"| {result['peak_mb']:.0f} | {result['when']} |"
        )
    if len(results) == 2:
        print(f"\nours is {results['txtai']['all_s'] / results['ours']['all_s']:.2f} times as fast")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=60, help="of each abstract; 0 is all (default 60)")
    parser.add_argument("--keep", type=Path, help="leave libraries and results here, and use what is here")
    parser.add_argument("--stand-in", action="store_true", help="made-up vectors instead of encoding")
    parser.add_argument("--without-txtai", action="store_true")
    parser.add_argument("--side", choices=("ours", "txtai"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = default_data()
    if data is None or not (data / "ir").is_dir():
        print("the data sets are not here; set DEEPWELL_DATA. Nothing was measured.")
        return 0
    if options.side:
        run_side(options, data)
        return 0
    sides = ["ours"] if options.without_txtai or options.stand_in else ["ours", "txtai"]
    with tempfile.TemporaryDirectory(prefix="deepwell-indexing-") as scratch:
        keep = options.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        print_table(options, {side: measure(side, options, keep) for side in sides})
    return 0


if __name__ == "__main__":
    sys.exit(main())
