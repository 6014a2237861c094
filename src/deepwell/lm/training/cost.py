"""What a run costs: operations a token, what the machine can do, and the memory that states take."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable

import torch
from torch import nn

from deepwell.lm.model.accounting import Account
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.training.recipe import OptimizerSection

_BACKWARD = 2
"""A backward pass takes two products where the forward pass takes one."""
_SIDE = 2048


def training_flops(config: ModelConfig, length: int) -> float:
    """Operations of forward and backward for one token of rows of ``length`` tokens, MTP modules and heads included.

    Two for each active parameter and forward product (V3's own account is 6 N a token), and attention over the half of
    the row that a token sees on average. What is computed again in the backward pass does not count.
    """
    account = Account.of(config, context=max(1, length // 2))
    forward = float(account.flops_per_token)
    head = 2 * config.vocab_size * config.hidden_size
    for layer in account.layers:
        if layer.kind == "mtp":
            forward += 2 * layer.active + head + account.attention_flops_per_token / config.num_hidden_layers
    return (1 + _BACKWARD) * forward


def active_parameters(config: ModelConfig) -> int:
    """Parameters that take part in a product for one token, MTP modules not counted; see ``accounting``."""
    return Account.of(config).active_parameters


def measured_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large product on this device: the best of a few, about half a second on a processor."""
    a = torch.randn(_SIDE, _SIDE, device=device).to(dtype)
    b = torch.randn(_SIDE, _SIDE, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * _SIDE**3 / best


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
