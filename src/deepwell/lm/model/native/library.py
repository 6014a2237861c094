"""The compiled kernels: finding them, and calling them with tensors.

They are built when the package is installed, for x86 processors with AVX-512 BF16. Where they are missing (no C
compiler, another processor, ``DEEPWELL_NATIVE=off``) every function that would call them computes with PyTorch. Work is
shared among torch's own threads: its OpenMP pool is entered by OpenMP's function, which torch has loaded. What is
computed does not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

_int, _long, _float, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Rows(ctypes.Structure):
    """``dw_rows``: a tensor [batch, heads, rows, width], its width contiguous."""

    _fields_: ClassVar = [("data", _pointer), *_fields(_long, "batch head row")]

    @classmethod
    def of(cls, tensor: Tensor) -> Rows:
        """Where the tensor [batch, heads, rows, width] lies."""
        return cls(tensor.data_ptr(), *tensor.stride()[:3])


class Attention(ctypes.Structure):
    """``dw_attention``."""

    _fields_: ClassVar = [
        *_fields(_long, "batch heads groups queries keys key_width value_width"),
        ("scale", _float),
        ("causal", _int),
        *_fields(Rows, "query key value out grad"),
        ("mask", _pointer),
        *_fields(_long, "mask_batch mask_head mask_row mask_key"),
        *_fields(_pointer, "normaliser packed_key packed_value packed_key_rows grad_query grad_key grad_value"),
    ]


class Norm(ctypes.Structure):
    """``dw_norm``."""

    _fields_: ClassVar = [
        *_fields(_long, "rows width"),
        ("eps", _float),
        ("unused", _int),
        *_fields(_pointer, "x grad weight out inverse partial"),
    ]


class Gated(ctypes.Structure):
    """``dw_gated``."""

    _fields_: ClassVar = [
        *_fields(_long, "rows width gate_row up_row"),
        *_fields(_pointer, "gate up grad out grad_gate grad_up"),
    ]


class Entropy(ctypes.Structure):
    """``dw_entropy``."""

    _fields_: ClassVar = [
        *_fields(_long, "rows width"),
        ("scale", _float),
        ("wants_gradient", _int),
        *_fields(_pointer, "logits labels losses"),
    ]


class Outer(ctypes.Structure):
    """``dw_outer``."""

    _fields_: ClassVar = [
        *_fields(_long, "rows columns inner a_row b_row"),
        *_fields(_pointer, "a b c packed"),
        ("add", _long),
    ]


class Grouped(ctypes.Structure):
    """``dw_grouped``."""

    _fields_: ClassVar = [
        *_fields(_long, "groups inner columns x_row"),
        *_fields(_int, "turned count"),
        *_fields(_pointer, "ends x matrices packed out blocks"),
    ]


_STRUCTURES = {
    "attention": Attention,
    "norm": Norm,
    "gated": Gated,
    "entropy": Entropy,
    "outer": Outer,
    "grouped": Grouped,
}
_ENTRIES = {
    "dw_attend": Attention, "dw_attend_backward": Attention, "dw_norm_forward": Norm, "dw_norm_backward": Norm,
    "dw_gated_forward": Gated, "dw_gated_backward": Gated, "dw_entropy_rows": Entropy, "dw_outer_product": Outer,
    "dw_grouped_product": Grouped,
}  # fmt: skip


class Library:
    """The kernels, open."""

    def __init__(self, path: Path) -> None:
        """Open them.

        Raises:
            OSError: They cannot be loaded here, or were built from other sources.
        """
        self._library = ctypes.CDLL(str(path))
        for name, structure in _STRUCTURES.items():
            size = getattr(self._library, f"dw_size_of_{name}")
            size.restype = _long
            if size() != ctypes.sizeof(structure):
                raise OSError(f"{path.name} was built from other sources than this version's")
        for name in _ENTRIES:
            entry = getattr(self._library, name)
            entry.argtypes, entry.restype = (_pointer, _pointer, _int), _int
        self._library.dw_padded_keys.argtypes, self._library.dw_padded_keys.restype = (_long,), _long
        self._library.dw_norm_chunk.restype = _long
        self.norm_chunk: int = self._library.dw_norm_chunk()
        """Rows whose shares of a norm's weight gradient are summed by one thread."""
        self._library.dw_block.restype = _long
        self.block: int = self._library.dw_block()
        """Rows of a grouped product that one thread computes at a time."""
        # OpenMP's entry where torch runs on GNU's, as its builds for Linux do; else one thread does the work.
        pool = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
        self._parallel = None if pool is None else ctypes.cast(pool, _pointer)

    def padded_keys(self, keys: int) -> int:
        """Rows for which attention's packed keys need room."""
        return int(self._library.dw_padded_keys(keys))

    def run(self, name: str, arguments: ctypes.Structure) -> None:
        """Call an entry of the library with the structure that it takes.

        Raises:
            MemoryError: There was no memory for its scratch.
        """
        assert isinstance(arguments, _ENTRIES[name])
        if getattr(self._library, name)(ctypes.addressof(arguments), self._parallel, torch.get_num_threads()):
            raise MemoryError(f"no memory for {name}")


def library() -> Library | None:
    """The kernels, or None where they were not built, do not suit this processor, or are not wanted."""
    return None if os.environ.get("DEEPWELL_NATIVE") == "off" else _built()


@cache
def _built() -> Library | None:
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    here = Path(__file__).parent
    for suffix in EXTENSION_SUFFIXES:
        file = here / f"_training{suffix}"
        if file.exists():
            try:
                return Library(file)
            except OSError:  # built from other sources or for another machine: PyTorch computes
                return None
    return None
