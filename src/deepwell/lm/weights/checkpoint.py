"""A folder with a checkpoint: which tensor is in which file, known from headers alone.

    my-model/
      config.json                       what network (and quantization_config, if its matrices are FP8)
      model.safetensors.index.json      which tensor is in which file; or
      model.safetensors                 everything in one file; or several files and no index
      tokenizer.json ...

``open_checkpoint`` reads config, index and headers, and refuses whatever is not whole or not weights that can be read,
before any tensor is. A few kilobytes a file are read, so this is quick for any model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from deepwell.errors import ModelFileError, ModelFormatError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.weights.shards import StoredTensor, pickle_error, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"

_FETCH = "fetch the file again"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NOT_WEIGHTS = {"training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin"}
"""Files beside weights that look like them."""
_BLOCK = (128, 128)
_NUMBERED = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(\.safetensors)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is in a folder.

    Attributes:
        folder: The folder.
        config: What network ``config.json`` describes.
        tensors: Every tensor of every file, by its name there, scales of FP8 included.
        block: Rows and columns that share a scale in FP8 matrices; (128, 128) where nothing is said.
    """

    folder: Path
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    block: tuple[int, int]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.end - tensor.begin for tensor in self.tensors.values())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config, index and headers.

    Raises:
        ModelFileError: A file is missing, truncated, damaged or a pickle; a tensor is in two files or not in the one
            that the index names. The message names file and tensor.
        ModelConfigError: ``config.json`` describes no network that is known here.
        ModelFormatError: The weights are quantised in a way that is not read here.
    """
    if not folder.is_dir():
        raise ModelFileError(f"there is no folder {folder}", hint="check the path")
    path = folder / CONFIG
    described = read_json(path)
    block = _fp8_block(described, path)
    config = ModelConfig.from_hf(described, where=str(path))
    return Checkpoint(folder, config, _find_tensors(folder), block)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelFileError: The file is missing, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(
            f"{path} is missing", hint="a checkpoint is a folder with config.json and weights"
        ) from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON: {error}", hint=_FETCH) from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds {type(value).__name__}, not a JSON object", hint=_FETCH)
    return value


def _fp8_block(described: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Rows and columns that share a scale. Refuses every other way to quantise."""
    quantization = described.get("quantization_config")
    if quantization is None:
        return _BLOCK
    if not isinstance(quantization, dict):
        raise ModelFileError(f"{path}: quantization_config is {quantization!r}, not a JSON object", hint=_FETCH)
    method = quantization.get("quant_method")
    if method != "fp8":
        raise ModelFormatError(
            f"{path}: quantization_config.quant_method is {method!r}, and of quantised checkpoints only 'fp8' is read",
            hint="take the model's unquantised checkpoint, or its GGUF file",
        )
    block = quantization.get("weight_block_size")
    sides = block if isinstance(block, list) and all(type(side) is int and side > 0 for side in block) else []
    if len(sides) != 2 or quantization.get("fmt", "e4m3") != "e4m3":
        raise ModelFormatError(
            f"{path}: quantization_config has weight_block_size {block!r} and fmt {quantization.get('fmt')!r}; "
            "FP8 is read as e4m3 with one scale for each block, [128, 128] as a rule",
            hint="take the model's unquantised checkpoint",
        )
    return sides[0], sides[1]


def _find_tensors(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX
    promised = _read_index(index) if index.is_file() else {}
    files = sorted({folder / file for file in promised.values()}) if promised else _unindexed(folder)
    for name, file in promised.items():
        if not (folder / file).is_file():
            lost = sum(1 for other in promised.values() if other == file)
            raise ModelFileError(
                f"{folder / file} is missing; {INDEX} puts {lost} tensors in it, {name} among them", hint=_FETCH
            )
    found: dict[str, StoredTensor] = {}
    for file_path in files:
        for name, tensor in read_header(file_path).items():
            if name in found:
                raise ModelFileError(
                    f"{name} is in both {found[name].path} and {file_path}",
                    hint="keep the files of one checkpoint only in this folder",
                )
            found[name] = tensor
    for name, file in promised.items():
        if name not in found or found[name].path != folder / file:
            elsewhere = f"it is in {found[name].path.name}" if name in found else "it is in no file"
            raise ModelFileError(f"{index} puts {name} in {file}, and {elsewhere}", hint=_FETCH)
    return found


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> file name. A name that could lead out of the folder is refused."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{path} has no weight_map", hint=_FETCH)
    for name, file in weight_map.items():
        endings = (".safetensors", *_PICKLES)
        if not (isinstance(file, str) and PureWindowsPath(file).name == file and file.endswith(endings)):
            raise ModelFileError(
                f"{path} puts {name} in {file!r}, which is no file of this folder", hint="do not trust this checkpoint"
            )
        if file.endswith(_PICKLES):
            raise pickle_error(path.parent / file)
    return weight_map


def _unindexed(folder: Path) -> list[Path]:
    """The files of weights where no index says which they are."""
    single = folder / SINGLE
    if single.is_file():
        return [single]
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    if files:
        _check_numbers(files)
        return files
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLES and path.name not in _NOT_WEIGHTS:
            raise pickle_error(path)
    if (folder / "adapter_model.safetensors").is_file():
        raise ModelFileError(
            f"{folder} holds a LoRA adapter and no model", hint="open the model that it was made for, then the adapter"
        )
    raise ModelFileError(f"there are no weights in {folder}", hint=f"it should hold {SINGLE}, or shards and {INDEX}")


def _check_numbers(files: list[Path]) -> None:
    """Where names say "3 of 5", all five are there."""
    for path in files:
        if match := _NUMBERED.fullmatch(path.name):
            before, _, of, count, after = match.groups()
            for number in range(1, int(count) + 1):
                other = path.with_name(f"{before}{number:05}{of}{count}{after}")
                if not other.is_file():
                    raise ModelFileError(f"{other} is missing, and {path.name} is there", hint=_FETCH)
