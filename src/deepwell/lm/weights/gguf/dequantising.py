"""Numbers of a GGUF file as torch tensors, a slab of rows at a time.

A quantised row is a chain of blocks, each with its own scale; rows are independent, so a slab costs what it holds and a
matrix of many gigabytes never stands in memory as float32. The arithmetic of each kind is the ``gguf`` package's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from deepwell.errors import ModelFileError
from deepwell.lm.weights.gguf.container import Container

_PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "F64": torch.float64,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
SLAB_VALUES = 1 << 22
"""How many values are dequantised at once: 16 MB of float32."""


def slabs(file: Container, name: str, *, multiple: int = 1, values: int = SLAB_VALUES) -> Iterator[tuple[int, Tensor]]:
    """The rows of a tensor, in order, as (first row, Tensor [rows, width]).

    Every slab but the last holds a multiple of ``multiple`` rows (a head, an expert). Plain kinds keep their dtype,
    quantised ones come as float32. A tensor of three dimensions counts all its rows; a vector is one row.

    Raises:
        ModelFileError: Numbers of this kind cannot be read here.
    """
    place = file.tensors[name]
    data = file.rows(name)
    total, width = data.shape[0], place.shape[-1]
    step = max(values // width // multiple, 1) * multiple
    for first in range(0, total, step):
        yield first, _dequantised(file, name, data[first : first + step])


def whole(file: Container, name: str) -> Tensor:
    """A tensor of any number of dimensions at once."""
    return torch.cat([part for _, part in slabs(file, name)]).reshape(file.tensors[name].shape)


def _dequantised(file: Container, name: str, rows: np.ndarray) -> Tensor:
    from gguf import GGMLQuantizationType, quants

    kind = file.tensors[name].kind
    if kind in _PLAIN:
        # The copy lets go of the map, and of its being read-only, which torch warns of.
        return torch.from_numpy(np.array(rows)).view(_PLAIN[kind])
    try:
        with np.errstate(all="ignore"):  # blocks that are all zero divide by their scale
            values = quants.dequantize(np.array(rows), GGMLQuantizationType[kind])
    except NotImplementedError as e:
        raise ModelFileError(
            f"{file.path}: tensor {name} holds {kind} numbers, which cannot be read here",
            hint="quantise the model to one of the usual kinds (Q8_0, Q6_K, Q4_K, IQ4_XS, ...), or export it to F16",
        ) from e
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
