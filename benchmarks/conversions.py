"""What conversions of SmolLM2-135M cost before any training: a smaller cache, and experts in place of dense layers.

    python benchmarks/conversions.py                              # both tables; half an hour on 2 busy cores
    python benchmarks/conversions.py --only compress --cache 50   # one row
    python benchmarks/conversions.py --keep DIR                   # keep the text's statistics for the next run

Perplexity and KL to the original are on a part of WikiText-2's validation text (``text/wikitext2-valid.txt`` of
``DEEPWELL_DATA``) that no choice was made on, in windows of 1,024 tokens that do not overlap. The calibration text is
another: parts of two novels, of Shakespeare, and sentences of WikiQA's answers (``qa/question_sentence.jsonl``).
Without the data or the model the script says so and ends.

Speed is that of a forward pass over 512 tokens without the head, in float32, dense and split in turn, the best of five.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepwell.errors import MissingModelError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.conversions.compress import CalibratedNetwork, calibrate
from deepwell.lm.weights.conversions.exact import to_mla
from deepwell.lm.weights.conversions.measure import Comparison, compare, tokens_per_second
from deepwell.lm.weights.conversions.split import split
from deepwell.lm.weights.opening import load
from deepwell.lm.weights.tokenizer import Tokenizer
from deepwell.paths import default_data

MODEL = "smollm2-135m-instruct"
WINDOW = 1024
TUNED = 20_000
"""Characters at the beginning of the text that choices were made on; they are not measured on."""
CACHES = {100: (192, 192), 75: (208, 80), 50: (136, 56), 25: (56, 40)}
"""Share of the original's 384 cached values a layer: rank of the latent, dimensions of the shared rotary key."""
SPLITS = ((4, 2), (6, 2), (8, 0), (4, 0), (6, 0))
"""Of 8 experts: how many a token takes, and how many of them always run."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Tokens."""

    calibration: Tensor
    evaluation: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["compress", "split"])
    parser.add_argument("--cache", type=int, choices=CACHES, nargs="+", default=list(CACHES))
    parser.add_argument(
        "--ranks", type=int, nargs=2, metavar=("KV_RANK", "ROPE_DIMS"), help="one other split of a cache"
    )
    parser.add_argument("--experts", type=int, nargs=2, metavar=("TAKEN", "SHARED"), help="one row of the split table")
    parser.add_argument("--characters", type=int, default=40_000, help="of the text to measure on (default 40,000)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the statistics there, or take them from there")
    parser.add_argument("--refit", action="store_true", help="also with matrices fitted again, which lost so far")
    options = parser.parse_args()
    data = default_data()
    if data is None or not (data / "text" / "wikitext2-valid.txt").is_file():
        print("no data: set DEEPWELL_DATA to a folder with text/ and qa/")
        return
    try:
        model, tokenizer = load(MODEL, dtype="f32")
    except MissingModelError as error:
        print(error)
        return
    texts = read_texts(data, tokenizer, options.characters)
    print(
        f"{MODEL}, float32, {torch.get_num_threads()} threads; calibration text of {len(texts.calibration):,} tokens; "
        f"measured on {len(texts.evaluation) // WINDOW} windows of {WINDOW:,} tokens"
    )
    if options.only != "split":
        ratios = {0: tuple(options.ranks)} if options.ranks else {one: CACHES[one] for one in options.cache}
        smaller_caches(model, texts, ratios, options.keep, options.refit)
    if options.only != "compress":
        experts(model, texts, [tuple(options.experts)] if options.experts else SPLITS)


def read_texts(data: Path, tokenizer: Tokenizer, characters: int) -> Texts:
    """The two texts; neither is part of the other."""
    novels = (data / "text" / "books.txt").read_text(encoding="utf-8")[20_000:140_000]
    plays = (data / "text" / "shakespeare-input.txt").read_text(encoding="utf-8")[:60_000]
    lines = (data / "qa" / "question_sentence.jsonl").read_text(encoding="utf-8").splitlines()
    sentences = "\n".join(json.loads(line)["sentence"] for line in lines)[:180_000]
    measured = (data / "text" / "wikitext2-valid.txt").read_text(encoding="utf-8")[TUNED:][:characters]
    calibration = [token for text in (novels, plays, sentences) for token in tokenizer.encode(text)]
    return Texts(torch.tensor(calibration), torch.tensor(tokenizer.encode(measured)))


def smaller_caches(
    model: Transformer, texts: Texts, ratios: dict[int, tuple[int, int]], keep: Path | None, refit: bool
) -> None:
    """The table of compression."""
    start = time.perf_counter()
    calibrated = observed(model, texts.calibration, keep)
    print(f"\nstatistics of the calibration text in {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{'cache':>12}{'values':>8}{'rank':>6}{'rope':>6}{'ppl':>9}{'KL':>9}{'same top':>10}{'seconds':>9}")
    if 100 in ratios:
        line("exact", 384, None, compare(model, to_mla(model), texts.evaluation, window=WINDOW), 0.0)
    for share, (rank, dims) in ratios.items():
        for fitted in (False, True)[: 1 + refit]:
            start = time.perf_counter()
            smaller = calibrated.compress(kv_rank=rank, rope_dims=dims, refit=fitted)
            seconds = time.perf_counter() - start
            found = compare(model, smaller, texts.evaluation, window=WINDOW)
            name = f"{share or round(100 * (rank + dims) / 384)}%{' refit' if fitted else ''}"
            line(name, rank + dims, (rank, dims), found, seconds)
    print(f"original: perplexity {found.before.perplexity:.2f}; no weight was trained")


def observed(model: Transformer, calibration: Tensor, keep: Path | None) -> CalibratedNetwork:
    """The statistics, from the folder if they are there."""
    file = None if keep is None else keep / "statistics.pt"
    if file is not None and file.is_file():
        return CalibratedNetwork(model, *torch.load(file, weights_only=False))
    calibrated = calibrate(model, calibration)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save((calibrated.statistics, calibrated.windows), file)
    return calibrated


def line(name: str, values: int, ranks: tuple[int, int] | None, found: Comparison, seconds: float) -> None:
    """One row."""
    rank, dims = ranks or ("", "")
    print(
        f"{name:>12}{values:>8}{rank:>6}{dims:>6}{found.after.perplexity:>9.2f}{found.kl:>9.4f}{found.same_top:>10.1%}"
        f"{seconds:>9.0f}",
        flush=True,
    )


def experts(model: Transformer, texts: Texts, splits: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> None:
    """The table of splitting."""
    print(f"\n{'taken':>7}{'shared':>8}{'ppl':>9}{'KL':>9}{'same top':>10}{'tokens/s':>10}{'dense':>8}{'seconds':>9}")
    for taken, shared in splits:
        start = time.perf_counter()
        mixed = split(model, experts=8, top_k=taken, shared=shared, calibration=texts.calibration)
        seconds = time.perf_counter() - start
        found = compare(model, mixed, texts.evaluation, window=WINDOW)
        dense, fast = tokens_per_second([model, mixed], texts.evaluation, rounds=5)
        print(
            f"{taken:>2} of 8{shared:>8}{found.after.perplexity:>9.2f}{found.kl:>9.4f}{found.same_top:>10.1%}"
            f"{fast:>10.0f}{dense:>8.0f}{seconds:>9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
