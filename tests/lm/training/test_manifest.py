"""What stands beside the pieces."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from deepwell.errors import TrainingError
from deepwell.lm.training.manifest import MANIFEST, MANIFEST_HASH, read_manifest, write_manifest
from deepwell.lm.training.pieces import lay_out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pieces = lay_out({"a": torch.ones(2, 3), "b": torch.tensor(1)})
    write_manifest(tmp_path, 7, {"loss": 0.1, "none": None}, pieces, {piece.file: "ab" * 32 for piece in pieces})
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    """As someone would who also knows how to hash."""
    whole = json.loads((folder / MANIFEST).read_text())
    whole = change(whole) or whole
    text = json.dumps(whole).encode()
    (folder / MANIFEST).write_bytes(text)
    (folder / MANIFEST_HASH).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")


def test_what_was_written_is_read(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert (manifest.step, manifest.values) == (7, {"loss": 0.1, "none": None})
    (piece,) = manifest.pieces
    assert piece.sha256 == "ab" * 32
    assert {place.name: (place.kind, place.shape) for place in piece.places} == {"a": ("F32", (2, 3)), "b": ("I64", ())}
    rewrite(folder, lambda whole: None)
    assert read_manifest(folder) == manifest


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_the_hash_is_one_that_sha256sum_checks(folder: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--status", MANIFEST_HASH], cwd=folder, check=True)


@pytest.mark.parametrize("length", range(0, 400, 23))
def test_a_truncated_manifest(folder: Path, length: int) -> None:
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(TrainingError, match=r"manifest\.json is damaged or truncated"):
        read_manifest(folder)


@pytest.mark.parametrize("name", [MANIFEST, MANIFEST_HASH])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(TrainingError, match=rf"{name} is missing"):
        read_manifest(folder)


def test_a_later_format_says_so(folder: Path) -> None:
    rewrite(folder, lambda whole: whole.update(version=2))
    with pytest.raises(TrainingError, match="version 2") as caught:
        read_manifest(folder)
    assert "the Deepwell that wrote it" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: [whole],
        lambda whole: {"format": "other"},
        lambda whole: whole.pop("values") and None,
        lambda whole: whole["pieces"][0].update(file="../../secret"),
        lambda whole: whole["pieces"][0].update(bytes=10),
        lambda whole: whole["pieces"][0]["tensors"][0].update(shape=[2]),
        lambda whole: whole["pieces"][0]["tensors"][0].update(shape=None),
        lambda whole: whole["pieces"][0]["tensors"][0].update(begin="0"),
        lambda whole: whole["pieces"][0]["tensors"][0].update(extra=1),
        lambda whole: whole.update(pieces=3),
    ],
)
def test_a_manifest_that_contradicts_itself_is_an_error_and_never_a_wrong_tensor(folder: Path, change: Any) -> None:
    rewrite(folder, change)
    with pytest.raises(TrainingError, match=r"manifest\.json"):
        read_manifest(folder)
