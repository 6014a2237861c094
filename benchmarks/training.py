"""Whole training steps beside transformers' Trainer: tokens a second and memory, same config, batch, data and threads.

Three pairs in bf16 over float32 master weights: a mixture of about 100M parameters and 32 experts beside DeepseekV3,
SmolLM2-135M beside Llama, and adapters (LoRA, rank 16 at every matrix) on SmolLM2-135M beside peft. A step is loss,
backward pass, clipping of the gradients, AdamW and clearing; the peers take theirs from ``Trainer(bf16=True,
use_cpu=True)`` as its users do. A further row has the peer with its weights in bf16 (no master weights, which costs
quality: small updates are rounded away).

Every side runs in a process of its own, the sides in turn, ``--rounds`` times; the fastest step counts. Memory is the
peak of the resident set above what the process had before the model was made: weights, gradients, optimizer, activations.

    python benchmarks/training.py [--only moe|llama|lora] [--batch 4] [--length 512] [--steps 4] [--rounds 2] [--json FILE]

Wanted: at least 2 times DeepseekV3's tokens a second, at least 1.5 times Llama's; at most 0.7 of their memory. Needs
`pip install -e '.[lm,hub,bench]'`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from network import moe_config

PEERS = {"moe": "DeepseekV3", "llama": "Llama", "lora": "Llama and peft"}
WANTED = {"moe": 2.0, "llama": 1.5, "lora": 1.5}
MEMORY = 0.7
SIDES = ("deepwell", "trainer", "trainer-bf16")
RANK, ALPHA = 16, 32
LEARNING_RATE, DECAY, CLIP = 1e-4, 0.1, 1.0


@contextmanager
def resident() -> Iterator[Callable[[], float]]:
    """Watch the resident set; the function that it gives returns the peak so far, in MB above the start."""
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    peak = [before]

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: (peak[0] - before) / 1e6
    finally:
        done.set()
        watcher.join()


def config_of(which: str) -> Any:
    from deepwell.lm.model.config import ModelConfig

    return moe_config() if which == "moe" else ModelConfig.named("smollm2-135m")


def rows(vocabulary: int, batch: int, length: int, steps: int) -> Any:
    """The tokens of all steps, [steps, batch, length]: the same on both sides."""
    import torch

    return torch.randint(0, vocabulary, (steps, batch, length), generator=torch.Generator().manual_seed(1))


def train_ours(which: str, batch: int, length: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds and loss of each step of Deepwell."""
    import torch

    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.weights.lora import LoraConfig, add_lora

    torch.manual_seed(0)
    model = Transformer(config_of(which)).train()
    model.compute_dtype = torch.bfloat16
    if which == "lora":
        add_lora(model, LoraConfig(rank=RANK, alpha=ALPHA, targets=("all-linear",)))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, LEARNING_RATE, weight_decay=DECAY, fused=True)
    seconds, losses = [], []
    for tokens in rows(model.config.vocab_size, batch, length, steps):
        start = time.perf_counter()
        total = model.loss(tokens).total
        total.backward()
        torch.nn.utils.clip_grad_norm_(learned, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total.detach()))
        model.reset_expert_loads()
        seconds.append(time.perf_counter() - start)
    return seconds, losses


def train_theirs(which: str, half: bool, batch: int, length: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds and loss of each step of transformers' Trainer; ``half``: weights in bf16 too."""
    import torch
    import transformers

    torch.manual_seed(0)
    content = {key: value for key, value in config_of(which).to_hf().items() if key != "architectures"}
    family = "DeepseekV3" if which == "moe" else "Llama"
    config = getattr(transformers, f"{family}Config")(**content)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    if half:
        model = model.to(torch.bfloat16)
    if which == "lora":
        import peft

        adapter = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, adapter)
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    class Tokens(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.rows = rows(config.vocab_size, batch, length, steps).flatten(0, 1)

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": self.rows[index], "labels": self.rows[index]}

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=batch, gradient_accumulation_steps=1, max_steps=steps, bf16=True,
            use_cpu=True, learning_rate=LEARNING_RATE, weight_decay=DECAY, max_grad_norm=CLIP, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, train_sampling_strategy="sequential",
            optim="adamw_torch_fused",
        )  # fmt: skip
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Tokens(), callbacks=[Clock()])
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return [end - start for start, end in zip(ends[:-1], ends[1:], strict=True)], losses


def measure(which: str, side: str, batch: int, length: int, steps: int, threads: int) -> dict[str, float]:
    """One side: seconds of the fastest step after the first, peak memory in MB, the first step's loss."""
    warnings.simplefilter("ignore")
    import torch

    import deepwell.lm.weights.lora
    from deepwell.lm.model.transformer import Transformer  # noqa: F401 - imported before the memory is measured

    if side != "deepwell":
        import transformers

        transformers.logging.set_verbosity_error()
        for name in ("Trainer", "TrainingArguments", "LlamaForCausalLM", "DeepseekV3ForCausalLM"):
            getattr(transformers, name)
        if which == "lora":
            import peft  # noqa: F401
    torch.set_num_threads(threads)
    with resident() as peak:
        if side == "deepwell":
            seconds, losses = train_ours(which, batch, length, steps)
        else:
            seconds, losses = train_theirs(which, side == "trainer-bf16", batch, length, steps)
        return {"step_s": min(seconds[1:]), "peak_mb": peak(), "loss": losses[0], "last_loss": losses[-1]}


def apart(*arguments: object) -> dict[str, float]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    out = subprocess.run(command, capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{out.stderr[-3000:]}")
    return json.loads(out.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def compare(which: str, sides: list[str], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All sides in turn; the best of the rounds for time, the largest for memory."""
    found: dict[str, dict[str, float]] = {}
    shape = (options.batch, options.length, options.steps, options.threads)
    for _ in range(options.rounds):
        for side in sides:
            one = apart(which, side, *shape)
            known = found.setdefault(side, one)
            known["step_s"] = min(known["step_s"], one["step_s"])
            known["peak_mb"] = max(known["peak_mb"], one["peak_mb"])
    print(f"\n{which}: bf16, {options.batch} x {options.length} tokens, {options.threads} threads")
    print(f"  {'':34}{'tokens/s':>10}{'step s':>9}{'peak MB':>9}{'loss':>8}{'ours is':>10}{'memory':>9}")
    ours = found.get("deepwell")
    for side, one in found.items():
        name = {"deepwell": "deepwell"}.get(side, f"{PEERS[which]}, Trainer")
        name += ", bf16 weights" if side == "trainer-bf16" else ""
        one["tokens_per_s"] = options.batch * options.length / one["step_s"]
        line = f"  {name:34}{one['tokens_per_s']:10.0f}{one['step_s']:9.2f}{one['peak_mb']:9.0f}{one['loss']:8.3f}"
        if ours is not None and side != "deepwell":
            line += f"{one['step_s'] / ours['step_s']:9.2f}x{ours['peak_mb'] / one['peak_mb']:8.2f}x"
        print(line)
    print(f"  wanted beside the first Trainer: speed {WANTED[which]}x, memory at most {MEMORY}x", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PEERS))
    parser.add_argument("--sides", default=",".join(SIDES), help="which of " + ",".join(SIDES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--measure", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        which, side, *numbers = options.measure
        print(json.dumps(measure(which, side, *map(int, numbers))))
        return
    pairs = [options.only] if options.only else list(PEERS)
    found = {which: compare(which, options.sides.split(","), options) for which in pairs}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
