"""In which dtype a Triton kernel multiplies tiles of a tensor."""

from __future__ import annotations

import os

import torch
import triton.language as tl

_NAMES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def operand(dtype: torch.dtype) -> tl.dtype:
    """Triton's name for ``dtype``; in its interpreter, whose products of bf16 are wrong, float32 for every dtype.

    A product of two halves is exact in float32, and sums are float32 anyway, so the interpreter computes the same.
    """
    return tl.float32 if interpreted() else _NAMES[dtype]


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1``, set before triton is imported)."""
    return os.environ.get("TRITON_INTERPRET") == "1"
