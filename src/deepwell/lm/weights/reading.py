"""Reads a checkpoint into a network, file after file, a few rows at a time.

    model = read_checkpoint(Path("my-model"), dtype=torch.bfloat16, device="cpu")

Before a single weight is read, every name and shape in the files is compared with what the network needs, so a
checkpoint that does not fit fails within a second. Then each tensor goes band by band from its file to its place: what
is held beside the network is one band of 16 MB (a whole matrix where rope's rows change their order).

FP8 matrices are multiplied by their scales on the way. A checkpoint whose config promises multi-token prediction may
lack those layers, because several tools drop them when they save: then the network has none. If part of such a layer is
there, the rest must be. Copies of embedding and head (in MTP layers, or a head that is tied) must equal the originals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepwell.errors import ModelFileError, ModelFormatError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.precision.fp8 import check_scales, dequantize_blocks
from deepwell.lm.weights.checkpoint import Checkpoint, open_checkpoint
from deepwell.lm.weights.filling import Filling
from deepwell.lm.weights.names import FileTensor, is_ignored, layout, mtp_layers
from deepwell.lm.weights.shards import DTYPES, ShardReader, StoredTensor

if TYPE_CHECKING:
    from deepwell.lm.model.transformer import Transformer

OnProgress = Callable[[int, int], None]
"""Called with the bytes that are read and the bytes there are."""

SCALE = "_scale_inv"
"""What the name of an FP8 matrix ends in to name its scales."""
_SHOWN = 4


def read_checkpoint(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    on_progress: OnProgress | None = None,
) -> Transformer:
    """The network in a folder: DeepSeek's layout, or Llama's, Mistral's and Qwen2's.

    Args:
        folder: Holds config.json and safetensors files.
        dtype: Of the network's weights, whatever the files have. The router's balancing bias stays float32.
        device: Where the network goes.
        on_progress: Called after each band.

    Raises:
        ModelFileError: A file is missing, truncated or damaged, a tensor is missing, has the wrong shape or is not of
            this network, a scale is not finite, or a copy differs from its original. Names file and tensor.
        ModelConfigError: ``config.json`` describes no network that is known here.
        ModelFormatError: The weights are quantised in a way that is not read here.
    """
    checkpoint = open_checkpoint(Path(folder))
    config = _without_absent_mtp(checkpoint)
    filling = Filling(config, dtype=dtype, device=device)
    table = _match(checkpoint, filling, layout(config))
    total = sum(_size(checkpoint, tensor) for tensor in table)
    done = 0
    with _one_thread():
        # Copies come last, when what they must equal is there.
        for copies in (False, True):
            for path, tensors in _by_file(checkpoint, table, copies).items():
                with ShardReader(path) as reader:
                    for tensor in tensors:
                        if copies:
                            _compare(checkpoint, reader, filling, tensor)
                        else:
                            _put(checkpoint, reader, filling, tensor)
                        done += _size(checkpoint, tensor)
                        if on_progress is not None:
                            on_progress(done, total)
    return filling.finish(source=str(folder))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, torch uses one thread.

    Reading waits for memory, not for arithmetic, so a second thread gains little; but the threads wait for each other
    after each of many small steps, and where a core is busy with something else that costs ten times the work itself.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _without_absent_mtp(checkpoint: Checkpoint) -> ModelConfig:
    """The config, without modules of multi-token prediction if the files hold nothing of any."""
    config = checkpoint.config
    prefixes = tuple(f"model.layers.{layer}." for layer in mtp_layers(config))
    if prefixes and not any(name.startswith(prefixes) for name in checkpoint.tensors):
        return config.replace(num_nextn_predict_layers=0)
    return config


def _match(checkpoint: Checkpoint, filling: Filling, table: tuple[FileTensor, ...]) -> list[FileTensor]:
    """The rows of the table that the files hold. Every difference in names or shapes is an error."""
    stored = checkpoint.tensors
    present = [tensor for tensor in table if tensor.name in stored]
    missing = [tensor.name for tensor in table if tensor.role == "part" and tensor.name not in stored]
    known = {tensor.name for tensor in present}
    known |= {name + SCALE for name in known}
    strange = [tensor for name, tensor in stored.items() if name not in known and not is_ignored(name)]
    where = checkpoint.folder
    if missing:
        told = f"; instead there is {strange[0].where}" if strange else ""
        raise ModelFileError(
            f"{where}: tensors are missing that config.json calls for: {_some(missing)}{told}",
            hint="check that config.json belongs to these weights, or fetch them again",
        )
    if strange:
        raise ModelFileError(
            f"{strange[0].where}: config.json calls for no such tensor"
            + (f", nor for {_some([tensor.name for tensor in strange[1:]])}" if len(strange) > 1 else ""),
            hint="check that config.json belongs to these weights",
        )
    for tensor in present:
        _check(checkpoint, tensor, _expected_shape(filling, tensor))
    return present


def _check(checkpoint: Checkpoint, tensor: FileTensor, expected: tuple[int, ...]) -> None:
    """Shape and kind of one tensor, and whether it has scales when it needs them."""
    stored = checkpoint.tensors[tensor.name]
    if stored.shape != expected:
        raise ModelFileError(
            f"{stored.where} has shape {list(stored.shape)}, and by config.json it has {list(expected)}",
            hint="check that config.json belongs to these weights",
        )
    scales = checkpoint.tensors.get(tensor.name + SCALE)
    if stored.kind == "F8_E4M3" and scales is None:
        raise ModelFileError(
            f"{stored.where} is FP8, and there is no {tensor.name + SCALE}", hint="fetch the file again"
        )
    if stored.kind != "F8_E4M3" and scales is not None:
        raise ModelFileError(
            f"{scales.where} scales a matrix of {stored.kind}, not of FP8", hint="fetch the file again"
        )
    if stored.kind not in {"F64", "F32", "F16", "BF16", "F8_E4M3"}:
        raise ModelFormatError(
            f"{stored.where} holds {stored.kind} numbers: the checkpoint is quantised in a way that is not read here",
            hint="take the model's unquantised checkpoint, or its GGUF file",
        )
    if scales is not None and (len(stored.shape) != 2 or len(scales.shape) != 2):
        raise ModelFileError(
            f"{scales.where} has shape {list(scales.shape)}; there is one scale for each block of a matrix"
        )


def _expected_shape(filling: Filling, tensor: FileTensor) -> tuple[int, ...]:
    shape = filling.shape(tensor.into)
    if tensor.expert is not None:
        shape = shape[1:]
    return shape if tensor.rows is None else (tensor.rows[1] - tensor.rows[0], *shape[1:])


def _put(checkpoint: Checkpoint, reader: ShardReader, filling: Filling, tensor: FileTensor) -> None:
    """One tensor from its file to its place."""
    stored = checkpoint.tensors[tensor.name]
    dtype = filling.dtype(tensor.into)
    if DTYPES[stored.kind] == dtype and tensor.rotary is None and filling.device.type == "cpu":
        rows = slice(*tensor.rows) if tensor.rows is not None else None
        target = filling.claim(tensor.into, stored.shape, source=stored.where, expert=tensor.expert, rows=rows)
        reader.read_into(stored, target)
        return
    for rows, values in _values(checkpoint, reader, tensor, dtype):
        filling.put(tensor.into, values, source=stored.where, expert=tensor.expert, rows=rows)


def _values(
    checkpoint: Checkpoint, reader: ShardReader, tensor: FileTensor, dtype: torch.dtype
) -> Iterator[tuple[slice | None, Tensor]]:
    """A tensor as memory has it, in bands: which rows in memory (None: all), and their values.

    Values lie in the reader's buffer and are good until the next band.
    """
    stored = checkpoint.tensors[tensor.name]
    scales = _scales(checkpoint, tensor)
    first = tensor.rows[0] if tensor.rows is not None else 0
    if tensor.rotary is not None:
        values = _unscaled(reader.read(stored), scales, dtype, checkpoint.block, stored.where)
        yield None, tensor.rotary.to_halves(values)
        return
    height = checkpoint.block[0]
    for begin, band in reader.bands(stored, multiple=height if scales is not None else 1):
        part = scales[begin // height : -(-(begin + len(band)) // height)] if scales is not None else None
        values = _unscaled(band, part, dtype, checkpoint.block, stored.where)
        yield slice(first + begin, first + begin + len(band)), values


def _unscaled(values: Tensor, scales: Tensor | None, dtype: torch.dtype, block: tuple[int, int], where: str) -> Tensor:
    return values if scales is None else dequantize_blocks(values, scales, dtype=dtype, block=block, where=where)


def _scales(checkpoint: Checkpoint, tensor: FileTensor) -> Tensor | None:
    """The scales of an FP8 matrix, checked, float32; they may lie in another file."""
    stored = checkpoint.tensors.get(tensor.name + SCALE)
    if stored is None:
        return None
    with ShardReader(stored.path) as reader:
        scales = reader.read(stored).to(torch.float32)
    rows, columns = checkpoint.tensors[tensor.name].shape
    check_scales(scales, (rows, columns), block=checkpoint.block, where=stored.where)
    return scales


def _compare(checkpoint: Checkpoint, reader: ShardReader, filling: Filling, tensor: FileTensor) -> None:
    """A copy has the values of what it is a copy of."""
    original, where = filling.tensor(tensor.into), checkpoint.tensors[tensor.name].where
    for rows, values in _values(checkpoint, reader, tensor, original.dtype):
        there = original if rows is None else original[rows]
        if not torch.equal(there, values.to(device=there.device, dtype=there.dtype)):
            raise ModelFileError(
                f"{where} differs from {tensor.into}, and a network here has one for both",
                hint="the checkpoint was changed after it was saved, or its config.json belongs to another one",
            )


def _by_file(checkpoint: Checkpoint, table: list[FileTensor], copies: bool) -> dict[Path, list[FileTensor]]:
    """The tensors of each file in the order in which they lie there."""
    files: defaultdict[Path, list[FileTensor]] = defaultdict(list)
    for tensor in sorted(table, key=lambda tensor: _place(checkpoint.tensors[tensor.name])):
        if (tensor.role != "part") == copies:
            files[checkpoint.tensors[tensor.name].path].append(tensor)
    return files


def _place(stored: StoredTensor) -> tuple[Path, int]:
    return stored.path, stored.begin


def _size(checkpoint: Checkpoint, tensor: FileTensor) -> int:
    stored = checkpoint.tensors[tensor.name]
    return stored.end - stored.begin


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
