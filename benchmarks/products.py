"""Products of rows with a matrix: the compiled engine's formats beside PyTorch's own products, one run.

    python benchmarks/products.py [--rows 1,4,8,64,512] [--inputs 576] [--outputs 1536] [--threads 1]

Prints billions of multiplications a second, gigabytes of weights a second, and how many times as fast as the fastest
product of PyTorch at the same number of rows each of ours is: PyTorch's are float32, bf16, and int8 with float
activations (``_weight_int8pack_mm``). Every figure is the best of many calls, over as many matrices as the last-level
cache cannot hold, so that weights come from memory as they do in decoding. Ours run as one program, as in a step, and
inputs are rounded within the measured time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from deepwell.lm.engine.native import library as native
from deepwell.lm.engine.native.program import Program, Rows

MEMORY = 2**27
"""Bytes of weights that a round of calls goes through."""


def seconds(calls: list[Callable[[], object]], rounds: int = 5) -> float:
    """Of one call: the least mean over some rounds through all of them."""
    best = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        for call in calls:
            call()
        best = min(best, (time.perf_counter() - begun) / len(calls))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,4,8,64,512")
    parser.add_argument("--inputs", type=int, default=576)
    parser.add_argument("--outputs", type=int, default=1536)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    library = native.library()
    if library is None:
        raise SystemExit("there is no compiled engine here")
    inputs, outputs = options.inputs, options.outputs
    print(f"[rows, {inputs}] x [{inputs}, {outputs}], {options.threads} threads, build for {library.instructions}")
    print(f"  {'':28}" + "".join(f"{rows:>26}" for rows in options.rows.split(",")))
    weight = torch.randn(outputs, inputs) * 0.05
    found: dict[str, list[tuple[float, float]]] = {}
    for rows in map(int, options.rows.split(",")):
        memory = Rows(rows)
        x, y = memory("x", inputs), memory("y", outputs)
        x.normal_()
        batch = native.Batch(rows=rows, threads=options.threads)
        for format in ("f32", "bf16", "int8", "int4"):
            program = Program(memory)
            count = 0
            while program.weight_bytes < MEMORY:
                program.linear(x, program.matrices([weight], format), y)
                count += 1
            taken = seconds([partial(program.run, library, batch)]) / count
            found.setdefault(f"deepwell {format}", []).append((taken, program.weight_bytes / count))
        plain, half = x.contiguous(), x.bfloat16().contiguous()
        scales = torch.ones(outputs, dtype=torch.bfloat16)
        peers: dict[str, tuple[int, Callable[[torch.Tensor], Callable[[], object]], torch.Tensor]] = {
            "torch float32": (4, lambda w, plain=plain: partial(F.linear, plain, w), weight),
            "torch bf16": (2, lambda w, half=half: partial(F.linear, half, w), weight.bfloat16()),
            "torch int8 weights": (
                1,
                lambda w, half=half, scales=scales: partial(torch._weight_int8pack_mm, half, w, scales),
                (weight * 500).clamp(-127, 127).to(torch.int8),
            ),
        }
        for name, (width, make, matrix) in peers.items():
            bytes_each = matrix.numel() * width
            copies = [make(matrix.clone()) for _ in range(-(-MEMORY // bytes_each))]
            # A product that takes long is not slower for coming from the cache.
            few = copies if rows < 64 else copies[:8]
            found.setdefault(name, []).append((seconds(few, 3), bytes_each))
    best = [
        min(found[name][index][0] for name in found if name.startswith("torch"))
        for index in range(len(options.rows.split(",")))
    ]
    for name, figures in found.items():
        cells = []
        for (taken, size), rows, peer in zip(figures, map(int, options.rows.split(",")), best, strict=True):
            cells.append(
                f"{rows * inputs * outputs / taken / 1e9:8.1f} G {size / taken / 1e9:5.1f} GB/s {peer / taken:5.2f}x"
            )
        print(f"  {name:28}" + "".join(f"{cell:>26}" for cell in cells))


if __name__ == "__main__":
    with torch.no_grad():
        main()
