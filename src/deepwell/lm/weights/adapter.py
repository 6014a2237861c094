"""LoRA adapters as files: PEFT's layout, so that other tools load ours and we theirs.

    my-adapter/
      adapter_config.json           rank, alpha, targets, and the name of the base
      adapter_model.safetensors     base_model.model.<matrix>.lora_A.weight [rank, in] and .lora_B.weight [out, rank]

Matrices are named as in the base's own files, and B's rows are in the files' order (rope's pairs, see ``rows``). A
fingerprint of the base's shape stands in the tensors' metadata, where other tools pass over it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepwell.errors import ModelFileError, ModelFormatError, UsageError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.checkpoint import read_json
from deepwell.lm.weights.lora import LoraConfig, LoraLinear, LoraPart, adaptable, attach, lora_layers
from deepwell.lm.weights.shards import ShardReader, StoredTensor, read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NAME = re.compile(re.escape(_PREFIX) + r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_FREE = {
    "name", "initializer_range", "aux_loss_alpha", "dynamic_gating", "max_position_embeddings", "bos_token_id",
    "eos_token_id", "pad_token_id",
}  # fmt: skip
"""Fields that do not change what weights mean."""
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "alpha_pattern": (None, {}),
    "target_parameters": (None, []),
    "init_lora_weights": (True, False, None, "gaussian", "eva"),
}
"""What an adapter's config may say of the parts of PEFT that are not here."""


def fingerprint(config: ModelConfig) -> str:
    """16 hexadecimal digits that are equal for networks whose weights mean the same."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def save_adapter(model: Transformer, folder: str | Path) -> None:
    """Write the adapter of a model, and nothing of its base.

    Raises:
        UsageError: The model has no adapter.
        ModelFileError: The folder cannot be written.
    """
    from safetensors.torch import save

    layers = lora_layers(model)
    if not layers:
        raise UsageError("the model has no adapter", hint="add one (add_lora) and train it")
    tensors: dict[str, Tensor] = {}
    for _, layer in layers:
        for part, a, b in layer.pieces():
            ordered = b.detach() if part.rotary is None else part.rotary.to_pairs(b.detach())
            name = f"{_PREFIX}{part.file_name}"
            tensors[f"{name}.lora_A.weight"] = a.detach().cpu().clone()
            tensors[f"{name}.lora_B.weight"] = ordered.cpu().clone()
    metadata = {"format": "pt", "deepwell_base": model.config.name, "deepwell_fingerprint": fingerprint(model.config)}
    described = json.dumps(_described(model.config, [layer for _, layer in layers]), indent=2)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / WEIGHTS, save(tensors, metadata=metadata))
        _write(folder / CONFIG, (described + "\n").encode())
    except OSError as error:
        raise ModelFileError(f"{folder} cannot be written ({error.strerror})") from error


def load_adapter(model: Transformer, folder: str | Path, *, any_base: bool = False) -> LoraConfig:
    """Put an adapter from files onto the model it was made for, in place; all is checked before the first change.

    Args:
        model: The base.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``, ours or PEFT's.
        any_base: Do not compare the base's name: another model of exactly the same shape is meant.

    Returns:
        What the adapter is. Its ``alpha / rank`` is the scaling, also where PEFT's was rank-stabilised.

    Raises:
        ModelFileError: A file is missing or damaged, a matrix has no place in the model or the wrong shape, or the
            adapter was made for another base. The message names file and tensor.
        ModelFormatError: It uses a part of PEFT that is not here (DoRA, trained biases, adapters on experts, ...).
        UsageError: The model has an adapter already.
    """
    folder = Path(folder)
    described = read_json(folder / CONFIG)
    config, scaling = _read_config(described, folder / CONFIG)
    path = folder / WEIGHTS
    header = read_header(path)
    if not any_base:
        _check_base(model.config, _metadata(path), described.get("base_model_name_or_path"), path)
    pairs = _pairs(header, path)
    chosen: dict[str, tuple[LoraPart, ...]] = {}
    for memory, parts in adaptable(model).items():
        found = tuple(part for part in parts if part.file_name in pairs)
        if found:
            chosen[memory] = found
    placed = {part.file_name for parts in chosen.values() for part in parts}
    for name in pairs:
        if name not in placed:
            raise _without_place(path, name)
    ranks = {pair["A"].shape[0] for pair in pairs.values()}
    if ranks != {config.rank}:
        raise ModelFormatError(
            f"{path}: adapters of several ranks ({sorted(ranks)}), and {folder / CONFIG} says {config.rank}",
            hint="all matrices of an adapter have one rank here",
        )
    values = _read(model, path, pairs, chosen)
    attach(model, chosen, config.rank, scaling, config.dropout)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            for part, a, b in layer.pieces():
                a.copy_(values[part.file_name]["A"])
                b.copy_(values[part.file_name]["B"])
    return config


def _read(
    model: Transformer,
    path: Path,
    pairs: Mapping[str, Mapping[str, StoredTensor]],
    chosen: Mapping[str, tuple[LoraPart, ...]],
) -> dict[str, dict[str, Tensor]]:
    """A and B of each matrix, B's rows in memory's order."""
    values: dict[str, dict[str, Tensor]] = {}
    with ShardReader(path) as reader:
        for memory, parts in chosen.items():
            columns = model.get_submodule(memory).in_features
            for part in parts:
                a, b = pairs[part.file_name]["A"], pairs[part.file_name]["B"]
                begin, end = part.rows
                for tensor, shape in ((a, (a.shape[0], columns)), (b, (end - begin, a.shape[0]))):
                    if tensor.shape != shape:
                        raise ModelFileError(
                            f"{tensor.where} has shape {list(tensor.shape)}; the model makes it {list(shape)}",
                            hint="the adapter was made for another model",
                        )
                read = {"A": reader.read(a).clone(), "B": reader.read(b).clone()}
                for side, value in read.items():
                    if not value.isfinite().all():
                        raise ModelFileError(f"{pairs[part.file_name][side].where} holds NaN or infinity")
                if part.rotary is not None:
                    read["B"] = part.rotary.to_halves(read["B"])
                values[part.file_name] = read
    return values


def _pairs(header: Mapping[str, StoredTensor], path: Path) -> dict[str, dict[str, StoredTensor]]:
    """The two tensors of each matrix, by the matrix's name in the base's files."""
    pairs: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in header.items():
        if name.endswith(".base_layer.weight"):
            continue  # PEFT keeps a copy of a head or embedding that it adapts
        match = _NAME.fullmatch(name)
        if match is None or len(tensor.shape) != 2:
            raise ModelFormatError(f"{tensor.where} is no part of a LoRA adapter on matrices")
        pairs.setdefault(match[1], {})[match[2]] = tensor
    for name, pair in pairs.items():
        if len(pair) < 2:
            lost = ({"A", "B"} - pair.keys()).pop()
            raise ModelFileError(f"{path}: {_PREFIX}{name}.lora_{lost}.weight is missing", hint="fetch the file again")
    if not pairs:
        raise ModelFileError(f"{path} holds no adapter: it has no tensors")
    return pairs


def _read_config(described: Mapping[str, Any], path: Path) -> tuple[LoraConfig, float]:
    for field, allowed in _REFUSED.items():
        if field in described and described[field] not in allowed:
            raise ModelFormatError(
                f"{path}: {field} is {described[field]!r}, which is not supported",
                hint="merge the adapter with the tool that made it, and load the merged model",
            )
    rank, alpha = described.get("r"), described.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ModelFileError(f"{path}: r is {rank!r}; it is a whole number of at least 1")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ModelFileError(f"{path}: lora_alpha is {alpha!r}; it is a number")
    dropout = described.get("lora_dropout") or 0.0
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ModelFileError(f"{path}: lora_dropout is {dropout!r}; it is at least 0 and below 1")
    # Rank-stabilised (arXiv 2312.03732): alpha / sqrt(rank), which as alpha / rank is another alpha.
    alpha = alpha * math.sqrt(rank) if described.get("use_rslora") else float(alpha)
    targets = described.get("target_modules")
    named = (targets,) if isinstance(targets, str) else tuple(str(target) for target in targets or ())
    return LoraConfig(rank=rank, alpha=alpha, targets=named or ("all-linear",), dropout=dropout), alpha / rank


def _check_base(config: ModelConfig, metadata: Mapping[str, str], base: Any, path: Path) -> None:
    name, print_ = metadata.get("deepwell_base", ""), metadata.get("deepwell_fingerprint")
    if print_ is not None and print_ != fingerprint(config):
        raise ModelFileError(
            f"{path} was made for {name or base or 'another model'} (shape {print_}), and this model is "
            f"{config.name or 'nameless'} (shape {fingerprint(config)})",
            hint="open the model that the adapter was made for",
        )
    if name and config.name and name != config.name:
        raise ModelFileError(
            f"{path} was made for {name}, and this model of the same shape is {config.name}",
            hint="open that model, or say any_base=True if this one is meant",
        )


def _without_place(path: Path, name: str) -> ModelFileError | ModelFormatError:
    if re.search(r"\.experts\.\d+\.", name):
        return ModelFormatError(
            f"{path}: {_PREFIX}{name} adapts an expert; experts are stacked in one tensor here and take no adapter",
            hint="merge the adapter with the tool that made it, and load the merged model",
        )
    return ModelFileError(
        f"{path}: {_PREFIX}{name} has no place in this model", hint="the adapter was made for another model"
    )


def _metadata(path: Path) -> dict[str, str]:
    """The words beside the tensors; ``read_header`` has checked the file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found = header.get("__metadata__")
    return found if isinstance(found, dict) else {}


def _described(config: ModelConfig, layers: list[LoraLinear]) -> dict[str, Any]:
    first = layers[0]
    names = {part.file_name for layer in layers for part in layer.parts}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.name or None,
        "r": first.rank,
        "lora_alpha": first.scaling * first.rank,
        "lora_dropout": first.dropout.p,
        # By whole name: an ending such as up_proj would reach the experts too where a tool holds them one by one.
        "target_modules": sorted(names),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
