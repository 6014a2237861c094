"""A short name for "these vectors": it changes whenever the vectors of the same text would.

A library keeps the fingerprint beside each vector column and re-embeds when the encoder's differs. It covers the
weights, the tokenizer, and the recipe around the network (pooling, prompts, longest input, normalisation, dimension).

What is left out, and why: precision and executor. float32 in numpy, float32 in torch and bfloat16 in torch give
vectors whose cosine is above 0.999 (``benchmarks/encoding.py`` prints it); re-embedding a library because it moved to
another processor would cost hours and change no result. Paths and file times are left out, so the same model in another
place is the same model.

Weights are not read whole: 90 MB take 0.1 s even from memory, and the fingerprint is needed by every command. The
hash covers the size, the first 64 KiB (in a safetensors file: names, shapes and places of all tensors) and 64 blocks of
1 KiB spread evenly. Any training step, conversion or quantisation changes nearly every block.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

_HEAD = 64 * 1024
_BLOCKS = 64
_BLOCK = 1024


def sampled_hash(path: Path) -> str:
    """Hash of a file's size, head and evenly spread blocks, as 32 hex digits; a millisecond for any size."""
    digest = hashlib.blake2b(digest_size=16)
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEAD))
        for block in range(_BLOCKS):
            file.seek(block * max(size - _BLOCK, 0) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def fingerprint(folder: Path, names: Iterable[str], **settings: Any) -> str:
    """16 hex digits over the contents of the files ``names`` in ``folder`` (absent ones are skipped) and the settings.

    Settings are dataclasses or plain JSON values; their names and values both count.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(names):
        if (folder / name).is_file():
            digest.update(f"{name}={sampled_hash(folder / name)}\n".encode())
    plain = {
        key: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for key, value in settings.items()
    }
    digest.update(json.dumps(plain, sort_keys=True).encode())
    return digest.hexdigest()
