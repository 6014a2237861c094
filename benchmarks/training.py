"""Whole training steps beside transformers' Trainer: tokens a second and memory, same config, batch, data and threads.

Three pairs in bf16 over float32 master weights: a mixture of about 100M parameters and 32 experts beside DeepseekV3,
SmolLM2-135M beside Llama, and adapters (LoRA, rank 16 at every matrix) on SmolLM2-135M beside peft. A step is loss,
backward pass, clipping of the gradients, AdamW and clearing; the peers take theirs from ``Trainer(bf16=True,
use_cpu=True)`` as its users do. A further row has the peer with its weights in bf16 (no master weights, which costs
quality: small updates are rounded away).

Every side runs in a process of its own, the sides in turn, ``--rounds`` times; the fastest step counts. On a
machine that others use too, seconds of processor with ``--threads 1`` say more than seconds by the clock. Memory is
the peak of the resident set above what the process had before the model was made: weights, gradients, optimizer,
activations.

    python benchmarks/training.py [--only moe|llama|lora] [--batch 2] [--length 1024] [--rounds 2] [--json FILE]

Wanted: at least 2 times DeepseekV3's tokens a second, at least 1.5 times Llama's; at most 0.7 of their memory. Needs
`pip install -e '.[lm,hub,bench]'`.
"""

from __future__ import annotations

import argparse
import itertools
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
LEARNING_RATE, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0


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


Steps = tuple[list[tuple[float, float]], list[float]]
"""Of each step: seconds by the clock and seconds of processor, and the loss."""


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def between(ends: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ends)]


def train_ours(which: str, batch: int, length: int, steps: int) -> Steps:
    """Train with Deepwell."""
    import torch

    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.training.optimizers.building import build
    from deepwell.lm.training.recipe import OptimizerSection
    from deepwell.lm.weights.lora import LoraConfig, add_lora

    torch.manual_seed(0)
    model = Transformer(config_of(which)).train()
    model.compute_dtype = torch.bfloat16
    if which == "lora":
        add_lora(model, LoraConfig(rank=RANK, alpha=ALPHA, targets=("all-linear",)))
    optimizer = build(model, OptimizerSection(lr=LEARNING_RATE, betas=BETAS, weight_decay=DECAY))
    ends, losses = [now()], []
    for tokens in rows(model.config.vocab_size, batch, length, steps):
        total = model.loss(tokens).total
        total.backward()
        optimizer.clip(CLIP)
        optimizer.step(1.0)
        optimizer.zero_grad()
        losses.append(float(total.detach()))
        model.reset_expert_loads()
        ends.append(now())
    return between(ends), losses


def train_theirs(which: str, half: bool, batch: int, length: int, steps: int) -> Steps:
    """Train with transformers' Trainer; ``half``: weights in bf16 too."""
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
    ends: list[tuple[float, float]] = []

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(now())

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
            use_cpu=True, learning_rate=LEARNING_RATE, weight_decay=DECAY, adam_beta1=BETAS[0],
            adam_beta2=BETAS[1], max_grad_norm=CLIP, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, train_sampling_strategy="sequential",
            optim="adamw_torch_fused",
        )  # fmt: skip
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Tokens(), callbacks=[Clock()])
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return between(ends), losses


def measure(which: str, side: str, batch: int, length: int, steps: int, threads: int) -> dict[str, float]:
    """One side: seconds of the fastest step after the first, peak memory in MB, the first step's loss."""
    warnings.simplefilter("ignore")
    import torch

    import deepwell.lm.training.optimizers.building
    import deepwell.lm.weights.lora  # noqa: F401 - imported before the memory is measured

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
        wall, processor = (min(column[1:]) for column in zip(*seconds, strict=True))
        return {"step_s": wall, "cpu_s": processor, "peak_mb": peak(), "loss": losses[0], "last_loss": losses[-1]}


def apart(*arguments: object) -> dict[str, float]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
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
            known["cpu_s"] = min(known["cpu_s"], one["cpu_s"])
            known["peak_mb"] = max(known["peak_mb"], one["peak_mb"])
    print(f"\n{which}: bf16, {options.batch} x {options.length} tokens, {options.threads} threads")
    print(
        f"  {'':34}{'tokens/s':>10}{'step s':>9}{'cpu s':>8}{'peak MB':>9}{'loss':>8}"
        f"{'ours is':>10}{'by cpu':>9}{'memory':>9}"
    )
    ours = found.get("deepwell")
    for side, one in found.items():
        name = {"deepwell": "deepwell"}.get(side, f"{PEERS[which]}, Trainer")
        name += ", bf16 weights" if side == "trainer-bf16" else ""
        one["tokens_per_s"] = options.batch * options.length / one["step_s"]
        line = f"  {name:34}{one['tokens_per_s']:10.0f}{one['step_s']:9.2f}{one['cpu_s']:8.2f}"
        line += f"{one['peak_mb']:9.0f}{one['loss']:8.3f}"
        if ours is not None and side != "deepwell":
            faster, by_cpu = one["step_s"] / ours["step_s"], one["cpu_s"] / ours["cpu_s"]
            line += f"{faster:9.2f}x{by_cpu:8.2f}x{ours['peak_mb'] / one['peak_mb']:8.2f}x"
        print(line)
    print(f"  wanted beside the first Trainer: speed {WANTED[which]}x, memory at most {MEMORY}x", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PEERS))
    parser.add_argument("--sides", default=",".join(SIDES), help="which of " + ",".join(SIDES))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024)
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
