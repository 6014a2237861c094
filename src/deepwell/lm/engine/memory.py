"""What fits where: the device, the precision of the weights, and the size of the cache, where nobody says."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import psutil
import torch

from deepwell.lm.engine.native.library import library
from deepwell.lm.engine.native.program import Precision, supports
from deepwell.lm.model.products import cpu_multiplies
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.quantising import WORDS, round_in_place

_LONG_REQUESTS = 8
"""Requests of the network's full length that the cache is made for, where there is memory for them."""

_FOUR_BITS = frozenset({"Q4_0", "Q4_1"})
"""GGUF's formats whose weights int4 holds exactly."""

PRECISIONS = ("auto", "f32", "bf16", "int8", "int4", "fp8", "f16", "f64")
"""Words for how weights stand in memory."""

_COMPILED = ("f32", "bf16", "int8", "int4")


def device_for(word: str) -> str:
    """The device that ``auto`` means here; any other word is itself."""
    if word != "auto":
        return word
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision_for(path: Path, device: str) -> str:
    """The precision in which the model at ``path`` (a folder or a GGUF file) is best run on this device.

    On a processor every token waits for the weights to be read, and 8 bits lose next to nothing.
    """
    if not device.startswith("cpu") or (library() is None and cpu_multiplies(torch.bfloat16)):
        return "bf16"
    if library() is not None:
        return "int4" if path.is_file() and _has_four_bits(path) else "int8"
    # PyTorch multiplies float32 many times faster than bf16 here.
    return "f32" if _fits_as_float32(path) else "bf16"


def _fits_as_float32(path: Path) -> bool:
    """Whether the weights of these files take less than half of the free memory in float32."""
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    stored = sum(file.stat().st_size for file in files)
    # Files hold two bytes a weight, or, quantised, half a byte and more.
    most = stored * (8 if path.is_file() else 2)
    return bool(most < psutil.virtual_memory().available / 2)


def _has_four_bits(path: Path) -> bool:
    """Whether most of a GGUF file's weights are such that int4 loses nothing."""
    from deepwell.lm.weights.gguf.container import open_gguf

    tensors = open_gguf(path).tensors.values()
    return 2 * sum(one.size for one in tensors if one.kind in _FOUR_BITS) > sum(one.size for one in tensors)


def dtype_for(precision: str, path: Path, device: str) -> str:
    """In which dtype the files of a model are read that is to be run in ``precision``."""
    if precision in WORDS:
        # Files hold bf16, f16 or rounded weights; float32 holds all of these as they are.
        return "f32" if device.startswith("cpu") and _fits_as_float32(path) else "bf16"
    return "bf16" if precision == "fp8" else precision


def compiled_for(precision: str, network: Transformer) -> Precision | None:
    """The precision in which compiled code carries out this network; None where PyTorch does."""
    if network.device.type != "cpu" or precision not in _COMPILED or library() is None or not supports(network.config):
        return None
    return cast(Precision, precision)


def read_to(precision: str, device: str) -> str:
    """The device to which files are read: a network for FP8 may fit a GPU in FP8 alone."""
    return "cpu" if precision == "fp8" else device


def round_weights(network: Transformer, precision: str, device: str) -> None:
    """Where PyTorch computes, int8 and int4 are the weights that they stand for, and take no less memory.

    FP8 stays FP8, and the network goes to the device on the way.
    """
    if precision in WORDS:
        round_in_place(network, WORDS[precision])
    if precision == "fp8":
        from deepwell.lm.engine.gpu.fp8_layers import to_fp8

        to_fp8(network, device)


def cache_bytes_for(network: Transformer, precision: Precision | None = None) -> int:
    """Memory for the cache: for some requests of full length, and no more than a share of what is free."""
    config = network.config
    width = torch.empty((), dtype=network.dtype).element_size()
    if precision is not None:
        width = 4 if precision == "f32" else 2
    wanted = _LONG_REQUESTS * config.max_position_embeddings * config.cache_bytes_per_token(width)
    if network.device.type == "cuda":
        return min(wanted, int(torch.cuda.mem_get_info(network.device)[0] * 0.8))
    return min(wanted, int(psutil.virtual_memory().available) // 4)
