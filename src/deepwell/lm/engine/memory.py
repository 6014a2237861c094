"""What fits where: the device, the precision of the weights, and the size of the cache, where nobody says."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from deepwell.lm.model.products import cpu_multiplies
from deepwell.lm.model.transformer import Transformer

_LONG_REQUESTS = 8
"""Requests of the network's full length that the cache is made for, where there is memory for them."""


def device_for(word: str) -> str:
    """The device that ``auto`` means here; any other word is itself."""
    if word != "auto":
        return word
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision_for(path: Path, device: str) -> str:
    """The precision in which the model at ``path`` (a folder or a GGUF file) is fastest on this device.

    A processor without bf16 instructions multiplies float32 many times faster, so weights are widened once, unless they
    would take more than half of the free memory.
    """
    if not device.startswith("cpu") or cpu_multiplies(torch.bfloat16):
        return "bf16"
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    stored = sum(file.stat().st_size for file in files)
    # Files hold two bytes a weight, or, quantised, half a byte and more.
    most = stored * (8 if path.is_file() else 2)
    return "f32" if most < psutil.virtual_memory().available / 2 else "bf16"


def cache_bytes_for(network: Transformer) -> int:
    """Memory for the cache: for some requests of full length, and no more than a share of what is free."""
    config = network.config
    each = config.cache_bytes_per_token(torch.empty((), dtype=network.dtype).element_size())
    wanted = _LONG_REQUESTS * config.max_position_embeddings * each
    if network.device.type == "cuda":
        return min(wanted, int(torch.cuda.mem_get_info(network.device)[0] * 0.8))
    return min(wanted, int(psutil.virtual_memory().available) // 4)
