"""The engine beside llama.cpp and transformers: same model, same tokens, same machine, same threads, one run.

    python benchmarks/engine.py --peer-python PATH [--only ours|llama|transformers] [--precisions int8,int4]
        [--formats F16,Q8_0,Q4_0] [--runs 3]

``--peer-python`` is a Python with llama-cpp-python; its files are made here from our own export by llama.cpp's own
quantiser. Every side runs in a process of its own, one after the other; every figure is the best of the runs.

    (a) a request of 512 prompt and 64 new tokens              wanted: at most 0.7 of llama.cpp's best time
    (b) decoding alone, behind 512 tokens                      wanted: at least as fast
    (c) 8 requests of 64 and 64 tokens at once                 wanted: 1.5 times llama.cpp's batched decoding
    (d) a 64-token answer that repeats its prompt              wanted: at most half of llama.cpp's time
    (e) a second question on the same 512 tokens               wanted: first token in a quarter of the first's time

transformers' decoding is to be at least 4 times slower. Below stand the ceilings of this machine (bytes read and
products made a second) and what share of them ours reaches.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MODEL = "smollm2-135m-instruct"
PROMPT, NEW, AT_ONCE, SHORT = 512, 64, 8, 64
QUANTS = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7}
"""llama.cpp's numbers for its formats."""


def best(runs: int, run: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The least time of each kind over some runs, the first of which only warms up."""
    run()
    made = [run() for _ in range(runs)]
    return {key: min(one[key] for one in made) for key in made[0]}


def ours(tokens: dict, where: Path, runs: int, threads: int) -> dict[str, float]:  # type: ignore[type-arg]
    """All five in the precision that ``where`` is named after, and the machine's ceilings."""
    import torch

    from deepwell.lm import Model, SamplingParams

    torch.set_num_threads(threads)
    model = Model.load(where.parent / "f32", precision=where.name, device="cpu")
    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)

    def timed(prompt: list[int], speculate: bool) -> tuple[float, float]:
        begun = time.perf_counter()
        first = 0.0
        with model.begin(prompt, params) as request:
            if not speculate:
                request.sequence.drafter = None
            for _ in request.pieces():
                first = first or time.perf_counter() - begun
        return first, time.perf_counter() - begun

    def run() -> dict[str, float]:
        model.engine.allocator.forget()
        first, whole = timed(tokens["prompt"], False)
        again, _ = timed(tokens["second"], False)
        model.engine.allocator.forget()
        _, quoting = timed(tokens["quote"], True)
        model.engine.allocator.forget()
        _, plain = timed(tokens["quote"], False)
        model.engine.allocator.forget()
        requests = [model.begin(one, params) for one in tokens["many"]]
        for request in requests:
            request.sequence.drafter = None
        while any(request.sequence.outbox.__len__() < 1 for request in requests):
            model.engine.step()
        begun, before = time.perf_counter(), sum(len(request.sequence.outbox) for request in requests)
        while model.engine.busy:
            model.engine.step()
        many = (time.perf_counter() - begun) / (AT_ONCE * NEW - before)
        return {
            "first": first, "whole": whole, "token": (whole - first) / (NEW - 1), "many": many, "again": again,
            "quote": quoting, "quote_plain": plain,
        }  # fmt: skip

    found = best(runs, run)
    counters = model.engine.counters
    found["accepted"] = counters.accepted / max(1, counters.proposed)
    found["weight_bytes"] = model.engine.weight_bytes
    found["parameters"] = sum(parameter.numel() for parameter in model.network.parameters())
    found["embedding"] = model.network.embed_tokens.weight.numel()
    large, wide = torch.zeros(2**27), torch.randn(1536, 1536)
    found["read_gb_s"] = 2**29 / 1e9 / best(3, lambda: _seconds(large.sum))["s"]
    found["gflop_s"] = 2 * 1536**3 / 1e9 / best(3, lambda: _seconds(lambda: wide @ wide))["s"]
    return found


def _seconds(call: Callable[[], object]) -> dict[str, float]:
    begun = time.perf_counter()
    call()
    return {"s": time.perf_counter() - begun}


def transformers(tokens: dict, folder: Path, runs: int, threads: int) -> dict[str, float]:  # type: ignore[type-arg]
    """(a) and (b) by transformers' generate, in the precision that is faster for it here."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder / "f32", dtype=torch.float32)
    ids = torch.tensor([tokens["prompt"]])

    def timed(count: int) -> float:
        begun = time.perf_counter()
        with torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False
            )
        return time.perf_counter() - begun

    def run() -> dict[str, float]:
        first, whole = timed(1), timed(NEW)
        return {"first": first, "whole": whole, "token": (whole - first) / (NEW - 1)}

    return best(runs, run)


def llama(tokens: dict, file: Path, runs: int, threads: int) -> dict[str, float]:  # type: ignore[type-arg]
    """(a) to (d) by llama.cpp through its C interface, greedy; its own prompt cache gives (e)."""
    import llama_cpp as c
    import numpy as np

    silent = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(silent, ctypes.c_void_p())
    c.llama_backend_init()
    model = c.llama_model_load_from_file(str(file).encode(), c.llama_model_default_params())
    options = c.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = 8192, 512, 512, AT_ONCE
    options.n_threads = options.n_threads_batch = threads
    options.kv_unified = True
    context = c.llama_init_from_model(model, options)
    memory = c.llama_get_memory(context)
    vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    batch = c.llama_batch_init(1024, 0, 1)

    def decode(entries: list[tuple[int, int, int, bool]]) -> None:
        """Entries are token, place, sequence, and whether its logits are wanted."""
        batch.n_tokens = len(entries)
        for index, (token, place, sequence, wanted) in enumerate(entries):
            batch.token[index], batch.pos[index], batch.logits[index] = token, place, wanted
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        if c.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")

    def choose(index: int) -> int:
        return int(np.ctypeslib.as_array(c.llama_get_logits_ith(context, index), (vocab,)).argmax())

    def feed(prompt: list[int], start: int = 0, sequence: int = 0) -> int:
        for begin in range(start, len(prompt), 512):
            part = prompt[begin : begin + 512]
            last = begin + len(part) == len(prompt)
            decode([(t, begin + i, sequence, last and i == len(part) - 1) for i, t in enumerate(part)])
        return choose((len(prompt) - start - 1) % 512)

    def timed(prompt: list[int]) -> tuple[float, float]:
        c.llama_memory_clear(memory, True)
        begun = time.perf_counter()
        token = feed(prompt)
        first = time.perf_counter() - begun
        for place in range(len(prompt), len(prompt) + NEW - 1):
            decode([(token, place, 0, True)])
            token = choose(0)
        return first, time.perf_counter() - begun

    def run() -> dict[str, float]:
        first, whole = timed(tokens["prompt"])
        c.llama_memory_seq_rm(memory, 0, tokens["shared"], -1)
        again = _seconds(lambda: feed(tokens["second"], tokens["shared"]))["s"]
        _, quoting = timed(tokens["quote"])
        c.llama_memory_clear(memory, True)
        last = [feed(one, 0, sequence) for sequence, one in enumerate(tokens["many"])]
        begun = time.perf_counter()
        for place in range(SHORT, SHORT + NEW - 1):
            decode([(token, place, sequence, True) for sequence, token in enumerate(last)])
            last = [choose(index) for index in range(AT_ONCE)]
        many = (time.perf_counter() - begun) / (AT_ONCE * (NEW - 1))
        return {
            "first": first, "whole": whole, "token": (whole - first) / (NEW - 1), "many": many, "again": again,
            "quote": quoting,
        }  # fmt: skip

    return best(runs, run)


def quantise(source: Path, target: Path, kind: int) -> None:
    """A GGUF file in one of llama.cpp's formats, by its own quantiser."""
    import llama_cpp as c

    silent = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(silent, ctypes.c_void_p())
    options = c.llama_model_quantize_default_params()
    options.ftype, options.nthread = kind, 2
    if c.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)):
        raise RuntimeError(f"{target} could not be made")


def prepare(folder: Path) -> dict:  # type: ignore[type-arg]
    """The model in the formats that the sides read, and the tokens of all requests."""
    from deepwell.lm import load, save

    network, tokenizer = load(MODEL, dtype="f32")
    if not (folder / "f32").exists():
        save(network, folder / "f32", precision="f32", tokenizer=tokenizer)
        for precision in ("f16", "bf16"):
            file = folder / f"{precision.upper()}.gguf"
            save(network, file, format="gguf", precision=precision, tokenizer=tokenizer)
    text = (Path(__file__).resolve().parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    ids = tokenizer.encode(text)
    ask = tokenizer.encode("\n\nQuestion: what is this about? Answer:")
    other = tokenizer.encode("\n\nQuestion: which part knows no documents? Answer:")
    shared = PROMPT - len(ask)
    # A network that has read a text twice goes on repeating it.
    passage = ids[200:370]
    return {
        "prompt": ids[:shared] + ask, "second": ids[:shared] + other, "shared": shared,
        "quote": passage + passage + passage[:20], "many": [ids[600 + 70 * i :][:SHORT] for i in range(AT_ONCE)],
    }  # fmt: skip


def table(results: dict[str, dict[str, float]]) -> None:
    """All figures, and the wanted ratios where both sides are there."""
    print(f"\n{MODEL}: seconds, tokens a second; best of the runs")
    heads = ("first token s", "(a) request s", "(b) tok/s", "(c) tok/s at 8", "(d) quote s", "(e) 2nd first s")
    print(f"  {'':24}" + "".join(f"{head:>16}" for head in heads))
    for name, r in results.items():
        cells = [
            r.get("first"), r.get("whole"), 1 / r["token"], 1 / r["many"] if "many" in r else None, r.get("quote"),
            r.get("again"),
        ]  # fmt: skip
        print(f"  {name:24}" + "".join(f"{'-':>16}" if cell is None else f"{cell:16.3f}" for cell in cells))
    for name, mine in results.items():
        if name.startswith("deepwell"):
            _beside(name, mine, results)


def _beside(name: str, mine: dict[str, float], results: dict[str, dict[str, float]]) -> None:
    """One of our precisions beside the best of the others."""
    print(f"\n  {name}")
    peers = [r for other, r in results.items() if other.startswith("llama.cpp")]
    if peers:

        def least(key: str) -> float:
            return min(r[key] for r in peers)

        print("  beside the best of llama.cpp's formats at each:")
        print(f"  (a) request: {mine['whole'] / least('whole'):.2f} of its time (wanted at most 0.70)")
        print(f"  (b) decoding: {least('token') / mine['token']:.2f} of its speed (wanted at least 1)")
        print(f"  (c) {AT_ONCE} at once: {least('many') / mine['many']:.2f} of its speed (wanted at least 1.5)")
        print(f"  (d) quoting: {mine['quote'] / least('quote'):.2f} of its time (wanted at most 0.5)")
    print(f"  (d) with drafts {mine['quote_plain'] / mine['quote']:.2f} times as fast as without; "
          f"{mine['accepted']:.0%} of the drafted tokens were right")  # fmt: skip
    print(f"  (e) the second question: {mine['again'] / mine['first']:.2f} of the first's time (wanted at most 0.25)")
    if "transformers" in results:
        ratio = results["transformers"]["token"] / mine["token"]
        print(f"  transformers: decoding {ratio:.2f} times as fast as its own (wanted at least 4)")
    read = mine["weight_bytes"] / mine["token"] / 1e9
    made = 2 * (mine["parameters"] - mine["embedding"]) * PROMPT / mine["first"] / 1e9
    print(f"  ceilings: decoding reads {read:.1f} of {mine['read_gb_s']:.1f} GB/s ({read / mine['read_gb_s']:.0%}); "
          f"the prompt takes {made:.0f} of {mine['gflop_s']:.0f} GFLOP/s ({made / mine['gflop_s']:.0%})")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="a Python with llama-cpp-python")
    parser.add_argument("--only", help="sides to run, by commas: ours, llama, transformers")
    parser.add_argument("--precisions", default="f32,bf16,int8,int4", help="ours, by commas")
    parser.add_argument("--formats", default="F16,BF16,Q8_0,Q4_1,Q4_0", help="llama.cpp's, by commas")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where the model's files are made, and kept; by default nothing is kept")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, where = options.side
        folder = Path(options.folder)
        if side == "quantise":
            quantise(folder / "F16.gguf", Path(where), QUANTS[Path(where).stem])
            return
        tokens = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        measure = {"ours": ours, "llama": llama, "transformers": transformers}[side]
        print(json.dumps(measure(tokens, Path(where), options.runs, options.threads)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokens.json").write_text(json.dumps(prepare(folder)), encoding="utf-8")
        sides = options.only.split(",") if options.only else ["ours", "llama", "transformers"]

        def apart(python: str, side: str, where: Path) -> str:
            more = ["--folder", str(folder), "--runs", str(options.runs), "--threads", str(options.threads)]
            command = [python, __file__, "--side", side, str(where), *more]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

        results: dict[str, dict[str, float]] = {}
        if "ours" in sides:
            for name in options.precisions.split(","):
                results[f"deepwell {name}"] = json.loads(apart(sys.executable, "ours", folder / name).splitlines()[-1])
        if "llama" in sides and options.peer_python:
            for name in options.formats.split(","):
                file = folder / f"{name}.gguf"
                if not file.exists():
                    apart(options.peer_python, "quantise", file)
                results[f"llama.cpp {name}"] = json.loads(apart(options.peer_python, "llama", file).splitlines()[-1])
        if "transformers" in sides:
            results["transformers"] = json.loads(apart(sys.executable, "transformers", folder).splitlines()[-1])
        table(results)


if __name__ == "__main__":
    main()
