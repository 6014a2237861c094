"""Writes the bytes of a GGUF file: header, metadata, descriptions of tensors, then their numbers as they come.

The counterpart of ``container``. The file grows beside the one that is wanted, under a hidden name, and takes its place
when every byte is on disk.
"""

from __future__ import annotations

import math
import os
import struct
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from deepwell.errors import ModelFileError, UsageError

ALIGNMENT = 32
KINDS = {"f32": (torch.float32, 0), "f16": (torch.float16, 1), "bf16": (torch.bfloat16, 30)}
"""Words for a precision: torch's dtype and ggml's number."""
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor of the file: name, shape as torch has it, and precision (a word of ``KINDS``)."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        return math.prod(self.shape) * KINDS[self.kind][0].itemsize


def compose(path: Path, fields: Mapping[str, Any], tensors: list[Planned], values: Iterable[Iterable[Tensor]]) -> None:
    """Write a file.

    Args:
        path: The file; one of that name is replaced.
        fields: Metadata: text, truth values, whole numbers (32 bits), numbers (float32), and lists of one of these.
        tensors: What the file holds, in order.
        values: For each tensor, pieces whose numbers follow one another; each of the dtype of its kind.

    Raises:
        UsageError: The path is a folder.
        ModelFileError: The disk is full, or the file cannot be written. What was there before is unchanged.
    """
    path = path.expanduser().resolve()
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file, for instance model.gguf")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(_header(fields, tensors))
            for tensor, pieces in zip(tensors, values, strict=True):
                _pad(file)
                begin = file.tell()
                for piece in pieces:
                    file.write(piece.detach().cpu().contiguous().view(torch.uint8).numpy().data)
                if file.tell() - begin != tensor.size:
                    raise AssertionError(f"{tensor.name} came as {file.tell() - begin} bytes of {tensor.size}")
            _pad(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise ModelFileError(
            f"{path} could not be written ({error.strerror or error}); what was there before is unchanged",
            hint="check the free space and the permissions",
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _header(fields: Mapping[str, Any], tensors: list[Planned]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields))]
    for key, value in fields.items():
        kind, content = _packed(value)
        parts += [_text(key), struct.pack("<I", kind), content]
    begin = 0
    for tensor in tensors:
        shape = tuple(reversed(tensor.shape))
        number = KINDS[tensor.kind][1]
        parts += [_text(tensor.name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, begin)]
        begin += -(-tensor.size // ALIGNMENT) * ALIGNMENT
    return b"".join(parts)


def _packed(value: Any) -> tuple[int, bytes]:
    """The type of a value and its bytes."""
    match value:
        case bool():
            return _BOOL, struct.pack("<?", value)
        case int():
            return _UINT32, struct.pack("<I", value)
        case float():
            return _FLOAT32, struct.pack("<f", value)
        case str():
            return _STRING, _text(value)
        case [] | [str(), *_]:  # the lists that may be empty, such as merges, are of strings
            return _ARRAY, struct.pack("<IQ", _STRING, len(value)) + b"".join(map(_text, value))
        case [float(), *_]:
            return _ARRAY, struct.pack(f"<IQ{len(value)}f", _FLOAT32, len(value), *value)
        case [int(), *_]:
            return _ARRAY, struct.pack(f"<IQ{len(value)}i", _INT32, len(value), *value)
    raise TypeError(f"no type of GGUF for {value!r}")


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _pad(file: IO[bytes]) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
