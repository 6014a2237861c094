"""Whole training steps on a GPU; ``gpu.py`` measures them as its part ``steps``.

Two families, a mixture of experts in V3's form and a Llama, at about 100M, 400M and 1B parameters. A step is loss,
backward pass, clipping of the gradients and AdamW over float32 master weights, on random tokens. Of each shape:

    products alone              plain torch: all matrix products of the step in bf16, forward and backward, and nothing
                                else; the ceiling of bf16 (its share counts these products, not attention)
    deepwell bf16, deepwell fp8 as a recipe's ``precision.compute`` has them, balancing of experts included; moments of
                                AdamW in bf16, as is the default
    transformers                DeepseekV3 or Llama in bf16 autocast, AdamW fused, moments in float32
    experts eager               the same with its experts one after the other: its grouped products are not in the
                                list of autocast, and run in float32
    all bf16                    the same without master weights, which costs quality: small updates are rounded away
    compiled                    torch.compile of its layers, one by one; the mixture's with weights in bf16
    torchao float8, compiled    the Llama's layers by torchao, one scale a tensor, its fastest; said so where it is
                                not installed

Shares are of the bf16 product measured beside them, so FP8 may pass 1; operations are those of ``training_flops``, the
same for all sides. ``first_step_s`` has what is compiled in it. What fails, for want of memory too, is a row that says
so. There are 2 steps of warm-up and 5 that count (the median does), fewer where one takes long; rows for which no time
is left (``SECONDS`` for all) say that. Networks have no module for multi-token prediction: transformers has none.

    PYTHONPATH=src python benchmarks/gpu_steps.py --check [--device cpu]

runs every side once on tiny shapes, in seconds and without a GPU, and fails if one does not begin at the loss of a
guess: look before a GPU is there, so that its minutes are not lost to an error of typing. Compiled layers go through
torch.compile without its code generator there, and torchao computes as if.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

BATCH, LENGTH = 8, 2048
WARM_UP, STEPS = 2, 5
ROW_SECONDS, SECONDS = 20.0, 180.0
"""After so long a row stops with the steps it has, and no new row begins."""

TINY = {"vocab_size": 512, "max_position_embeddings": 256}

Step = Callable[[torch.Tensor], float | None]
"""Takes tokens [B, T], returns the loss if there is one."""
Maker = Callable[[Any, str], Step]
"""Of a config and a device."""


class NotHereError(Exception):
    """What a side needs is not installed."""


def mixture(hidden: int, layers: int, width: int, heads: int, head: int, rank: int, **more: Any) -> Any:
    """A network in V3's form: 32 experts of ``width``, of which a token takes 4, and one for all."""
    from deepwell.lm.model.config import ModelConfig

    return ModelConfig(
        hidden_size=hidden, num_hidden_layers=layers, moe_intermediate_size=width, intermediate_size=3 * hidden,
        num_attention_heads=heads, qk_nope_head_dim=head, qk_rope_head_dim=head // 2, v_head_dim=head,
        q_lora_rank=2 * rank, kv_lora_rank=rank, n_routed_experts=32, n_shared_experts=1, num_experts_per_tok=4,
        n_group=4, topk_group=2, first_k_dense_replace=1, routed_scaling_factor=2.5, initializer_range=0.02,
        **{"vocab_size": 32_000, **more},
    )  # fmt: skip


def llama(hidden: int, layers: int, width: int, heads: int, groups: int, **more: Any) -> Any:
    """A Llama with ``groups`` heads of keys and values."""
    from deepwell.lm.model.config import ModelConfig

    head = hidden // heads
    return ModelConfig(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=width, num_attention_heads=heads,
        rope_key_heads=groups, kv_lora_rank=groups * head, qk_nope_head_dim=0, qk_rope_head_dim=head, v_head_dim=head,
        kv_up_proj=False, latent_norm=False, rms_norm_eps=1e-5, initializer_range=0.02,
        **{"vocab_size": 32_000, **more},
    )  # fmt: skip


def shapes() -> dict[str, Any]:
    """All that are measured, the small ones first."""
    return {
        "moe 100M": mixture(512, 6, 256, 8, 64, 128),
        "llama 100M": llama(768, 8, 2048, 12, 4),
        "moe 400M": mixture(1024, 12, 256, 8, 128, 256),
        "llama 400M": llama(1280, 18, 3584, 10, 2),
        "moe 1B": mixture(1536, 14, 384, 12, 128, 512),
        "llama 1B": llama(2048, 20, 5632, 16, 4),
    }


def tiny_shapes() -> dict[str, Any]:
    """Both families, as small as every side takes them."""
    return {"moe tiny": mixture(128, 2, 64, 2, 32, 64, **TINY), "llama tiny": llama(128, 2, 256, 4, 2, **TINY)}


def deepwell(config: Any, device: str, *, compute: str) -> Step:
    """Ours, as ``training.loop`` steps, without its journal and guard."""
    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.training.balance import update_biases
    from deepwell.lm.training.optimizers import build
    from deepwell.lm.training.precision import set_precision
    from deepwell.lm.training.recipe import OptimizerSection, PrecisionSection

    model, section = Transformer(config, device=device).train(), OptimizerSection()
    set_precision(model, PrecisionSection(compute=compute))  # type: ignore[arg-type]
    optimizer = build(model, section)

    def step(tokens: torch.Tensor) -> float:
        total = model.loss(tokens).total
        total.backward()
        optimizer.clip(section.clip)
        optimizer.step(1.0)
        if model.gates():
            update_biases(model, model.expert_loads(), 1e-3)
            model.reset_expert_loads()
        optimizer.zero_grad()
        return float(total.detach())

    return step


def peer(
    config: Any, device: str, *, half: bool = False, experts: str | None = None, compiled: bool = False,
    float8: bool = False,
) -> Step:  # fmt: skip
    """Transformers' network of the same shape under plain torch."""
    import transformers

    from deepwell.lm.training.recipe import OptimizerSection

    content = {key: value for key, value in config.to_hf().items() if key not in ("architectures", "torch_dtype")}
    made = getattr(transformers, config.to_hf()["architectures"][0]).config_class(**content)
    chosen = {"experts_implementation": experts} if experts else {}
    with torch.device(device):
        dtype = torch.bfloat16 if half else torch.float32
        model = transformers.AutoModelForCausalLM.from_config(made, dtype=dtype, **chosen).train()
    if float8:
        to_float8(model, emulate=device == "cpu")
    if compiled:
        for layer in model.model.layers:
            layer.compile(backend="aot_eager" if device == "cpu" else "inductor")
    section = OptimizerSection()
    optimizer = torch.optim.AdamW(
        model.parameters(), section.lr, section.betas, section.eps, section.weight_decay, fused=True
    )

    def step(tokens: torch.Tensor) -> float:
        with torch.autocast(device, torch.bfloat16, enabled=not half):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), section.clip)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def to_float8(model: Any, *, emulate: bool) -> None:
    """Let torchao compute the linear layers in FP8, the head excepted."""
    import dataclasses

    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except Exception as problem:  # one for another torch fails in ways of its own
        raise NotHereError(f"torchao cannot be imported: {problem}") from problem
    how = dataclasses.replace(Float8LinearConfig.from_recipe_name("tensorwise"), emulate=emulate)
    convert_to_float8_training(model, config=how, module_filter_fn=lambda _, name: name != "lm_head")


def matrices(config: Any) -> list[tuple[tuple[int, ...], int]]:
    """Every matrix: its shape, [out, in] or [experts, out, in], and how many of its experts a token takes, else 1."""
    from deepwell.lm.model.moe import Experts
    from deepwell.lm.model.products import Linear
    from deepwell.lm.model.transformer import Transformer

    found: list[tuple[tuple[int, ...], int]] = []
    for module in Transformer(config, device="meta").modules():
        if isinstance(module, Linear):
            found.append((tuple(module.weight.shape), 1))
        elif isinstance(module, Experts):
            found += [(tuple(one.shape), config.num_experts_per_tok) for one in module.matrices()]
    return found


def products(config: Any, device: str) -> Step:
    """All products of a step in plain bf16 torch: forward, gradient of the input, gradient of the weight."""
    made: dict[str, Any] = {"dtype": torch.bfloat16, "device": device}
    weights = [(torch.randn(shape, **made), each) for shape, each in matrices(config)]
    inputs: dict[tuple[int, int], torch.Tensor] = {}

    def rows(count: int, width: int) -> torch.Tensor:
        if (count, width) not in inputs:
            inputs[count, width] = torch.randn(count, width, **made)
        return inputs[count, width]

    def step(tokens: torch.Tensor) -> None:
        for weight, each in weights:
            x, grad = (rows(tokens.numel() * each, weight.shape[-1 - at]) for at in (0, 1))
            if weight.dim() == 2:
                x @ weight.t(), grad @ weight, grad.t() @ x
                continue
            ends = torch.arange(1, weight.shape[0] + 1, device=device) * x.shape[0] // weight.shape[0]
            ends = ends.to(torch.int32)
            F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
            F.grouped_mm(grad, weight, offs=ends)
            F.grouped_mm(grad.t(), x, offs=ends)

    return step


def sides(config: Any) -> tuple[dict[str, Maker], dict[str, Maker]]:
    """Those that are measured first, and those for which there may be no time."""
    first: dict[str, Maker] = {
        "products alone": products,
        "deepwell bf16": lambda *given: deepwell(*given, compute="bf16"),
        "deepwell fp8": lambda *given: deepwell(*given, compute="fp8"),
        "transformers": peer,
    }
    if config.n_routed_experts:
        return first, {
            "transformers, all bf16": lambda *given: peer(*given, half=True),
            "transformers, experts eager": lambda *given: peer(*given, experts="eager"),
            "transformers, compiled": lambda *given: peer(*given, half=True, compiled=True),
        }
    return first, {
        "transformers, compiled": lambda *given: peer(*given, compiled=True),
        "torchao float8, compiled": lambda *given: peer(*given, compiled=True, float8=True),
        "transformers, all bf16": lambda *given: peer(*given, half=True),
    }


def timed(make: Maker, config: Any, device: str, batch: int, length: int, steps: int) -> dict[str, Any]:
    """Steps of one side: seconds of the median one and of the first, losses, memory."""
    gpu = device == "cuda"
    torch.manual_seed(0)
    tokens = torch.randint(config.vocab_size, (WARM_UP + steps, batch, length), device=device)
    before = torch.cuda.memory_allocated() if gpu else 0
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    step = make(config, device)
    seconds, losses = [], []
    for rows in tokens:
        if gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        losses.append(step(rows))
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if len(seconds) > WARM_UP and time.perf_counter() - begun > ROW_SECONDS:
            break
    found: dict[str, Any] = {
        "tokens_a_second": batch * length / statistics.median(seconds[WARM_UP:]),
        "steps": len(seconds) - WARM_UP,
        "first_step_s": seconds[0],
    }
    if gpu:
        found["peak_memory_gb"] = (torch.cuda.max_memory_allocated() - before) / 1e9
    if losses[0] is not None:
        found |= {"first_loss": losses[0], "last_loss": losses[-1]}
    return found


def row(make: Maker, config: Any, device: str, batch: int, length: int, steps: int) -> dict[str, Any]:
    """``timed``, or what prevented it; memory is free again after it."""
    try:
        found = timed(make, config, device, batch, length, steps)
    except NotHereError as problem:
        found = {"not measured": str(problem)}
    except torch.cuda.OutOfMemoryError:
        found = {"error": f"out of memory at {batch} x {length} tokens"}
    except Exception as problem:  # the rest is still measured
        traceback.print_exc()
        found = {"error": f"{type(problem).__name__}: {str(problem)[:500]}"}
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return found


def measure(
    peak: float, keep: Callable[[str, Any], None], *, known: dict[str, Any] | None = None, device: str = "cuda",
    batch: int = BATCH, length: int = LENGTH, steps: int = STEPS,
) -> None:  # fmt: skip
    """All sides of all shapes; ``keep`` is told each row at once. ``peak``: bf16 operations a second."""
    from deepwell.lm.model.accounting import Account
    from deepwell.lm.training.cost import training_flops

    end, known = time.perf_counter() + SECONDS, shapes() if known is None else known
    for late in (0, 1):
        for shape, config in known.items():
            if not late:
                account = Account.of(config)
                facts = {"parameters": float(account.parameters), "active": float(account.active_parameters)}
                keep(f"steps {shape}", {**facts, "batch": f"{batch} x {length}"})
            for name, make in sides(config)[late].items():
                if time.perf_counter() > end:
                    keep(f"steps {shape}, {name}", {"not measured": "the time for steps was over"})
                    continue
                found = row(make, config, device, batch, length, steps)
                if "tokens_a_second" in found:
                    flops = training_flops(config, length)
                    if make is products:
                        flops = 6 * sum(each * math.prod(one[-2:]) for one, each in matrices(config))
                    found["share_of_bf16_peak"] = found["tokens_a_second"] * flops / peak
                keep(f"steps {shape}, {name}", found)


def check(device: str) -> int:
    """Every side once, tiny; 1 if one failed or does not begin at the loss of a guess among all tokens."""
    wrong, guess = 0, math.log(TINY["vocab_size"])

    def keep(name: str, value: dict[str, Any]) -> None:
        nonlocal wrong
        bad = "error" in value or not abs(value.get("first_loss", guess) - guess) < 0.5
        wrong += bad
        told = {key: value[key] for key in ("error", "not measured", "first_loss", "parameters") if key in value}
        shown = "  ".join(f"{key}: {one}" for key, one in told.items())
        print(f"{name:<44}{'WRONG  ' if bad else ''}{shown or 'ran'}", flush=True)

    measure(1e12, keep, known=tiny_shapes(), device=device, batch=2, length=64, steps=1)
    print(f"{wrong} sides failed")
    return int(wrong > 0)


def main() -> int:
    """Check. What measures is ``gpu.py``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", required=True, help="run every side once on tiny shapes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    return check(parser.parse_args().device)


if __name__ == "__main__":
    raise SystemExit(main())
