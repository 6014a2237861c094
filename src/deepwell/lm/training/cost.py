"""What a run costs: operations a token, what the machine can do, and the memory that states take."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable

import torch
from torch import nn

from deepwell.lm.model.accounting import Account, weights_of
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.training.recipe import OptimizerSection

_BACKWARD = 2
"""A backward pass takes two products where the forward pass takes one."""
_SIDE, _SMALL_SIDE = 4096, 512
_LOOK_SECONDS = 0.3


def training_flops(config: ModelConfig, length: int, *, model: nn.Module | None = None) -> float:
    """Operations of forward and backward for one token of rows of ``length`` tokens, MTP modules and heads included.

    Two for each active parameter and forward product (V3's own account is 6 N a token), and attention over the half of
    the row that a token sees on average. What is computed again in the backward pass does not count.

    Args:
        config: The network.
        length: Tokens of a row.
        model: The network itself, before it is spread over processes, with what learns and what does not: a matrix
            that is frozen has no gradient of its own, so two products in place of three, and an adapter has all three
            of its own. That nothing passes back below the first thing that learns is not looked at. None: all learns.
    """
    account = Account.of(config, context=max(1, length // 2))
    forward = float(account.flops_per_token)
    head = 2 * config.vocab_size * config.hidden_size
    depth = sum(layer.kind == "mtp" for layer in account.layers)
    active = sum(layer.active for layer in account.layers if layer.kind == "mtp")
    forward += 2 * active + depth * (head + account.attention_flops_per_token / config.num_hidden_layers)
    flops = (1 + _BACKWARD) * forward
    if model is None:
        return flops
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    flops -= sum(2 * weight.size * weight.active for weight in weights_of(config) if weight.name in frozen)
    if ("embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight") in frozen:
        flops -= depth * head
    adapters = (value for name, value in model.named_parameters() if name.endswith((".lora_a", ".lora_b")))
    return flops + (1 + _BACKWARD) * 2 * sum(value.numel() for value in adapters)


def active_parameters(config: ModelConfig) -> int:
    """Parameters that take part in a product for one token, MTP modules not counted; see ``accounting``."""
    return Account.of(config).active_parameters


def measured_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a product on this device: the best of many, a third of a second in all.

    On a processor the product is small enough to be done before the system gives the core to someone else, so that the
    best one tells of the machine and not of its other work.
    """
    side = _SIDE if device.type == "cuda" else _SMALL_SIDE
    draws = torch.Generator(device=device).manual_seed(0)  # of its own: looking at the machine moves nothing of the run
    a, b = (torch.randn(side, side, device=device, generator=draws).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + _LOOK_SECONDS
    while time.perf_counter() < until:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def highest_memory_mb(device: torch.device) -> float:
    """The most memory that this process (or its GPU) has held so far, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def state_bytes(parameters: Iterable[nn.Parameter], optimizer: OptimizerSection) -> int:
    """Bytes of weights, gradients and moments, activations not counted."""
    moments = 2 * (2 if optimizer.moments == "bf16" else 4)
    total = 0
    for parameter in parameters:
        total += parameter.numel() * parameter.element_size()
        if parameter.requires_grad:
            total += parameter.numel() * (parameter.element_size() + moments)
    return total
