"""Writes a network as a checkpoint that other tools read: DeepSeek's layout, or Llama's, Mistral's and Qwen2's.

    write_checkpoint(model, Path("my-model"), precision="fp8", tokenizer=tokenizer)

The files are written into a folder beside the one that is wanted, under a hidden name, and moved into its place when
every byte is on disk. So a full disk or a kill leaves what was there before, never half a model.

Headers come first, because all sizes are known; then each tensor goes to its place band by band, so writing holds a few
megabytes beside the network. In FP8, the matrices of linear layers are cut into blocks of 128 x 128 with a scale each,
as in DeepSeek-V3's files; embedding, head, norms, router and ``eh_proj`` stay bfloat16, and the router's balancing bias
is float32 in every precision.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepwell.errors import ModelFormatError
from deepwell.lm.precision.fp8 import quantize_blocks, scale_shape
from deepwell.lm.weights.checkpoint import CONFIG, INDEX, SINGLE
from deepwell.lm.weights.names import FileTensor, layout
from deepwell.lm.weights.reading import SCALE
from deepwell.lm.weights.replacing import replaced_folder
from deepwell.lm.weights.saving import Precision
from deepwell.lm.weights.shards import BAND, DTYPES

if TYPE_CHECKING:
    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.weights.tokenizer import Tokenizer


_KINDS: Mapping[str, str] = {"bf16": "BF16", "f16": "F16", "f32": "F32", "fp8": "BF16"}
_TORCH_NAMES: Mapping[str, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_BLOCK = (128, 128)


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the files: what it is of memory, how its numbers are written, and its size in bytes."""

    tensor: FileTensor
    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * DTYPES[self.kind].itemsize


def write_checkpoint(
    model: Transformer,
    folder: str | Path,
    *,
    precision: Precision = "bf16",
    tokenizer: Tokenizer | None = None,
    shard_bytes: float = 5e9,
    power_of_two: bool = False,
) -> None:
    """Write a network to a folder: config, safetensors with an index, generation config and tokenizer.

    Args:
        model: The network, with its weights.
        folder: Made if it is not there. If it holds a checkpoint and nothing else, that is replaced.
        precision: Of the weights in the files.
        tokenizer: Written beside the weights.
        shard_bytes: A file becomes no larger, unless one tensor is.
        power_of_two: In FP8, round scales up to powers of two, as DeepSeek-V3.1 has them (``scale_fmt: ue8m0``).

    Raises:
        UsageError: The folder holds something that is not part of a checkpoint.
        ModelFormatError: A weight cannot be written in this precision: not finite, or too large for float16.
        ModelFileError: The disk is full, or the folder cannot be written.
    """
    held = _held(model)
    shards = _into_shards(plan(model, precision), shard_bytes)
    with replaced_folder(Path(folder)) as place:
        names = (
            [SINGLE]
            if len(shards) == 1
            else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        )
        for name, outputs in zip(names, shards, strict=True):
            _write_shard(place / name, outputs, held, power_of_two)
        if len(shards) > 1:
            weight_map = {output.name: name for name, outputs in zip(names, shards, strict=True) for output in outputs}
            size = sum(output.size for outputs in shards for output in outputs)
            _write_json(place / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
        _write_json(place / CONFIG, _config(model, precision, power_of_two))
        _write_json(place / "generation_config.json", _generation_config(model))
        if tokenizer is not None:
            tokenizer.save(place)


def plan(model: Transformer, precision: Precision) -> Iterator[PlannedTensor]:
    """Every tensor of the files in order, an FP8 matrix followed by its scales. Needs shapes only, not weights."""
    held = _held(model)
    for tensor in layout(model.config):
        if tensor.role == "spare":
            continue
        shape = tuple(_source(held, tensor).shape)
        if precision == "fp8" and tensor.linear:
            yield PlannedTensor(tensor, tensor.name, "F8_E4M3", shape)
            yield PlannedTensor(tensor, tensor.name + SCALE, "F32", scale_shape((shape[0], shape[1]), _BLOCK))
        else:
            # The router's bias decides between scores that are close: it is float32 wherever it is kept.
            kind = "F32" if tensor.into.endswith("e_score_correction_bias") else _KINDS[precision]
            yield PlannedTensor(tensor, tensor.name, kind, shape)


def _held(model: Transformer) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _into_shards(outputs: Iterator[PlannedTensor], limit: float) -> list[list[PlannedTensor]]:
    """As many in each as fit, in order; scales stay with their matrix."""
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for output in outputs:
        if size and size + output.size > limit and not output.name.endswith(SCALE):
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += output.size
    return shards


def _write_shard(path: Path, outputs: list[PlannedTensor], held: Mapping[str, Tensor], power_of_two: bool) -> None:
    # Wider numbers first, so that each tensor begins at a multiple of its width, as readers that map the file want.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places: dict[str, int] = {}
    end = 0
    for output in sorted(outputs, key=lambda output: -DTYPES[output.kind].itemsize):
        places[output.name] = end
        header[output.name] = {
            "dtype": output.kind, "shape": list(output.shape), "data_offsets": [end, end + output.size],
        }  # fmt: skip
        end += output.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(start + end)
        for output in outputs:
            if output.kind == "F8_E4M3":
                places_of_both = start + places[output.name], start + places[output.name + SCALE]
                _write_fp8(file, places_of_both, _source(held, output.tensor), output, power_of_two)
            elif not output.name.endswith(SCALE):
                file.seek(start + places[output.name])
                for band in _bands(_source(held, output.tensor), output.tensor):
                    _write(file, _converted(band, output))
        os.fsync(file.fileno())


def _write_fp8(
    file: io.FileIO, places: tuple[int, int], source: Tensor, output: PlannedTensor, power_of_two: bool
) -> None:
    scales = []
    file.seek(places[0])
    for band in _bands(source, output.tensor, multiple=_BLOCK[0]):
        try:
            quantized, scale_inv = quantize_blocks(band, block=_BLOCK, power_of_two=power_of_two)
        except ModelFormatError as error:
            raise ModelFormatError(f"{output.name}: {error.message}", hint=error.hint) from error
        _write(file, quantized)
        scales.append(scale_inv)
    file.seek(places[1])
    _write(file, torch.cat(scales))


def _source(held: Mapping[str, Tensor], tensor: FileTensor) -> Tensor:
    """The part of memory that a tensor of a file holds, a view; rows in memory's order."""
    source = held[tensor.into].detach()
    if tensor.expert is not None:
        source = source[tensor.expert]
    return source if tensor.rows is None else source[tensor.rows[0] : tensor.rows[1]]


def _bands(source: Tensor, tensor: FileTensor, *, multiple: int = 1) -> Iterator[Tensor]:
    """The rows in the file's order, a few megabytes at a time."""
    if tensor.rotary is not None:
        source = tensor.rotary.to_pairs(source)
    width = source[0].numel() * source.element_size()
    step = max(1, BAND // max(1, width) // multiple) * multiple
    for begin in range(0, source.shape[0], step):
        yield source[begin : begin + step]


def _converted(band: Tensor, output: PlannedTensor) -> Tensor:
    converted = band.to(DTYPES[output.kind])
    if output.kind == "F16" and not bool(converted.isfinite().all()):
        raise ModelFormatError(
            f"{output.name} holds values that float16 cannot (beyond 65504, or not finite)",
            hint="save with precision bf16",
        )
    return converted


def _write(file: io.FileIO, values: Tensor) -> None:
    data = values.cpu().contiguous().view(torch.uint8).numpy().data.cast("B")
    done = 0
    while done < len(data):
        done += file.write(data[done:])


def _config(model: Transformer, precision: Precision, power_of_two: bool) -> dict[str, Any]:
    config = model.config.to_hf() | {"torch_dtype": _TORCH_NAMES[_KINDS[precision]]}
    if precision == "fp8":
        scale_format = {"scale_fmt": "ue8m0"} if power_of_two else {}
        config["quantization_config"] = {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", **scale_format,
            "weight_block_size": list(_BLOCK),
        }  # fmt: skip
    return config


def _generation_config(model: Transformer) -> dict[str, Any]:
    config = model.config
    ends = list(config.eos_token_id)
    tokens = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": config.pad_token_id,
    }
    return {"_from_model_config": True} | {name: value for name, value in tokens.items() if value is not None}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
