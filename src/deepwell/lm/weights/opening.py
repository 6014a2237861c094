"""From a name, a folder or a GGUF file to a network with its tokenizer.

model, tokenizer = load("smollm2-135m-instruct")            # a model of `deepwell models list`
model, tokenizer = load("./my-model", dtype="f32")          # a folder: config.json, safetensors, tokenizer.json
model, tokenizer = load("downloads/model.Q4_K_M.gguf")      # one file
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deepwell import models
from deepwell.errors import MissingExtraError, MissingModelError, ModelFileError, UsageError

if TYPE_CHECKING:
    import torch

    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.weights.tokenizer import Tokenizer

DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"}
"""Words for the dtype of a network's weights, and torch's names."""


def load(
    name_or_path: str | Path,
    *,
    dtype: str = "bf16",
    device: str | torch.device = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Transformer, Tokenizer]:
    """Read a network and its tokenizer.

    Args:
        name_or_path: A name as in ``deepwell models list``, a folder with a checkpoint or with one GGUF file, or a GGUF
            file.
        dtype: Of the weights in memory, whatever the files have: bf16, f16, f32 or f64.
        device: Where the network goes.
        on_progress: Called with the bytes that are read and the bytes there are; not for GGUF.

    Raises:
        MissingModelError: It is not on this machine; the hint names the command that fetches it.
        UsageError: There is no such name, dtype or device.
        ModelFileError: A file is missing, damaged or does not fit; names file and tensor.
        ModelConfigError: The network is of a kind that is not known here.
        ModelFormatError: The weights are quantised in a way that is not read here.
        MissingExtraError: torch is not installed.
    """
    if dtype not in DTYPES:
        raise UsageError(f"there is no dtype {dtype!r}", hint=f"use one of {', '.join(DTYPES)}")
    path = locate(name_or_path)
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("language models need torch", hint="Run: pip install 'deepwell[lm]'") from error
    place = usable(device)
    if path.is_file():
        from deepwell.lm.weights.gguf.reading import read_gguf

        return read_gguf(path, dtype=getattr(torch, DTYPES[dtype]), device=place)
    from deepwell.lm.weights.reading import read_checkpoint
    from deepwell.lm.weights.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(path)  # first, because it is quick to fail
    return read_checkpoint(path, dtype=getattr(torch, DTYPES[dtype]), device=place, on_progress=on_progress), tokenizer


def usable(device: str | torch.device) -> torch.device:
    """The device of this name.

    Raises:
        UsageError: There is none here.
    """
    import torch

    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"device {str(device)!r} cannot be used: {reason}", hint="use cpu, or cuda with a GPU"
        ) from error
    return place


def locate(name_or_path: str | Path) -> Path:
    """The checkpoint's folder or the GGUF file that is meant; nothing is read.

    Raises:
        MissingModelError: It is not on this machine.
        UsageError: There is no such name.
        ModelFileError: The folder or file holds no model that can be read.
    """
    path = Path(name_or_path).expanduser()
    if isinstance(name_or_path, str) and not _is_path(name_or_path):
        try:
            path = models.folder(name_or_path)
        except (MissingModelError, UsageError):
            # What `save` was given without a separator is found again, in the folder where one is.
            if not path.exists():
                raise
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise MissingModelError(f"there is no model at {path}", hint="check the path, or see: deepwell models list")
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] == b"GGUF" or path.suffix == ".gguf":
        return path
    from deepwell.lm.weights.shards import looks_like_pickle, pickle_error

    if looks_like_pickle(start):
        raise pickle_error(path)
    raise ModelFileError(
        f"{path} is no model", hint="give a GGUF file, or the folder that holds config.json and the safetensors files"
    )


def _in_folder(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise ModelFileError(f"{folder} holds several GGUF files: {names}", hint="give the one that is meant")
    raise ModelFileError(
        f"{folder} holds no model", hint="a model's folder holds config.json and weights, or a GGUF file"
    )


def _is_path(name: str) -> bool:
    """Whether a string can only be a path: it has a separator, begins with ~ or ., or ends like a file."""
    separators = (os.sep, os.altsep) if os.altsep else (os.sep,)
    return name.startswith(("~", ".")) or name.endswith(".gguf") or any(mark in name for mark in separators)
