"""Memory and time of reading and writing a checkpoint, beside transformers, in one run.

    python benchmarks/loading.py [--megabytes 1500] [--threads 2] [--rounds 3]

A random DeepSeek-V3 network of about that size in bfloat16 is written to a temporary folder, in shards of a tenth of it
and once in FP8. Then each reader opens it in a process of its own:

- *peak over model*: the most memory that the process held (VmHWM), less what it held after its imports, over the bytes
  of the weights in memory. 1.00 would be the network and nothing else; "model + one shard" is the promise;
- *seconds*: from the call until every page of every weight has been looked at (transformers maps the file, and reads
  it only then). The median of the rounds; files are in the system's cache, so this is the reader's own work.

The writer's row is measured the same way, over a network that is already in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deepwell.lm.model.config import ModelConfig

SHARDS = 10


def config_of(megabytes: int) -> ModelConfig:
    """A V3 in small, with as many experts as make the size: bfloat16, no multi-token prediction."""
    base = ModelConfig.named("debug-moe").replace(
        vocab_size=32_000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=16,
        q_lora_rank=512, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, n_group=4,
        topk_group=2, num_nextn_predict_layers=0, moe_intermediate_size=512, n_shared_experts=1, num_experts_per_tok=4,
        max_position_embeddings=512,
    )  # fmt: skip
    an_expert = 3 * base.hidden_size * base.moe_intermediate_size * 2
    layers = base.num_hidden_layers - base.first_k_dense_replace
    rest = 2 * 2 * base.vocab_size * base.hidden_size + 120e6
    experts = max(8, round((megabytes * 1e6 - rest) / (an_expert * layers) / 8) * 8)
    return base.replace(n_routed_experts=experts)


def _memory(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM the most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"this system does not tell {field}")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(reader: str, folder: Path, threads: int) -> dict[str, float]:
    """In a process of its own: open the checkpoint, look at all weights, tell memory and time."""
    import torch

    torch.set_num_threads(threads)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    if reader == "transformers":
        from transformers import DeepseekV3ForCausalLM

        def call() -> Any:
            return DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    else:
        from deepwell.lm.model.transformer import Transformer  # noqa: F401
        from deepwell.lm.weights.reading import read_checkpoint
        from deepwell.lm.weights.writing import write_checkpoint

        if reader == "deepwell, writing":
            held = read_checkpoint(folder)

            def call() -> Any:
                with tempfile.TemporaryDirectory(dir=folder.parent) as place:
                    write_checkpoint(held, Path(place) / "m", shard_bytes=5e9)
                return held

        else:

            def call() -> Any:
                return read_checkpoint(folder)

    _forget_peak()
    before = _memory("VmRSS")
    start = time.perf_counter()
    model = call()
    for parameter in model.parameters():
        parameter.detach().flatten()[:: 4096 // parameter.element_size()].float().sum()
    seconds = time.perf_counter() - start
    size = sum(parameter.nbytes for parameter in model.parameters())
    return {"seconds": seconds, "over": _memory("VmHWM") - before, "model": size}


def _in_a_process(reader: str, folder: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", reader, "--folder", str(folder), "--threads", str(threads)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        raise SystemExit(f"{reader} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _write(megabytes: int, place: Path) -> tuple[Path, Path]:
    import torch

    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.weights.writing import write_checkpoint

    model = Transformer(config_of(megabytes), dtype=torch.bfloat16)
    size = sum(parameter.nbytes for parameter in model.parameters())
    write_checkpoint(model, place / "bf16", precision="bf16", shard_bytes=size / SHARDS)
    write_checkpoint(model, place / "fp8", precision="fp8", shard_bytes=size / SHARDS / 2)
    return place / "bf16", place / "fp8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder, options.threads)))
        return
    with tempfile.TemporaryDirectory(prefix="deepwell-loading-") as place:
        bf16, fp8 = _write(options.megabytes, Path(place))
        shard = max(path.stat().st_size for path in bf16.glob("*.safetensors"))
        runs = [("deepwell", bf16), ("transformers", bf16), ("deepwell, FP8 file", fp8), ("deepwell, writing", bf16)]
        found: dict[str, list[dict[str, float]]] = {name: [] for name, _ in runs}
        for _ in range(options.rounds):
            for name, folder in runs:
                found[name].append(_in_a_process(name, folder, options.threads))
    size = found["deepwell"][0]["model"]
    print(f"weights {size / 1e6:,.0f} MB in bfloat16, largest shard {shard / 1e6:,.0f} MB")
    print("| reader | seconds | peak MB | peak over model | peak over model and one shard |")
    print("|---|---|---|---|---|")
    for name, measured in found.items():
        seconds = statistics.median(run["seconds"] for run in measured)
        over = max(run["over"] for run in measured) + (size if name.endswith("writing") else 0)
        print(f"| {name} | {seconds:.2f} | {over / 1e6:,.0f} | {over / size:.3f} | {over / (size + shard):.3f} |")


if __name__ == "__main__":
    main()
