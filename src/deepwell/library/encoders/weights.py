"""Tensors of a safetensors file, mapped into memory and read only where they are used.

The layout (https://github.com/huggingface/safetensors): 8 bytes little-endian length, that many bytes of JSON (name ->
dtype, shape, byte range), then the data. Mapping it ourselves instead of through the library's numpy door keeps the
word-embedding table on disk (47 of MiniLM's 90 MB): a query of eight words touches eight rows of it.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import MissingModelError, ModelSourceError

_DTYPES: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}


class Weights(Mapping[str, NDArray[Any]]):
    """Name -> array, read-only views into the mapped file. bfloat16 tensors are widened to float32 when asked for.

    ``prefix`` (``bert.`` in checkpoints saved with a task head) is taken off every name that has it.
    Raises ``MissingModelError`` when there is no such file and ``ModelSourceError`` when it is truncated or not
    safetensors.
    """

    def __init__(self, path: Path, *, prefix: str = "") -> None:
        self.path = path
        self._spans: dict[str, tuple[str, tuple[int, ...], int]] = {}
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise MissingModelError(f"there are no weights at {path}", hint="Run: deepwell models verify") from error
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        try:
            length = int.from_bytes(self._map[:8], "little")
            if not 2 <= length <= len(self._map) - 8:
                raise ValueError(f"header length {length} does not fit")
            header = json.loads(self._map[8 : 8 + length])
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
                dtype = _DTYPES.get(entry["dtype"])
                if dtype is not None and math.prod(shape) * np.dtype(dtype).itemsize != end - begin:
                    raise ValueError(f"size of {name} does not fit its shape")
                if 8 + length + end > len(self._map):
                    raise ValueError(f"the file ends before {name}")
                self._spans[name.removeprefix(prefix)] = (entry["dtype"], shape, 8 + length + begin)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> ModelSourceError:
        return ModelSourceError(
            f"{self.path} is not a whole safetensors file: {reason}", hint="Run: deepwell models verify"
        )

    def __getitem__(self, name: str) -> NDArray[Any]:
        try:
            kind, shape, begin = self._spans[name]
            dtype = np.dtype(_DTYPES[kind])
        except KeyError as error:
            raise ModelSourceError(
                f"{self.path} has no usable tensor {name!r}", hint="Is this the right model?"
            ) from error
        array = np.frombuffer(self._map, dtype, math.prod(shape), begin).reshape(shape)
        return widen(array) if kind == "BF16" else array

    def __contains__(self, name: object) -> bool:
        return name in self._spans

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def is_float(self, name: str) -> bool:
        """Whether the tensor holds numbers of a network, and not indices."""
        return self._spans[name][0] in ("F32", "F16", "BF16", "F64")

    def rows(self, name: str, indices: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Some rows of a table [rows, dim] as float32; the rest of it is not read."""
        kind, shape, begin = self._spans[name]
        table = np.frombuffer(self._map, np.dtype(_DTYPES[kind]), math.prod(shape), begin).reshape(shape)[indices]
        return widen(table) if kind == "BF16" else table.astype(np.float32, copy=False)


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Bfloat16 bit patterns to the same numbers in float32: they are its upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
