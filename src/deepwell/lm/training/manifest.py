"""What stands beside the pieces of a checkpoint: which tensors are where, the hash of every piece, and plain values.

``manifest.json`` is for people too: step, values, and for each piece its file, bytes, SHA-256 and tensors with dtype,
shape and place. ``manifest.sha256`` has the manifest's own hash, in the form that ``sha256sum -c`` takes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepwell.errors import TrainingError
from deepwell.lm.training.pieces import Piece, Place, fits
from deepwell.lm.weights.replacing import sync_folder

FORMAT, VERSION = "deepwell-checkpoint", 1
MANIFEST, MANIFEST_HASH = "manifest.json", "manifest.sha256"


@dataclass(frozen=True, slots=True)
class PieceEntry:
    """A piece as it was written."""

    file: str
    size: int
    sha256: str
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that a checkpoint holds but the tensors themselves."""

    step: int
    values: dict[str, Any]
    pieces: tuple[PieceEntry, ...]


def write_manifest(
    folder: Path, step: int, values: Mapping[str, Any], pieces: Sequence[Piece], hashes: Mapping[str, str]
) -> None:
    """Write both files, and have them and all names in the folder reach the disk.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    entries = [
        {
            "file": piece.file,
            "bytes": piece.size,
            "sha256": hashes[piece.file],
            "tensors": [asdict(place) for place in piece.places],
        }
        for piece in pieces
    ]
    whole = {"format": FORMAT, "version": VERSION, "step": step, "values": values, "pieces": entries}
    text = json.dumps(whole, indent=1).encode()
    _write(folder / MANIFEST, text)
    _write(folder / MANIFEST_HASH, f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode())
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read and check both files; the pieces themselves are not looked at.

    Raises:
        TrainingError: One is missing, damaged, or of another format; names it.
    """
    path, beside = folder / MANIFEST, folder / MANIFEST_HASH
    try:
        text = path.read_bytes()
        words = beside.read_text(encoding="ascii", errors="replace").split()
    except FileNotFoundError as error:
        raise TrainingError(f"{error.filename} is missing") from None
    except OSError as error:
        raise TrainingError(f"{error.filename} cannot be read ({error.strerror})") from error
    if words != [hashlib.sha256(text).hexdigest(), MANIFEST]:
        raise TrainingError(f"{path} is damaged or truncated: its bytes are not those that {beside.name} says")
    try:
        return _parsed(path, json.loads(text))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise TrainingError(f"{path} contradicts itself ({error})") from error


def _parsed(path: Path, whole: Any) -> Manifest:
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise TrainingError(f"{path} is not the manifest of a checkpoint")
    if whole.get("version") != VERSION:
        raise TrainingError(
            f"{path} has version {whole.get('version')} of the format, and this Deepwell reads version {VERSION}",
            hint="use the Deepwell that wrote it",
        )
    entries = []
    for piece in whole["pieces"]:
        places = tuple(Place(**{**place, "shape": tuple(place["shape"])}) for place in piece["tensors"])
        for place in places:
            if not fits(place, piece["bytes"]):
                raise ValueError(f"{place.name} does not fit into {piece['file']}")
        if Path(piece["file"]).name != piece["file"]:
            raise ValueError(f"{piece['file']!r} is not the name of a file")
        entries.append(PieceEntry(piece["file"], piece["bytes"], piece["sha256"], places))
    return Manifest(whole["step"], dict(whole["values"]), tuple(entries))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
