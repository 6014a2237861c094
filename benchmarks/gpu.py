"""The GPU path in one command: is it right, and how fast is it. Made for a GPU that is there for a few minutes.

    PYTHONPATH=src python benchmarks/gpu.py [--models smollm2-135m ...] [--only checks kernels training steps models]

First the checks of ``gpu_checks``; then this GPU's own ceilings (bytes copied and bf16 products made a second), and
beside them:

    kernels   decoding attention, by tiling, beside torch's attention over the same rows; FP8 products beside bf16
    training  the three products of a layer in FP8, rounding included, beside bf16, and torch's own FP8 product
    steps     whole training steps in bf16 and FP8 beside transformers and torchao, up to 1B (``gpu_steps``, 3 minutes)
    models    random weights of published shapes through the engine: prefill, one request, 8 and 64 at once, in bf16
              with and without graphs, and in FP8; transformers' generate on the same shape where it has one

Prints tables and writes ``gpu.json`` into the folder $OUT (or ``out``) after each part, so what was measured before an
error or the end of the time is kept. Ends with 1 if a check failed. Without a GPU it says so, runs the checks in
Triton's interpreter, and compiles the kernels (``gpu_kernels``); ``gpu_steps.py --check`` tries the steps there. Needs
torch, triton and transformers, and no network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELS = ("smollm2-135m", "r1-distill-qwen-1.5b", "r1-distill-llama-8b", "deepseek-v2-lite")
PARTS = ("checks", "kernels", "training", "steps", "models")
PROMPT, NEW = 512, 64
HERE = Path(__file__).parent


def ceilings() -> dict[str, float]:
    """Bytes read and written a second by a large copy, and bf16 operations a second of a large product."""
    import torch
    from triton.testing import do_bench

    source = torch.randint(127, (2**31,), dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() / (do_bench(lambda: target.copy_(source), return_mode="median") / 1000)
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    multiplied = 2 * 8192**3 / (do_bench(lambda: a @ b, return_mode="median") / 1000)
    return {"bytes_a_second": copied, "flops_a_second": multiplied}


def time_attention(name: str, batch: int, length: int, peak: dict[str, float]) -> list[dict[str, Any]]:
    """One layer's decoding attention: microseconds of torch and of each tiling, and the share of the copy's speed."""
    import torch
    from triton.testing import do_bench

    from deepwell.lm.engine.gpu.attention import Looks, Tiling, decode_attention, splits_for, tiling_for
    from deepwell.lm.model.config import ModelConfig
    from gpu_checks import look_at

    config = ModelConfig.named(name)
    gpu = torch.cuda.get_device_properties(0)
    latent, rope, rows, tables, ends = look_at(config, [length] * batch, torch.bfloat16, "cuda")
    looks, given = Looks(tables, torch.zeros_like(ends), ends), None if config.is_grouped else latent
    moved = batch * length * config.latent_width * 2
    place = torch.arange(length, device="cuda")
    # Gathered beforehand, torch's best case: [batch, S, W].
    seen = rows[tables.long()[:, place // 16] * 16 + place % 16]
    groups, rank = config.rope_key_heads, config.kv_lora_rank
    if config.is_grouped:
        keys, values = (
            part.unflatten(2, (groups, -1)).transpose(1, 2) for part in (seen[..., rank:], seen[..., :rank])
        )
        query = rope[:, :, None]
    else:
        keys, values, query = seen[:, None], seen[:, None, :, :rank], torch.cat([latent, rope], -1)[:, :, None]

    def plain() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, scale=config.softmax_scale, enable_gqa=True
        )

    took = do_bench(plain, return_mode="median")
    found = [
        {"kernel": "torch, rows gathered", "us": took * 1000, "share": moved / took * 1000 / peak["bytes_a_second"]}
    ]
    chosen = tiling_for(config, gpu.shared_memory_per_block_optin)
    tilings = {chosen, *(Tiling(chosen.heads, places, warps, stages)
                         for places in (16, 32, 64, 128) for warps in (4, 8) for stages in (2, 3))}  # fmt: skip
    for tiling in sorted(tilings, key=lambda one: (one != chosen, one.places, one.warps, one.stages)):
        splits = splits_for(batch, config, tiling, gpu.multi_processor_count, length)

        def ours(tiling: Tiling = tiling, splits: int = splits) -> torch.Tensor:
            return decode_attention(config, given, rope, rows, looks, block_size=16, splits=splits, tiling=tiling)

        try:
            took = do_bench(ours, return_mode="median")
        except Exception as problem:  # out of shared memory, mostly
            found.append({"kernel": f"{tiling}", "error": f"{type(problem).__name__}"})
            continue
        what = f"heads {tiling.heads} places {tiling.places} warps {tiling.warps} stages {tiling.stages}"
        what += f", {splits} splits"
        share = moved / took * 1000 / peak["bytes_a_second"]
        found.append({"kernel": what + (" (chosen)" if tiling == chosen else ""), "us": took * 1000, "share": share})
    return found


def time_product(rows: int, columns: int, depth: int, peak: dict[str, float]) -> dict[str, Any]:
    """A product in bf16 and with FP8 weights: microseconds, and shares of the nearer ceiling."""
    import torch
    from triton.testing import do_bench

    from deepwell.lm.precision.fp8_products import Fp8Matrix, fp8_linear

    # Several matrices in turn, so that none is still in the GPU's cache.
    count = max(2, 2**28 // (columns * depth))
    weights = [torch.randn(columns, depth, dtype=torch.bfloat16, device="cuda") for _ in range(count)]
    matrices = [Fp8Matrix.of(weight) for weight in weights]
    x = torch.randn(rows, depth, dtype=torch.bfloat16, device="cuda")
    found: dict[str, Any] = {"shape": f"{rows} x {columns} x {depth}"}
    for kind, run, width in (
        ("bf16", lambda: [torch.nn.functional.linear(x, one) for one in weights], 2),
        ("fp8", lambda: [fp8_linear(x, one) for one in matrices], 1),
    ):
        took = do_bench(run, return_mode="median") / count
        floor = max(
            (columns * depth * width + 2 * rows * (columns + depth)) / peak["bytes_a_second"],
            2 * rows * columns * depth / peak["flops_a_second"],
        )
        found |= {f"{kind}_us": took * 1000, f"{kind}_share": floor / took * 1000}
    return found


def time_training(rows: int, columns: int, depth: int, experts: int, peak: dict[str, float]) -> dict[str, Any]:
    """Each product of a layer's training step in bf16 and FP8: microseconds with and without rounding its operands."""
    import torch
    from torch.nn import functional as F
    from triton.testing import do_bench

    from deepwell.lm.precision.fp8_gpu import Kernels, _by_rows, _even_tiles

    kernels = Kernels(False)
    x, grad = (torch.randn(rows, width, dtype=torch.bfloat16, device="cuda") for width in (depth, columns))
    weight = torch.randn(*([experts] if experts else []), columns, depth, device="cuda")
    narrow = weight.bfloat16()
    loads = torch.bincount(torch.randint(max(experts, 1), (rows,)), minlength=max(experts, 1))
    offsets = loads.cumsum(0).to(device="cuda", dtype=torch.int32) if experts else None
    tiles, kept = kernels.rows(x), kernels.columns(x, offsets)
    flat = weight.flatten(0, -2)
    values, scales = kernels._rounded(flat, _even_tiles(flat, max(experts, 1)), transposed=False, whole=True)
    by_group = (columns * depth, scales.shape[0] // max(experts, 1) * scales.stride(0))
    out = torch.empty_like(grad)
    runs: dict[str, Callable[[], Any]] = {
        "fp8 product alone": lambda: _by_rows(tiles, values, scales, by_group, depth, out, offsets, max(experts, 1)),
        "fp8 rounding rows": lambda: kernels.rows(x),
        "fp8 rounding columns": lambda: kernels.columns(x, offsets),
        "fp8 forward": lambda: kernels.forward(kernels.rows(x), weight, offsets, torch.bfloat16),
        "fp8 grad of input": lambda: kernels.grad_input(grad, weight, offsets),
        "fp8 grad of weight": lambda: kernels.grad_weight(grad, kept.values, kept.scales, weight, offsets),
    }  # fmt: skip
    if experts:
        runs["bf16 forward"] = lambda: F.grouped_mm(x, narrow.transpose(1, 2), offs=offsets)
        runs["bf16 grad of input"] = lambda: F.grouped_mm(grad, narrow, offs=offsets)
        runs["bf16 grad of weight"] = lambda: F.grouped_mm(grad.t(), x, offs=offsets)
    else:
        runs["bf16 forward"] = lambda: x @ narrow.t()
        runs["bf16 grad of input"] = lambda: grad @ narrow
        runs["bf16 grad of weight"] = lambda: grad.t() @ x
        # cuBLAS wants the scales of rows one column after the other.
        turned, right = tiles.scales.t().contiguous().t(), values.view(torch.float8_e4m3fn).t()
        kinds = F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128
        for name, other in (("", scales), (", scales turned", scales.t())):
            runs[f"torch.scaled_mm product alone{name}"] = lambda other=other: F.scaled_mm(  # type: ignore[misc]
                tiles.values, right, turned, kinds[0], other, kinds[1], output_dtype=torch.bfloat16
            )
    found: dict[str, Any] = {"shape": f"{rows} x {columns} x {depth}, {experts or 'no'} experts"}
    right_one = runs["fp8 product alone"]().float()
    for name, run in runs.items():
        try:
            took = do_bench(run, return_mode="median")
            found[f"{name}, us"] = took * 1000
            if "product" in name:
                found[f"{name}, share of bf16's peak"] = (
                    2 * rows * columns * depth / took * 1000 / peak["flops_a_second"]
                )
            if "scaled_mm" in name:
                found[f"{name}, away from ours"] = float((run().float() - right_one).norm() / right_one.norm())
        except Exception as problem:  # torch's own product has demands that differ by version and GPU
            found[name] = f"{type(problem).__name__}: {str(problem)[:200]}"
    return found


def weight_bytes(model: Any, batch: int) -> float:
    """Bytes of weights that a decoding step of ``batch`` tokens reads: of experts those that are likely taken."""
    config = model.config
    total = 0.0
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        looked_up = name == "embed_tokens.weight" and not config.tie_word_embeddings
        if looked_up or name.startswith("mtp."):
            continue
        share = 1.0
        if ".experts." in name:
            share = 1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** batch
        total += share * tensor.numel() * tensor.element_size()
    return total


def time_engine(model: Any, peak: dict[str, float], graphs: bool) -> dict[str, Any]:
    """Prefill and decoding, alone and for 8 and 64 requests; tokens a second and shares of the ceilings."""
    import torch

    from deepwell.lm.engine.engine import Engine
    from deepwell.lm.engine.params import SamplingParams
    from deepwell.lm.engine.sampler import SamplerState

    config = model.config
    row = config.cache_bytes_per_token(2)
    engine = Engine(model, cache_bytes=80 * (PROMPT + NEW) * row, token_budget=4096, most_sequences=64, speculate=False)
    runner: Any = engine._runner
    if not graphs:
        runner.eager_because = "asked for"
    found: dict[str, Any] = {}
    for batch in (1, 8, 64):
        best: dict[str, float] = {}
        for _ in range(3):  # the first compiles and records
            engine.allocator.forget()
            sequences = []
            for _ in range(batch):
                prompt = torch.randint(config.vocab_size, (PROMPT,)).tolist()
                state = SamplerState(SamplingParams(temperature=0), prompt, config.vocab_size)
                sequences.append(engine.add(prompt, state, most=NEW))
            torch.cuda.synchronize()
            begun = time.perf_counter()
            while any(len(one.tokens) == PROMPT for one in sequences):
                engine.step()
            torch.cuda.synchronize()
            middle, before = time.perf_counter(), sum(len(one.answer) for one in sequences)
            while engine.busy:
                engine.step()
            torch.cuda.synchronize()
            decoded = sum(len(one.answer) for one in sequences) - before
            times = {"prefill": batch * PROMPT / (middle - begun), "decode": decoded / (time.perf_counter() - middle)}
            best = {key: max(value, best.get(key, 0.0)) for key, value in times.items()}
        read = weight_bytes(model, batch) + batch * (PROMPT + NEW / 2) * row
        best["decode_share"] = best["decode"] / batch * read / peak["bytes_a_second"]
        active = weight_bytes(model, 1) / (1 if any("values" in name for name, _ in model.named_buffers()) else 2)
        best["prefill_share"] = best["prefill"] * 2 * active / peak["flops_a_second"]
        found[str(batch)] = best
    if graphs and runner.eager_because is not None:
        found["eager_because"] = runner.eager_because
    return found


def time_transformers(config: Any, batch: int) -> dict[str, float]:
    """Decoding tokens a second of ``generate`` with its default cache, on the same shape."""
    import torch
    import transformers

    content = {key: value for key, value in config.to_hf().items() if key not in ("architectures", "torch_dtype")}
    name = config.to_hf()["architectures"][0]
    kind = getattr(transformers, name)
    made = kind.config_class(**content)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            peer = kind(made).eval()
        finally:
            torch.set_default_dtype(torch.float32)
    prompt = torch.randint(config.vocab_size, (batch, PROMPT), device="cuda")
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}

    def timed(count: int) -> float:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        peer.generate(prompt, min_new_tokens=count, max_new_tokens=count, **options)
        torch.cuda.synchronize()
        return time.perf_counter() - begun

    timed(4)
    first = min(timed(1) for _ in range(2))
    return {
        "prefill": batch * PROMPT / first,
        "decode": batch * (NEW - 1) / (min(timed(NEW) for _ in range(2)) - first),
    }


def time_model(name: str, peak: dict[str, float], keep: Callable[[str, Any], None]) -> None:
    """One shape in all of its forms; ``keep`` is told each result at once."""
    import gc

    import torch

    from deepwell.lm.engine.gpu.fp8_layers import to_fp8
    from deepwell.lm.model.config import ModelConfig
    from deepwell.lm.model.transformer import Transformer

    config = ModelConfig.named(name).replace(max_position_embeddings=16384)
    torch.manual_seed(0)
    model = Transformer(config, device="cuda", dtype=torch.bfloat16).eval()
    keep(f"{name}, bf16", time_engine(model, peak, graphs=True))
    keep(f"{name}, bf16 without graphs", time_engine(model, peak, graphs=False))
    gc.collect()
    to_fp8(model, "cuda")
    keep(f"{name}, fp8", time_engine(model, peak, graphs=True))
    del model
    gc.collect()
    torch.cuda.empty_cache()
    keep(f"{name}, transformers", {str(batch): time_transformers(config, batch) for batch in (1, 8)})
    gc.collect()
    torch.cuda.empty_cache()


def shown(value: Any) -> str:
    """A result on one line."""
    if isinstance(value, dict):
        return "  ".join(f"{key} {shown(one)}" for key, one in value.items())
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    return str(value)


def main() -> int:
    """Check, then measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--only", nargs="+", choices=PARTS)
    args = parser.parse_args()
    parts = args.only or PARTS

    import torch

    here = torch.cuda.is_available()
    if not here:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    sys.path.insert(0, str(HERE))
    import gpu_checks
    import gpu_steps

    results: dict[str, Any] = {"torch": torch.__version__}
    out = Path(os.environ.get("OUT", "out")) / "gpu.json"
    out.parent.mkdir(parents=True, exist_ok=True)

    def keep(name: str, value: Any) -> None:
        results[name] = value
        out.write_text(json.dumps(results, indent=1))
        print(f"{name:<44}{shown(value)}", flush=True)

    def tried(name: str, measure: Callable[[], Any]) -> None:
        try:
            value = measure()
        except Exception as problem:  # whatever fails, the rest is still measured
            traceback.print_exc()
            value = {"error": f"{type(problem).__name__}: {str(problem)[:500]}"}
        if value is not None:
            keep(name, value)

    keep("device", torch.cuda.get_device_name() if here else "no GPU: kernels run in Triton's interpreter")
    wrong = []
    if "checks" in parts or not here:
        torch.manual_seed(int(time.time()))
        for name, (error, limit) in gpu_checks.all_checks("cuda" if here else "cpu").items():
            keep(f"check {name}", {"error": error, "limit": limit})
            wrong += [] if error <= limit else [name]
        print(f"{len(wrong)} checks failed" + "".join(f"\n  {name}" for name in wrong))
    if not here:
        subprocess.run([sys.executable, HERE / "gpu_kernels.py"], check=False)
        print("Whole training steps are not tried here: python benchmarks/gpu_steps.py --check does, in seconds.")
        return bool(wrong)
    peak = ceilings()
    keep("ceilings", peak)
    if "kernels" in parts:
        for name in ("deepseek-v3", "deepseek-v2-lite", "r1-distill-llama-8b"):
            for batch, length in ((1, 4096), (8, 4096), (64, 1024)):
                tried(
                    f"attention {name}, {batch} x {length}",
                    lambda: time_attention(name, batch, length, peak),  # noqa: B023
                )
        for rows in (1, 16, 64, 512, 4096):
            for columns, depth in ((4096, 4096), (14336, 4096), (2112, 7168)):
                tried(f"product {rows} x {columns} x {depth}", lambda: time_product(rows, columns, depth, peak))  # noqa: B023
    if "training" in parts:
        for rows, columns, depth, experts in (
            (4096, 4096, 4096, 0), (8192, 7168, 2048, 0), (8192, 2112, 7168, 0), (16384, 4096, 7168, 8)
        ):  # fmt: skip
            tried(
                f"training {rows} x {columns} x {depth}, {experts} experts",
                lambda: time_training(rows, columns, depth, experts, peak),  # noqa: B023
            )
    if "steps" in parts:
        tried("steps, all", lambda: gpu_steps.measure(peak["flops_a_second"], keep))
    if "models" in parts:
        for name in args.models:
            tried(f"{name}, all", lambda: time_model(name, peak, keep))  # noqa: B023
    print(f"written: {out}")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
