"""Reads a GGUF file into a network: dequantised, renamed, rows in memory's order, a slab at a time.

    model, tokenizer = read_gguf("SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32)

Architectures: ``llama`` (also Mistral, SmolLM and Mixtral), ``qwen2`` and ``deepseek2``. What the file says about
attention goes into the config, the rest of its metadata into the tokenizer. Beside the network, memory holds one slab
of rows (16 MB) or, of a latent's projection, one matrix.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepwell.errors import ModelFileError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.weights.filling import Filling
from deepwell.lm.weights.gguf.container import Container, open_gguf
from deepwell.lm.weights.gguf.dequantising import slabs
from deepwell.lm.weights.gguf.fields import config_of
from deepwell.lm.weights.gguf.names import GgufTensor, latent_scale, layout

if TYPE_CHECKING:
    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.weights.tokenizer import Tokenizer

_PASSED_OVER = {"rope_freqs.weight"}


def read_gguf(
    path: Path | str, *, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu"
) -> tuple[Transformer, Tokenizer]:
    """The network and the tokenizer of a file.

    Args:
        path: The file.
        dtype: Of the network's parameters, whatever the file's.
        device: Where they go.

    Raises:
        ModelFileError: It is no GGUF file, is cut off, big-endian or one part of several; its architecture is not
            known; a tensor is missing, too many, of the wrong shape or of a kind that cannot be read; or it has no
            vocabulary that can be read. The message names the file and the tensor.
        ModelConfigError: Its metadata contradict each other.
        MissingExtraError: The ``gguf`` package is not installed.
    """
    from deepwell.lm.weights.tokenizer import Tokenizer

    file = open_gguf(Path(path))
    model = read_network(file, dtype=dtype, device=device)
    return model, Tokenizer.from_gguf(file.fields, source=str(file.path))


def read_network(file: Container, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Transformer:
    """The network of an opened file."""
    config = config_of(file)
    try:
        filling = Filling(config, dtype=dtype, device=device)
    except RuntimeError as e:  # sizes whose product no tensor can have
        raise ModelFileError(f"{file.path}: its metadata describe no network: {e}") from e
    tensors = _found(file, config)
    for tensor in tensors:
        if tensor.form != "constant":
            _check_shape(file, filling, tensor, config)
    for tensor in tensors:
        if tensor.form != "constant":
            _fill(file, filling, tensor, config)
    return filling.finish(source=str(file.path))


def _found(file: Container, config: ModelConfig) -> list[GgufTensor]:
    """The tensors of the layout, in the forms in which this file has them; nothing may be missing or left over."""
    found: list[GgufTensor] = []
    names: set[str] = set()
    for tensor in layout(config, file.fields["general.architecture"]):
        form = _other_form(file, tensor)
        if form is None or form.name in names:
            continue
        if form.name not in file.tensors:
            raise ModelFileError(f"{file.path}: tensor {form.name} is missing", hint="fetch the file again")
        found.append(form)
        names.add(form.name)
    prediction = tuple(f"blk.{layer}." for layer in range(config.num_hidden_layers, config.num_hidden_layers + 8))
    for name in file.tensors:
        if name not in names and name not in _PASSED_OVER and not name.startswith(prediction):
            raise ModelFileError(
                f"{file.path}: tensor {name} has no place in a network of architecture "
                f"{file.fields['general.architecture']}",
                hint="the file may hold a variant of it that is not known here",
            )
    return found


def _other_form(file: Container, tensor: GgufTensor) -> GgufTensor | None:
    """Older files keep the up-projection of the latent whole; newer ones may join the experts' two first matrices."""
    if tensor.name in file.tensors:
        return tensor
    if tensor.form in {"key_heads", "value_heads"}:
        together = tensor.name.replace("attn_k_b", "attn_kv_b").replace("attn_v_b", "attn_kv_b")
        return replace(tensor, name=together, form="rows") if together in file.tensors else tensor
    joined = tensor.name.replace("ffn_gate_exps", "ffn_gate_up_exps").replace("ffn_up_exps", "ffn_gate_up_exps")
    if joined in file.tensors:
        return replace(tensor, name=joined, rows=None)
    return None if tensor.form == "constant" else tensor


def _check_shape(file: Container, filling: Filling, tensor: GgufTensor, config: ModelConfig) -> None:
    memory = filling.shape(tensor.into)
    heads, rank = config.num_attention_heads, config.kv_lora_rank
    match tensor.form:
        case "experts":
            wanted: tuple[int, ...] = (memory[0], _count(tensor, memory[1]), memory[2])
        case "key_heads":
            wanted = (heads, rank, config.qk_nope_head_dim)
        case "value_heads":
            wanted = (heads, config.v_head_dim, rank)
        case _:
            wanted = (_count(tensor, memory[0]), *memory[1:])
    shape = file.tensors[tensor.name].shape
    if shape != wanted:
        raise ModelFileError(
            f"{file.path}: tensor {tensor.name} has shape {list(shape)}; the metadata make it {list(wanted)}"
        )


def _count(tensor: GgufTensor, otherwise: int) -> int:
    return otherwise if tensor.rows is None else tensor.rows[1] - tensor.rows[0]


def _fill(file: Container, filling: Filling, tensor: GgufTensor, config: ModelConfig) -> None:
    """Put a tensor into the network, slab by slab; a slab holds whole heads and whole experts."""
    shape = file.tensors[tensor.name].shape
    source = f"{file.path}: {tensor.name}"
    if len(shape) == 1:
        ((_, vector),) = slabs(file, tensor.name)
        rows = slice(*(tensor.rows or (0, shape[0])))
        filling.put(tensor.into, _in_order(vector[0], tensor, config), source=source, rows=rows)
        return
    if tensor.form == "rows":
        begin = tensor.rows[0] if tensor.rows else 0
        whole = tensor.latent or (tensor.rotary and tensor.rotary.offset)
        multiple = shape[0] if whole else tensor.rotary.head_dim if tensor.rotary else 1
        for first, slab in slabs(file, tensor.name, multiple=multiple):
            rows = slice(begin + first, begin + first + slab.shape[0])
            filling.put(tensor.into, _in_order(slab, tensor, config), source=source, rows=rows)
        return
    for first, slab in slabs(file, tensor.name, multiple=shape[1]):
        for index, part in enumerate(torch.split(slab, shape[1]), start=first // shape[1]):
            if tensor.form == "experts":
                rows = slice(*(tensor.rows or (0, shape[1])))
                filling.put(tensor.into, part, source=source, expert=index, rows=rows)
                continue
            block = part.T if tensor.form == "key_heads" else part
            begin = index * (config.qk_nope_head_dim + config.v_head_dim)
            begin += config.qk_nope_head_dim if tensor.form == "value_heads" else 0
            filling.put(tensor.into, block, source=source, rows=slice(begin, begin + block.shape[0]))


def _in_order(rows: Tensor, tensor: GgufTensor, config: ModelConfig) -> Tensor:
    """The rows as memory has them: halves instead of pairs, latents at their own scale."""
    if tensor.rotary is not None:
        heads = (rows.shape[0] - tensor.rotary.offset) // tensor.rotary.head_dim
        rows = replace(tensor.rotary, heads=heads).to_halves(rows)
    if tensor.latent and (scale := latent_scale(config)) != 1:
        rows = rows.float()
        rows[: tensor.latent] /= scale
    return rows
