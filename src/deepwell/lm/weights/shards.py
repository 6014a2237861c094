"""One safetensors file: what its header says, checked, and its tensors a few rows at a time.

The layout (https://github.com/huggingface/safetensors): 8 bytes of little-endian length, that many bytes of JSON (name
-> dtype, shape, byte range), then the tensors, one after the other and without gaps. We read it with plain reads into
one small buffer and not by mapping it: a mapped file counts as memory of the process for as long as it is mapped, and a
file that shrinks under a map kills the process, where a short read is an error that says so.

Nothing here runs what is in a file. A pickle, the format that would, is refused by its first bytes.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from deepwell.errors import ModelFileError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""The kinds of numbers that weights come in here, by their name in the header."""

_SIZES: Mapping[str, int] = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {
    "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_MOST_HEADER = 100_000_000
"""The safetensors library's own limit."""
BAND = 16 * 2**20
"""Bytes that are read at once."""

_FETCH = "fetch the file again"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor of a file is: ``begin`` and ``end`` are bytes from the start of the file."""

    name: str
    path: Path
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def where(self) -> str:
        """File and tensor, for messages."""
        return f"{self.path}: {self.name}"


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, without reading any.

    Raises:
        ModelFileError: The file is missing, truncated, no safetensors file (a pickle, GGUF, a Git LFS pointer) or
            damaged; names the file, and the tensor where one can be named.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
            _refuse_other_formats(path, start)
            length = int.from_bytes(start[:8], "little")
            file.seek(8)
            if len(start) < 9 or not 2 <= length <= min(size - 8, _MOST_HEADER):
                raise ModelFileError(
                    f"{path} is not a whole safetensors file: it says that its header has {length} bytes, and the file "
                    f"has {size}",
                    hint=_FETCH,
                )
            header = file.read(length)
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing", hint=_FETCH) from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror})") from error
    try:
        entries = json.loads(header, object_pairs_hook=_without_repetition)
        if not isinstance(entries, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} has a damaged header: {error}", hint=_FETCH) from error
    entries.pop("__metadata__", None)
    tensors = {name: _entry(path, name, entry, 8 + length) for name, entry in entries.items()}
    _check_ranges(path, tensors, 8 + length, size)
    return tensors


class ShardReader:
    """Reads tensors of one file. A context manager: the file is open inside.

    Args:
        path: The file, whose header ``read_header`` has checked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.FileIO | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def __enter__(self) -> ShardReader:
        try:
            self._file = self._path.open("rb", buffering=0)
        except OSError as error:
            raise ModelFileError(f"{self._path} cannot be read ({error.strerror})", hint=_FETCH) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, tensor: StoredTensor, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor, or some rows of it. It lies in this reader's buffer: the next ``read`` overwrites it.

        Raises:
            ModelFileError: The file ends before the tensor does, or holds numbers of a kind that is not known.
        """
        dtype = DTYPES.get(tensor.kind)
        if dtype is None:
            raise ModelFileError(
                f"{tensor.where} holds {tensor.kind} numbers, which are no weights that can be read here",
                hint=f"known are {', '.join(DTYPES)}",
            )
        begin, end = rows if rows is not None else (0, tensor.shape[0] if tensor.shape else 1)
        width = (tensor.end - tensor.begin) // max(1, tensor.shape[0] if tensor.shape else 1)
        size = (end - begin) * width
        if self._buffer.numel() < size:
            self._buffer = torch.empty(max(size, BAND), dtype=torch.uint8)
        self._fill(self._buffer.numpy().data[:size], tensor, tensor.begin + begin * width)
        return self._buffer[:size].view(dtype).view(end - begin, *tensor.shape[1:])

    def read_into(self, tensor: StoredTensor, target: Tensor) -> None:
        """A whole tensor, straight into memory of the same shape and dtype: contiguous, on the CPU.

        Raises:
            ModelFileError: The file ends before the tensor does.
        """
        self._fill(target.view(-1).view(torch.uint8).numpy().data, tensor, tensor.begin)

    def bands(self, tensor: StoredTensor, *, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """A tensor in parts of about ``BAND`` bytes: (first row, rows), a ``multiple`` of rows each but the last."""
        total = tensor.shape[0]
        width = (tensor.end - tensor.begin) // max(1, total)
        step = max(1, BAND // max(1, width) // multiple) * multiple
        for begin in range(0, total, step):
            yield begin, self.read(tensor, (begin, min(begin + step, total)))

    def _fill(self, target: memoryview, tensor: StoredTensor, position: int) -> None:
        file = self._file
        assert file is not None, "a ShardReader is used inside 'with'"
        done = 0
        try:
            file.seek(position)
            while done < len(target):
                count = file.readinto(target[done:])
                if not count:
                    raise ModelFileError(f"{tensor.path} ends inside {tensor.name}", hint=_FETCH)
                done += count
        except OSError as error:
            raise ModelFileError(f"{tensor.where} cannot be read ({error.strerror})", hint=_FETCH) from error


def looks_like_pickle(start: bytes) -> bool:
    """Whether a file's first 9 bytes are those of a pickle, or of the zip that torch wraps around one."""
    # A safetensors header of 384 bytes begins like a pickle of protocol 1; only its JSON tells them apart.
    pickle = start[:1] == b"\x80" and start[1:2] in (b"\x01", b"\x02", b"\x03", b"\x04", b"\x05")
    return start[:4] == b"PK\x03\x04" or (pickle and start[8:9] != b"{")


def pickle_error(path: Path) -> ModelFileError:
    """The error for weights that are a pickle."""
    return ModelFileError(
        f"{path} is a pickle, not safetensors; it is not opened, because opening a pickle runs what is in it",
        hint="fetch the safetensors files of this model, or have whoever made it save it as safetensors",
    )


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if looks_like_pickle(start):
        raise pickle_error(path)
    if start[:4] == b"GGUF":
        raise ModelFileError(
            f"{path} is a GGUF file, not safetensors", hint="give it the ending .gguf and open it alone"
        )
    if start[:8] == b"version ":
        raise ModelFileError(
            f"{path} is a Git LFS pointer and not the file itself", hint="run 'git lfs pull' in its repository"
        )


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return found


def _entry(path: Path, name: str, entry: Any, data: int) -> StoredTensor:
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        if not isinstance(kind, str) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("not numbers")
    except (TypeError, KeyError, ValueError) as error:
        raise ModelFileError(f"{path} has a damaged header: the entry of {name} makes no sense", hint=_FETCH) from error
    size = _SIZES.get(kind)
    if begin > end or (size is not None and math.prod(shape) * size != end - begin):
        raise ModelFileError(
            f"{path}: {name} is {kind} {shape}, and {end - begin} bytes are set aside for it", hint=_FETCH
        )
    return StoredTensor(name, path, kind, tuple(shape), data + begin, data + end)


def _check_ranges(path: Path, tensors: Mapping[str, StoredTensor], data: int, size: int) -> None:
    """Tensors follow each other without gap or overlap, and the file ends where the last one does."""
    reached = data
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != reached:
            what = "overlaps the tensor before it" if tensor.begin < reached else "does not follow the one before it"
            raise ModelFileError(f"{path} has a damaged header: {tensor.name} {what}", hint=_FETCH)
        reached = tensor.end
        if reached > size:
            raise ModelFileError(
                f"{path} is truncated: {tensor.name} ends at byte {reached}, the file at {size}", hint=_FETCH
            )
    if reached != size:
        raise ModelFileError(
            f"{path} is damaged: its tensors end at byte {reached}, and the file has {size}", hint=_FETCH
        )
