"""The compiled part: finding it, and its structures as ``program.h`` has them.

Two builds of the same sources are made when the package is installed: one for x86 processors with AVX2, one for any
processor. A machine without a C compiler has neither, and the engine computes with PyTorch instead. The environment
variable ``DEEPWELL_NATIVE`` (avx2, generic, off) chooses by hand.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, ClassVar

from deepwell.errors import DeepwellError, UsageError

F32, BF16, INT8, INT4 = range(4)
NORM, LINEAR, ROPE, STORE, ATTEND, SWIGLU, EXPERTS, COPY = range(8)
ADD = 1
PANEL = 16
GROUP = 32

_int, _long, _float, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Matrix(ctypes.Structure):
    """``dw_matrix``."""

    _fields_: ClassVar = [*_fields(_int, "format inputs outputs unused"), *_fields(_pointer, "panels bias")]


class Experts(ctypes.Structure):
    """``dw_experts``."""

    _fields_: ClassVar = [
        *_fields(_int, "experts chosen groups kept_groups width sigmoid best_two normalised weighed minimum"),
        *_fields(_float, "share factor"),
        *_fields(_pointer, "router bias gate_up down choice weights scores middle out pairs starts"),
    ]


class Op(ctypes.Structure):
    """``dw_op``."""

    _fields_: ClassVar = [
        *_fields(_int, "kind flags width heads"),
        ("x", _pointer),
        *_fields(_long, "x_row x_head"),
        ("y", _pointer),
        *_fields(_long, "y_row y_head"),
        *_fields(_pointer, "matrix cache"),
        *_fields(_int, "cache_format cache_width key key_group value value_group groups key_width value_width window"),
        ("number", _float),
        ("unused", _int),
    ]


class Batch(ctypes.Structure):
    """``dw_batch``."""

    _fields_: ClassVar = [
        *_fields(_int, "rows stretches block threads"),
        *_fields(_pointer, "cosine sine slots stretch tables"),
    ]


class Stretch(ctypes.Structure):
    """``dw_stretch``."""

    _fields_: ClassVar = _fields(_int, "first last start table")


_STRUCTURES = (Op, Batch, Matrix, Experts, Stretch)


class Library:
    """One build, open.

    Attributes:
        instructions: What it was made for: avx2 or generic.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            DeepwellError: It cannot be loaded here, or was built from other sources.
        """
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise DeepwellError(
                f"{path.name} cannot be loaded: {error}",
                hint="Install deepwell again, or compute without it: DEEPWELL_NATIVE=off.",
            ) from error
        self._run = self._library.dw_run
        self._run.argtypes, self._run.restype = (_pointer, _int, _pointer), _int
        self._library.dw_instructions.restype = ctypes.c_char_p
        self.instructions: str = self._library.dw_instructions().decode()
        for which, structure in enumerate(_STRUCTURES):
            if self._library.dw_size_of(which) != ctypes.sizeof(structure):
                raise DeepwellError(
                    f"{path.name} was built from other sources than this version's",
                    hint="Install deepwell again (in a checkout: touch pyproject.toml, make setup).",
                )

    @property
    def suits(self) -> bool:
        """Whether this processor has the instructions that the AVX2 build needs."""
        return bool(self._library.dw_has_avx2())

    def run(self, ops: Any, count: int, batch: Batch) -> None:
        """Carry out a program.

        Raises:
            DeepwellError: There is not enough memory for it, or no more threads can be made.
        """
        if self._run(ctypes.addressof(ops), count, ctypes.addressof(batch)):
            raise DeepwellError("there is no memory for this step of the engine, or the system gives no more threads")


@cache
def library() -> Library | None:
    """The build for this processor; None where there is none.

    Raises:
        UsageError: ``DEEPWELL_NATIVE`` asks for something else than there is.
    """
    wish = os.environ.get("DEEPWELL_NATIVE", "auto")
    if wish == "off":
        return None
    if wish not in ("auto", "avx2", "generic"):
        raise UsageError(f"DEEPWELL_NATIVE is {wish!r}", hint="It may be avx2, generic or off.")
    found = built()
    generic = found.get("generic")
    if generic is not None and generic.suits and "avx2" in found and wish != "generic":
        return found["avx2"]
    if wish == "avx2" or (wish == "generic" and generic is None):
        raise UsageError(f"DEEPWELL_NATIVE is {wish!r}, and this machine has no such build, or cannot run it")
    return generic


@cache
def built() -> dict[str, Library]:
    """All builds that were made, whether this processor can run them or not."""
    here = Path(__file__).parent
    files = ((name, here / f"_{name}{suffix}") for name in ("avx2", "generic") for suffix in EXTENSION_SUFFIXES)
    return {name: Library(file) for name, file in files if file.exists()}
