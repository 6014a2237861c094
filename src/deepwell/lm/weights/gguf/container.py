"""What lies where in a GGUF file: its header, read once, with nothing believed that the file's size contradicts.

A file holds, in this order: the word ``GGUF``, a version, two counts; that many pairs of key and typed value; that many
descriptions of tensors (name, shape, kind of numbers, place); then the numbers themselves, each tensor at a multiple of
the alignment (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Shapes stand there fastest dimension first;
here they are turned round, as torch has them.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepwell.errors import MissingExtraError, ModelFileError

_AGAIN = "the copy is not whole; fetch the file again"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32 = 6
_DEEPEST = 4
"""Arrays in arrays beyond this are an attack and not a model."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor of the file: its shape as torch has it, its kind of numbers (ggml's word), where its bytes are."""

    name: str
    shape: tuple[int, ...]
    kind: str
    begin: int
    size: int


@dataclass(frozen=True, slots=True)
class Container:
    """An opened file. ``fields`` are its metadata as plain Python values, ``tensors`` its tensors by name."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, TensorPlace]

    def rows(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, [rows, bytes of a row], mapped and not read. A vector is one row."""
        place = self.tensors[name]
        data = np.memmap(self.path, dtype=np.uint8, mode="r", offset=place.begin, shape=(place.size,))
        count = int(np.prod(place.shape[:-1], dtype=np.int64))
        return data.reshape(count, -1)


def open_gguf(path: Path) -> Container:
    """Read the header of a file.

    Raises:
        ModelFileError: It is missing, no GGUF file, big-endian, one part of several, damaged or cut off, or holds a
            kind of numbers that is not known. The message names the file, and the key or tensor where there is one.
        MissingExtraError: The ``gguf`` package, which knows the quantisations, is not installed.
    """
    sizes = _block_sizes()
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                file.seek(0)
                begins = file.read(4) == b"GGUF"
                raise ModelFileError(f"{path}: {'ends in its header' if begins else 'not a GGUF file'}", hint=_AGAIN)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _header(path, data, size, sizes)
    except OSError as e:
        raise ModelFileError(f"{path}: cannot be read: {e.strerror or e}") from e


def _header(path: Path, data: mmap.mmap, size: int, sizes: Mapping[int, tuple[str, int, int]]) -> Container:
    if data[:4] != b"GGUF":
        raise ModelFileError(f"{path}: not a GGUF file (it begins with {data[:4]!r})")
    cursor = _Cursor(path, data, 4)
    version = cursor.number("I")
    if version and version & 0xFFFF == 0:
        raise ModelFileError(f"{path}: a big-endian GGUF file", hint="convert it with gguf-convert-endian first")
    if version not in {2, 3}:
        raise ModelFileError(f"{path}: version {version} of GGUF; versions 2 and 3 are known")
    tensor_count, field_count = cursor.number("Q"), cursor.number("Q")
    cursor.promised(tensor_count * 24 + field_count * 13, "its counts of tensors and keys")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = cursor.string("a key")
        fields[key] = cursor.value(cursor.number("I"), key)
    if fields.get("split.count", 1) not in (0, 1):
        raise ModelFileError(
            f"{path}: one part of {fields['split.count']}", hint="join them with llama-gguf-split --merge first"
        )
    described = [_describe(path, cursor, sizes) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ModelFileError(f"{path}: general.alignment is {alignment!r}; it is a whole number above 0")
    begin = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorPlace] = {}
    for place in described:
        if place.name in tensors:
            raise ModelFileError(f"{path}: tensor {place.name} is there twice")
        if begin + place.begin + place.size > size:
            raise ModelFileError(f"{path}: cut off within tensor {place.name}", hint=_AGAIN)
        tensors[place.name] = TensorPlace(place.name, place.shape, place.kind, begin + place.begin, place.size)
    return Container(path, fields, tensors)


def _describe(path: Path, cursor: _Cursor, sizes: Mapping[int, tuple[str, int, int]]) -> TensorPlace:
    """The next description of a tensor; its place still counts from the end of the header."""
    name = cursor.string("the name of a tensor")
    dimensions = cursor.number("I")
    if not 1 <= dimensions <= 4:
        raise ModelFileError(f"{path}: tensor {name} has {dimensions} dimensions; there are 1 to 4")
    shape = tuple(reversed([cursor.number("Q") for _ in range(dimensions)]))
    number, begin = cursor.number("I"), cursor.number("Q")
    if number not in sizes:
        raise ModelFileError(
            f"{path}: tensor {name} holds numbers of kind {number}, which is not known", hint="update the gguf package"
        )
    kind, block, block_bytes = sizes[number]
    if min(shape) < 1 or shape[-1] % block:
        raise ModelFileError(f"{path}: tensor {name} has shape {list(shape)}; rows of {kind} are blocks of {block}")
    values = 1
    for length in shape:
        values *= length
    return TensorPlace(name, shape, kind, begin, values // block * block_bytes)


class _Cursor:
    """Reads on through the header, and never beyond the file."""

    def __init__(self, path: Path, data: mmap.mmap, at: int) -> None:
        self.path, self.data, self.at = path, data, at

    def promised(self, count: int, what: str) -> None:
        """Check that so many bytes are still there."""
        if count > len(self.data) - self.at:
            raise ModelFileError(f"{self.path}: cut off or damaged within {what}", hint=_AGAIN)

    def number(self, code: str, what: str = "its header") -> Any:
        form = struct.Struct("<" + code)
        self.promised(form.size, what)
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def string(self, what: str) -> str:
        length = self.number("Q", what)
        self.promised(length, what)
        raw = self.data[self.at : self.at + length]
        self.at += length
        # Tokens of byte-level vocabularies may hold broken UTF-8; one replacement character does no harm there.
        return raw.decode("utf-8", errors="replace")

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string(key)
        if kind in _SCALARS:
            value = self.number(_SCALARS[kind], key)
            return _shortest(value) if kind == _FLOAT32 else value
        if kind != _ARRAY or depth == _DEEPEST:
            raise ModelFileError(f"{self.path}: the value of {key} is of an unknown type ({kind})", hint=_AGAIN)
        inner, count = self.number("I", key), self.number("Q", key)
        if inner in _SCALARS:
            form = _SCALARS[inner]
            width = struct.calcsize("<" + form)
            self.promised(count * width, key)
            values = np.frombuffer(self.data, dtype=np.dtype(form).newbyteorder("<"), count=count, offset=self.at)
            self.at += count * width
            return values.tolist()
        self.promised(count * (8 if inner == _STRING else 12), key)
        return [self.value(inner, key, depth + 1) for _ in range(count)]


def _shortest(value: float) -> float:
    """The shortest decimal that this float32 stands for: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _block_sizes() -> dict[int, tuple[str, int, int]]:
    """Of each kind of numbers: its word, how many values a block holds, and of how many bytes."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError as e:
        raise MissingExtraError(
            "GGUF files need the gguf package, which is not installed", hint="pip install 'deepwell[lm]'"
        ) from e
    return {int(kind): (kind.name, values, size) for kind, (values, size) in GGML_QUANT_SIZES.items()}
