"""The compiled rounding, where installation found a C compiler.

``DEEPWELL_NATIVE=off`` computes without it, as everywhere in the package; the bits are the same.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

_int, _long, _pointer = ctypes.c_int, ctypes.c_long, ctypes.c_void_p


def library() -> ctypes.CDLL | None:
    """``dw_quantise`` and ``dw_dequantise`` of ``tiles.c``; None where they were not built or are not wanted."""
    return None if os.environ.get("DEEPWELL_NATIVE") == "off" else _built()


@cache
def _built() -> Any:
    here = Path(__file__).parent
    for suffix in EXTENSION_SUFFIXES:
        file = here / f"_tiles{suffix}"
        if file.exists():
            try:
                found = ctypes.CDLL(str(file))
            except OSError:  # built for another machine: the folder was copied
                return None
            found.dw_quantise.argtypes = (
                _pointer, _int, _long, _long, _pointer, _long, _long, _int, _pointer, _pointer,
            )  # fmt: skip
            found.dw_dequantise.argtypes = (_pointer, _pointer, _long, _pointer, _long, _long, _int, _pointer)
            return found
    return None
