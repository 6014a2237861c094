"""Forward and backward speed and memory of the network beside transformers, same config, same batch, same dtype.

Two pairs: a mixture of about 100M parameters and 32 experts beside transformers' DeepseekV3, and SmolLM2-135M
beside transformers' Llama. Each step is loss, backward pass and clearing the gradients; both sides get the same shapes,
the same number of tokens and threads, and run in a process of their own, one after the other, so that peak memory is
each side's own. Then time and memory of ours against the length of a sequence.

    python benchmarks/network.py [--dtype bf16|f32] [--steps 3] [--quick] [--only moe|llama|length]

Wanted: at least 2 times DeepseekV3's tokens a second, at least 1.5 times Llama's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
import warnings

import psutil

DTYPES = {"bf16": "bfloat16", "f32": "float32"}


def moe_config():  # type: ignore[no-untyped-def]
    """About 100M parameters: 8 layers, 32 experts of which a token takes 4."""
    from deepwell.lm.model.config import ModelConfig

    return ModelConfig(
        vocab_size=32_000, hidden_size=512, intermediate_size=1408, moe_intermediate_size=192, num_hidden_layers=8,
        first_k_dense_replace=1, num_attention_heads=8, n_routed_experts=32, n_shared_experts=1, num_experts_per_tok=4,
        n_group=4, topk_group=2, routed_scaling_factor=2.5, q_lora_rank=192, kv_lora_rank=128, qk_nope_head_dim=64,
        qk_rope_head_dim=32, v_head_dim=64, max_position_embeddings=4096,
    )  # fmt: skip


def build(which: str, side: str, dtype: str):  # type: ignore[no-untyped-def]
    """A function of tokens that gives the loss, and the model."""
    import torch

    from deepwell.lm.model.config import ModelConfig
    from deepwell.lm.model.transformer import Transformer

    torch.manual_seed(0)
    kind = getattr(torch, DTYPES[dtype])
    config = moe_config() if which == "moe" else ModelConfig.named("smollm2-135m")
    if side == "ours":
        model = Transformer(config, dtype=kind).train()
        return model, lambda tokens: model.loss(tokens).total
    import transformers

    content = config.to_hf()
    family = {"moe": "DeepseekV3", "llama": "Llama"}[which]
    peer_config = getattr(transformers, f"{family}Config")(**{k: v for k, v in content.items() if k != "architectures"})
    peer = getattr(transformers, f"{family}ForCausalLM")(peer_config).to(kind).train()
    return peer, lambda tokens: peer(input_ids=tokens, labels=tokens, use_cache=False).loss


def measure(which: str, side: str, dtype: str, batch: int, length: int, steps: int, threads: int) -> dict[str, float]:
    """Tokens a second of the fastest step, seconds forward and in all, peak resident memory above the model's."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    model, loss_of = build(which, side, dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    tokens = torch.randint(0, model.config.vocab_size, (batch, length))
    process, peak, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    best, forward = float("inf"), float("inf")
    for step in range(steps + 1):
        start = time.perf_counter()
        loss = loss_of(tokens)
        middle = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        model.zero_grad(set_to_none=True)
        if step:
            best, forward = min(best, end - start), min(forward, middle - start)
    done.set()
    watcher.join()
    return {
        "tokens_per_s": batch * length / best,
        "forward_s": forward,
        "step_s": best,
        "loss": float(loss.detach()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "model_mb": size / 1e6,
        "peak_mb": (peak[0] - before) / 1e6,
    }


def apart(*arguments: object) -> dict[str, float]:
    """``measure`` in a process of its own."""
    out = subprocess.run(
        [sys.executable, __file__, "--measure", *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return json.loads(out.stdout.splitlines()[-1])


def compare(which: str, dtype: str, batch: int, length: int, steps: int, threads: int) -> None:
    wanted = {"moe": 2.0, "llama": 1.5}[which]
    peer = {"moe": "DeepseekV3", "llama": "Llama"}[which]
    results = {side: apart(which, side, dtype, batch, length, steps, threads) for side in ("ours", "theirs")}
    size = results["ours"]["parameters"] / 1e6
    print(f"\n{which}: {size:.0f}M parameters, {dtype}, {batch} x {length} tokens, {threads} threads")
    print(f"  {'':26}{'tokens/s':>10}{'forward s':>11}{'step s':>9}{'peak MB above the model':>26}{'loss':>8}")
    for side, name in (("ours", "deepwell"), ("theirs", f"transformers {peer}")):
        r = results[side]
        speed = f"{r['tokens_per_s']:10.0f}{r['forward_s']:11.2f}{r['step_s']:9.2f}"
        print(f"  {name:26}{speed}{r['peak_mb']:26.0f}{r['loss']:8.3f}")
    speed = results["ours"]["tokens_per_s"] / results["theirs"]["tokens_per_s"]
    memory = results["ours"]["peak_mb"] / results["theirs"]["peak_mb"]
    print(f"  speed {speed:.2f}x (wanted {wanted}x), memory {memory:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="half the batch, one step")
    parser.add_argument("--only", choices=["moe", "llama", "length"])
    parser.add_argument("--measure", nargs=7, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        which, side, dtype, *numbers = options.measure
        print(json.dumps(measure(which, side, dtype, *map(int, numbers))))
        return
    batch, steps = (2, 1) if options.quick else (4, options.steps)
    for which in ("moe", "llama"):
        if options.only in {None, which}:
            compare(which, options.dtype, batch, 256, steps, options.threads)
    if options.only in {None, "length"}:
        print(f"\nOne sequence through the mixture of experts, forward and backward, {options.dtype}")
        print(f"  {'length':>8}{'step s':>9}{'tokens/s':>10}{'peak MB above the model':>26}")
        for length in (256, 512, 1024, 2048, 4096):
            r = apart("moe", "ours", options.dtype, 1, length, 1, options.threads)
            print(f"  {length:8}{r['step_s']:9.2f}{r['tokens_per_s']:10.0f}{r['peak_mb']:26.0f}")


if __name__ == "__main__":
    main()
