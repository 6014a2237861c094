"""Tensors in files that can be trusted: written in one pass, each file hashed on the way, mapped when read.

A *piece* is one safetensors file of up to 256 MB. Sizes are known before anything is written, so its header comes first
and the tensors follow, one after the other, a few megabytes at a time: writing holds one tensor beside the network, and
of a tensor that is spread over processes its whole form for as long as it takes to write it.

The layout depends on names, shapes and dtypes alone, so every process computes the same one without asking others. Wide
numbers stand before narrow ones: without holes, which safetensors forbids, each tensor then begins at a multiple of its
own width, and a map of the file is a tensor as it stands.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepwell.errors import TrainingError, UsageError
from deepwell.lm.weights.shards import BAND

PIECE_BYTES = 256 * 2**20
"""A piece becomes no larger, unless one tensor is."""

KINDS: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The kinds of numbers that a piece can hold, by their names in safetensors."""

_NAMES = {dtype: name for name, dtype in KINDS.items()}
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor stands: ``begin`` and ``end`` are bytes from the start of the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One file: its name, the process that writes it, its first bytes, and its tensors in order."""

    file: str
    owner: int
    header: bytes
    places: tuple[Place, ...]

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return self.places[-1].end


def lay_out(tensors: Mapping[str, Tensor], processes: int = 1, piece_bytes: int = PIECE_BYTES) -> list[Piece]:
    """Which tensor goes where, and which process writes it: every process about as many bytes.

    Raises:
        UsageError: A tensor's numbers are of a kind that safetensors does not have; names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise UsageError(f"{name} has the dtype {tensor.dtype}, which a checkpoint cannot hold")
    piles: list[list[list[str]]] = [[] for _ in range(processes)]
    piled, open_bytes = [0] * processes, [0] * processes
    for name in sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize):
        size = tensors[name].numel() * tensors[name].dtype.itemsize
        owner = piled.index(min(piled))
        if not piles[owner] or open_bytes[owner] + size > piece_bytes:
            piles[owner].append([])
            open_bytes[owner] = 0
        piles[owner][-1].append(name)
        piled[owner] += size
        open_bytes[owner] += size
    groups = [(owner, names) for owner, pile in enumerate(piles) for names in pile]
    return [
        _piece(f"piece-{index:05}.safetensors", owner, {name: tensors[name] for name in names})
        for index, (owner, names) in enumerate(groups)
    ]


def _piece(file: str, owner: int, tensors: Mapping[str, Tensor]) -> Piece:
    spans: list[tuple[str, Tensor, int, int]] = []
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        spans.append((name, tensor, begin, end))
    entries = {
        name: {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, last]}
        for name, tensor, begin, last in spans
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    first = len(header)
    places = tuple(
        Place(name, _NAMES[tensor.dtype], tuple(tensor.shape), first + begin, first + last)
        for name, tensor, begin, last in spans
    )
    return Piece(file, owner, header, places)


def write_piece(folder: Path, piece: Piece, tensors: Iterable[Tensor]) -> str:
    """Write a file, have it reach the disk, and return its SHA-256. ``tensors`` come in the order of the places.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    path = folder / piece.file
    digest = hashlib.sha256(piece.header)
    with path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), piece.header)
        for tensor in tensors:
            for band in _bands(tensor):
                digest.update(band)
                _write_all(file.fileno(), band)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _write_all(handle: int, data: bytes | memoryview) -> None:
    """A write to a disk that is nearly full takes a part; the next one then says why."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _bands(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor as they stand in memory, a few megabytes at a time."""
    flat = tensor.detach().reshape(-1)
    values = BAND // flat.dtype.itemsize
    for start in range(0, flat.numel(), values):
        band: Any = flat[start : start + values].contiguous().cpu().view(torch.uint8).numpy()
        yield memoryview(band)


def check_piece(path: Path, size: int, sha256: str) -> None:
    """Read a file and compare it with what was written.

    Raises:
        TrainingError: It is missing, has another length, cannot be read, or other bytes. Names the file.
    """
    digest = hashlib.sha256()
    try:
        found = path.stat().st_size
        if found != size:
            raise TrainingError(f"{path} is truncated or was changed: it has {found} bytes, and {size} were written")
        with path.open("rb", buffering=0) as file:
            while band := file.read(BAND):
                digest.update(band)
    except FileNotFoundError:
        raise TrainingError(f"{path} is missing") from None
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror})") from error
    if digest.hexdigest() != sha256:
        raise TrainingError(f"{path} is damaged: its bytes are not those that were written")


class MappedTensors(Mapping[str, Tensor]):
    """Tensors of checked files, by name; a file is mapped when the first of its tensors is asked for.

    What one gets may be written to, which changes neither the file nor what the next one gets of other tensors. It
    stays good when the files are deleted.
    """

    def __init__(self, folder: Path, files: Mapping[str, Sequence[Place]]) -> None:
        self._folder = folder
        self._where = {place.name: (file, place) for file, places in files.items() for place in places}
        self._sizes = {file: max((place.end for place in places), default=0) for file, places in files.items()}
        self._maps: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        file, place = self._where[name]
        dtype = KINDS[place.kind]
        if place.begin == place.end:
            return torch.empty(place.shape, dtype=dtype)
        if file not in self._maps:
            path = str(self._folder / file)
            self._maps[file] = torch.from_file(path, shared=False, size=self._sizes[file], dtype=torch.uint8)
        return self._maps[file][place.begin : place.end].view(dtype).view(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def fits(place: Place, size: int) -> bool:
    """Whether a place is one that a file of ``size`` bytes can have: known kind, whole numbers, inside, aligned."""
    if place.kind not in KINDS or min((0, *place.shape)) < 0:
        return False
    width = KINDS[place.kind].itemsize
    wanted = math.prod(place.shape) * width
    return 0 <= place.begin <= place.end <= size and place.end - place.begin == wanted and place.begin % width == 0
