"""How fast texts become searchable, beside txtai with the same encoder and texts, and what memory that takes.

    python benchmarks/indexing.py                    # 10,000 passages, ours and txtai's
    python benchmarks/indexing.py --memory 100000    # peak memory of this process while it indexes that many

Texts are the abstracts of Cranfield, CISI and CACM, repeated with a few words of difference so that none is stored
twice. Both sides encode with all-MiniLM-L6-v2 and keep full text and vectors on disk (txtai: ``hybrid=True``, saved).
Each side runs in a process of its own, so that peaks of memory are its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deepwell.paths import default_data

ENCODER = "all-minilm-l6-v2"


def texts(count: int, data: Path) -> list[str]:
    """That many different abstracts."""
    base = []
    for name in ("cranfield", "cisi", "cacm"):
        for line in (data / "ir" / name / "docs.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            base.append(f"{row['title']} {row['text']}".strip())
    return [base[n % len(base)] + (f" variant {n // len(base)}" if n >= len(base) else "") for n in range(count)]


def ours(count: int, data: Path, folder: Path) -> dict[str, float]:
    """Index with Deepwell; seconds until words, and until vectors, are complete."""
    from deepwell.library.encoders import open_text
    from deepwell.library.indexing import Encoders, Indexer, Options, Progress
    from deepwell.library.store import Store

    encoder = open_text(ENCODER)
    encoder.encode(["warm up"])
    documents = texts(count, data)
    words_done: list[float] = []

    def note(progress: Progress) -> None:
        if progress.phase == "vectors" and not words_done:
            words_done.append(time.monotonic() - started)

    store = Store.open(folder / "library", create=True)
    # One passage a text, as txtai has it.
    options = Options(cut=lambda text: [text])
    indexer = Indexer(store, encoders=Encoders(text=encoder), options=options, progress=note)
    started = time.monotonic()
    report = indexer.add_texts(documents, [str(n) for n in range(count)])
    took = time.monotonic() - started
    return {"passages": report.passages, "vectors": report.vectors, "words_s": words_done[0], "all_s": took}


def txtai(count: int, data: Path, folder: Path) -> dict[str, float]:
    """Index with txtai, the same encoder and texts."""
    from txtai import Embeddings

    from deepwell import models

    embeddings = Embeddings(path=str(models.folder(ENCODER)), method="transformers", content=True, hybrid=True)
    embeddings.batchtransform(["warm up"])
    documents = texts(count, data)
    started = time.monotonic()
    embeddings.index(documents)
    embeddings.save(str(folder / "txtai"))
    took = time.monotonic() - started
    return {"passages": count, "vectors": count, "words_s": took, "all_s": took}


def measure(side: str, count: int) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--count", str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--memory", type=int, metavar="PASSAGES", help="only ours, this many, and its peak memory")
    parser.add_argument("--without-txtai", action="store_true")
    parser.add_argument("--side", choices=("ours", "txtai"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = default_data()
    if data is None or not (data / "ir").is_dir():
        print("the data sets are not here; set DEEPWELL_DATA")
        return
    if arguments.side:
        with tempfile.TemporaryDirectory() as scratch:
            run = ours if arguments.side == "ours" else txtai
            result = run(arguments.count, data, Path(scratch))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps(result | {"peak_mb": peak}))
        return
    count = arguments.memory or arguments.count
    sides = ["ours"] if arguments.memory or arguments.without_txtai else ["ours", "txtai"]
    results = {side: measure(side, count) for side in sides}
    print(f"{count} abstracts, encoder {ENCODER}\n")
    print(f"{'':10}{'words searchable':>18}{'all':>12}{'passages a second':>20}{'peak memory':>14}")
    for side, result in results.items():
        rate = result["passages"] / result["all_s"]
        print(
            f"{side:10}{result['words_s']:>16.1f} s{result['all_s']:>10.1f} s{rate:>20.0f}{result['peak_mb']:>11.0f} MB"
        )
    if len(results) == 2:
        print(f"\nours is {results['txtai']['all_s'] / results['ours']['all_s']:.2f} times as fast")


if __name__ == "__main__":
    main()
