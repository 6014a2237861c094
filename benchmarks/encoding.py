"""How fast passages and queries become vectors, beside transformers, sentence-transformers and txtai, same weights.

    python benchmarks/encoding.py                       # throughput, latency, cold start, agreement; about 3 minutes
    python benchmarks/encoding.py --retrieval           # also nDCG@10 on Cranfield by precision and by longest input
    python benchmarks/encoding.py --only passages --texts 2000

Texts are a fixed sample of the titles and abstracts of CACM and CISI (``DEEPWELL_DATA``); without that data the script
says so and ends. The peers run as their own defaults: transformers as most people write it (batches of 32, sorted by
length), txtai's vectors through ``Embeddings.batchtransform``; sentence-transformers where it is installed.

Rounds are interleaved (every way once, then again) and the best round counts, so that a busy machine slows all alike.
Texts for each second of processor time are printed too: less is disturbed there by what else the machine does.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepwell import models
from deepwell.library.encoders.bert.encoder import BertEncoder
from deepwell.library.encoders.recipe import read_recipe
from deepwell.paths import default_data

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
MODEL = "all-minilm-l6-v2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=600, help="abstracts to encode (default 600)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own choice")
    parser.add_argument("--only", choices=["passages", "queries", "cold", "retrieval"])
    parser.add_argument("--retrieval", action="store_true", help="also measure what precision does to Cranfield")
    options = parser.parse_args()
    data = default_data()
    if data is None or not (data / "ir").is_dir():
        print("no data: set DEEPWELL_DATA to a folder with ir/cranfield, ir/cisi and ir/cacm")
        return

    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    folder = models.folder(MODEL)
    flags = [name for name in ("avx512_bf16", "amx_bf16", "avx512_f", "avx2") if torch.cpu.get_capabilities().get(name)]
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {' '.join(flags)}; {MODEL}"
    )
    if options.only in (None, "passages"):
        passages(folder, texts_of(data, options.texts), options.rounds)
    if options.only in (None, "queries"):
        queries(folder, questions_of(data))
    if options.only in (None, "cold"):
        cold(folder)
    if options.only == "retrieval" or options.retrieval:
        retrieval(folder, data / "ir" / "cranfield")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform != "darwin" else 1 << 30)
    print(f"\npeak memory of this process {peak:.2f} GB (all libraries together)")


def passages(folder: Path, texts: list[str], rounds: int) -> None:
    """Texts a second by each way, and how near each is to transformers in float32."""
    ways = {**our_ways(folder), **their_ways(folder)}
    lengths = [len(ids) for ids in BertEncoder(folder)._tokens.ids(texts)]
    print(
        f"\n{len(texts)} abstracts of {statistics.mean(lengths):.0f} tokens (median {statistics.median(lengths):.0f})"
    )
    took: dict[str, float] = {}
    worked: dict[str, float] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    for encode in ways.values():
        encode(texts[:32])  # loading and warming are not timed
    for _ in range(rounds):
        for name, encode in ways.items():
            start, worked_before = time.perf_counter(), time.process_time()
            vectors[name] = encode(texts)
            took[name] = min(took.get(name, math.inf), time.perf_counter() - start)
            worked[name] = min(worked.get(name, math.inf), time.process_time() - worked_before)
    exact = vectors["transformers float32"]
    print(
        f"{'':24}{'texts/s':>9}{'tokens/s':>10}{'to txtai':>10}{'/cpu s':>8}{'to txtai':>10}{'cosine':>10}{'least':>10}"
    )
    for name in ways:
        rate, tokens, effort = len(texts) / took[name], sum(lengths) / took[name], len(texts) / worked[name]
        faster = took["txtai"] / took[name] if "txtai" in took else math.nan
        lighter = worked["txtai"] / worked[name] if "txtai" in took else math.nan
        cosine = (vectors[name] * exact).sum(axis=1)
        print(
            f"{name:24}{rate:9.1f}{tokens:10.0f}{faster:10.2f}{effort:8.1f}{lighter:10.2f}"
            f"{cosine.mean():10.6f}{cosine.min():10.6f}"
        )


def our_ways(folder: Path) -> dict[str, Encode]:
    """Deepwell's executors; bfloat16 only where the processor has it."""
    import torch

    from deepwell.library.encoders.bert.layers_torch import TorchBert, precision

    def of(dtype: torch.dtype) -> Encode:
        encoder = BertEncoder(folder, executor="torch")
        encoder._torch = TorchBert(encoder._config, encoder._weights, encoder.recipe.pooling, dtype=dtype)
        return encoder.encode

    dtypes = dict.fromkeys([precision(), torch.float32])
    ways = {f"deepwell torch {str(dtype).removeprefix('torch.')}": of(dtype) for dtype in dtypes}
    return {**ways, "deepwell numpy float32": BertEncoder(folder, executor="numpy").encode}


def their_ways(folder: Path) -> dict[str, Encode]:
    """The same weights through other people's code."""
    ways: dict[str, Encode] = {"transformers float32": transformers_way(folder)}
    try:
        from sentence_transformers import SentenceTransformer

        ways["sentence-transformers"] = functools.partial(
            SentenceTransformer(str(folder), device="cpu").encode, normalize_embeddings=True
        )
    except ImportError:
        print("sentence-transformers is not installed: left out")
    try:
        from txtai.embeddings import Embeddings

        embeddings = Embeddings(path=str(folder), method="transformers", gpu=False)
        ways["txtai"] = lambda texts: np.asarray(embeddings.batchtransform(list(texts)), np.float32)
    except ImportError:
        print('txtai is not installed (pip install "deepwell[bench]"): left out')
    return ways


def transformers_way(folder: Path) -> Encode:
    """Batches of 32, longest first, mean pooling: what the model's card shows, with sorting."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    network, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    longest = read_recipe(folder).max_tokens

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
        vectors = np.empty((len(texts), network.config.hidden_size), np.float32)
        for first in range(0, len(order), 32):
            rows = order[first : first + 32]
            batch = [texts[row] for row in rows]
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            with torch.inference_mode():
                states = network(**inputs).last_hidden_state
                mask = inputs["attention_mask"][..., None].float()
                pooled = (states * mask).sum(1) / mask.sum(1)
                vectors[rows] = torch.nn.functional.normalize(pooled).numpy()
        return vectors

    return encode


def queries(folder: Path, questions: list[str]) -> None:
    """Milliseconds for one query in a warm process."""
    ways = {**our_ways(folder), **their_ways(folder)}
    print(f"\none query at a time, {len(questions)} queries, warm\n{'':24}{'p50 ms':>9}{'p95 ms':>9}")
    for name, encode in ways.items():
        for question in questions[:5]:
            encode([question])
        took = []
        for question in questions:
            start = time.perf_counter()
            encode([question])
            took.append(1000 * (time.perf_counter() - start))
        print(f"{name:24}{statistics.median(took):9.2f}{np.quantile(took, 0.95):9.2f}")


def cold(folder: Path) -> None:
    """Seconds from a new interpreter to the first query's vector, less what starting Python itself takes."""
    program = (
        "import time; start = time.perf_counter()\n"
        "from deepwell.library.encoders import open_text\n"
        f"encoder = open_text({str(folder)!r}); opened = time.perf_counter()\n"
        "encoder.encode(['what is asked of the library'], query=True)\n"
        "print(opened - start, time.perf_counter() - start)"
    )
    runs = []
    for _ in range(5):
        output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
        runs.append([float(number) for number in output.split()])
    opened, encoded = min(runs, key=lambda run: run[1])
    print(f"\ncold process, best of 5: opened after {opened:.3f} s, first query encoded after {encoded:.3f} s")


def retrieval(folder: Path, collection: Path) -> None:
    """nDCG@10 of vectors alone on Cranfield: float32 against bfloat16, the model's longest input against 512."""
    import torch

    from deepwell.library.encoders.bert.layers_torch import TorchBert, precision
    from deepwell.library.encoders.recipe import Recipe

    names, texts = documents(collection)
    asked = [json.loads(line) for line in (collection / "queries.jsonl").read_text().splitlines()]
    judged: dict[str, dict[str, float]] = {}
    for line in (collection / "qrels.tsv").read_text().splitlines():
        query, document, grade = line.split("\t")[:3]
        if grade.lstrip("-").isdigit():
            judged.setdefault(query, {})[document] = max(float(grade), 0.0)
    print(f"\n{collection.name}: nDCG@10 of vectors alone")
    settings = {
        "float32": (torch.float32, read_recipe(folder).max_tokens),
        f"{precision()}".removeprefix("torch."): (precision(), read_recipe(folder).max_tokens),
        "float32, 512 tokens": (torch.float32, 512),
    }
    for name, (dtype, longest) in settings.items():
        encoder = BertEncoder(folder, executor="torch", recipe=Recipe(max_tokens=longest))
        encoder._torch = TorchBert(encoder._config, encoder._weights, "mean", dtype=dtype)
        scores = encoder.encode([query["text"] for query in asked], query=True) @ encoder.encode(texts).T
        gains = [
            ndcg([names[n] for n in np.argsort(-row, kind="stable")[:10]], judged[str(query["id"])])
            for query, row in zip(asked, scores, strict=True)
            if any(judged.get(str(query["id"]), {}).values())
        ]
        print(f"{name:24}{statistics.mean(gains):9.4f}")


def ndcg(found: list[str], judged: dict[str, float]) -> float:
    """With linear gains, at the length of ``found``."""
    got = sum(judged.get(name, 0.0) / math.log2(rank + 2) for rank, name in enumerate(found))
    best = sorted(judged.values(), reverse=True)[: len(found)]
    return got / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))


def documents(collection: Path) -> tuple[list[str], list[str]]:
    """Ids and texts; a title that its text repeats is not said twice."""
    rows = [json.loads(line) for line in (collection / "docs.jsonl").read_text().splitlines()]
    texts = [
        row["text"] if row["title"] and row["text"].startswith(row["title"][:40]) else f"{row['title']}\n{row['text']}"
        for row in rows
    ]
    return [str(row["id"]) for row in rows], [text.strip() for text in texts]


def texts_of(data: Path, count: int) -> list[str]:
    """A fixed sample of abstracts."""
    both = [text for name in ("cacm", "cisi") for text in documents(data / "ir" / name)[1]]
    return random.Random(0).sample(both, min(count, len(both)))


def questions_of(data: Path) -> list[str]:
    """Short questions, as people type them."""
    lines = (data / "ir" / "cranfield" / "queries.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines][:100]


if __name__ == "__main__":
    main()
