"""A step of Deepwell's optimizers beside torch.optim.AdamW: time, and what is kept between steps.

    python benchmarks/optimizer.py [--millions 50] [--threads 2] [--device cpu] [--rounds 7] [--no-muon]

The parameters are those of a network: matrices of 1024 x 4096 and 1024 x 1024 under a norm each, a sixth of them
experts, in float32 with float32 gradients. Every figure is the best of the rounds (of one for Muon, which
multiplies matrices for seconds); ratios are to torch's fused AdamW.
"state" is bytes of moments a parameter; "peak" is what a step needs besides, as torch's profiler counts it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from deepwell.lm.training.optimizers import Optimizer
from deepwell.lm.training.optimizers.groups import Method, Slot
from deepwell.lm.training.recipe import OptimizerSection


def parameters(millions: float, device: str) -> list[tuple[str, nn.Parameter]]:
    """Named as in a network, with gradients."""
    shapes = {"up_proj.weight": (4096, 1024), "o_proj.weight": (1024, 1024), "norm.weight": (1024,)}
    shapes["experts.gate_up_proj"] = (8, 512, 256)
    made: list[tuple[str, nn.Parameter]] = []
    generator = torch.Generator(device).manual_seed(0)
    while sum(parameter.numel() for _, parameter in made) < millions * 1e6:
        for name, shape in shapes.items():
            parameter = nn.Parameter(torch.randn(shape, device=device, generator=generator) * 0.02)
            parameter.grad = torch.randn(shape, device=device, generator=generator) * 1e-3
            made.append((f"layers.{len(made)}.{name}", parameter))
    return made


def ours(named: list[tuple[str, nn.Parameter]], section: OptimizerSection) -> Optimizer:
    found = []
    for name, parameter in named:
        method: Method = section.name if parameter.dim() > 1 else "adamw"
        found.append(Slot(name, parameter, method, parameter.dim() > 1))
    return Optimizer(found, section)


def seconds(step: Callable[[], object], rounds: int, device: str) -> float:
    """The least of some rounds, after one that makes the state."""
    found = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return min(found[1:])


def peak(step: Callable[[], object], device: str) -> float:
    """Megabytes that a step allocates and frees again."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-muon", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    named = parameters(options.millions, options.device)
    count = sum(parameter.numel() for _, parameter in named)
    print(f"{count / 1e6:.1f} million parameters in {len(named)}, {options.threads} threads, {options.device}")
    print(f"  {'':28}{'ms':>9}{'ratio':>8}{'state B':>9}{'peak MB':>9}")
    weights = [parameter for _, parameter in named]
    fused = 0.0

    def told(name: str, step: Callable[[], object], state: int, rounds: int = options.rounds) -> None:
        nonlocal fused
        taken = seconds(step, rounds, options.device)
        fused = fused or taken
        print(
            f"  {name:28}{taken * 1e3:9.1f}{taken / fused:8.2f}{state / count:9.2f}{peak(step, options.device):9.1f}",
            flush=True,
        )

    for name, how in (("fused", {"fused": True}), ("foreach", {"foreach": True}), ("loop", {"foreach": False})):
        theirs = torch.optim.AdamW(weights, lr=1e-4, betas=(0.9, 0.95), **how)
        theirs.step()
        told(f"torch {name}", theirs.step, sum(v.nbytes for s in theirs.state.values() for v in s.values()))
        del theirs
    for moments in ("f32", "bf16"):
        optimizer = ours(named, OptimizerSection(lr=1e-4, moments=moments))
        told(f"deepwell adamw, {moments} moments", optimizer.step, kept(optimizer))
    told("deepwell norm", partial(optimizer.clip, 0.0), 0)
    told("torch norm", partial(nn.utils.get_total_norm, [weight.grad for weight in weights]), 0)
    if not options.no_muon:
        optimizer = ours(named, OptimizerSection(name="muon", lr=1e-4))
        told("deepwell muon, bf16 moments", optimizer.step, kept(optimizer), 1)


def kept(optimizer: Optimizer) -> int:
    """Bytes of moments."""
    return sum(value.nbytes for value in optimizer.state_dict().values() if isinstance(value, torch.Tensor))


if __name__ == "__main__":
    main()
