"""The network that a recipe names: made or opened, and told which of its parameters learn.

Weights are float32 masters, which activations in bf16 meet as bf16. Under a LoRA adapter the base learns nothing, so it
is kept in the activations' own dtype, at half the memory, and the adapter alone is float32.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deepwell.errors import ModelConfigError, RecipeError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training.data.store import checksum
from deepwell.lm.training.recipe import ModelSection, Recipe
from deepwell.lm.weights.lora import LoraConfig, add_lora, lora_layers

if TYPE_CHECKING:
    from deepwell.lm.weights.tokenizer import Tokenizer

_ALIGNMENT = 64
"""A vocabulary is rounded up to a multiple of this: rows that processors and GPUs multiply whole."""


def opened(recipe: Recipe, device: torch.device) -> tuple[Transformer | None, Tokenizer | None]:
    """The network and tokenizer of ``model.start``; else None, and the tokenizer of ``tokenizer.start`` if named.

    Raises:
        MissingModelError, ModelFileError, ModelFormatError, ModelConfigError: As of ``deepwell.lm.load``.
        RecipeError: Rows are longer than the network has positions.
    """
    from deepwell.lm.weights.opening import load, locate
    from deepwell.lm.weights.tokenizer import Tokenizer

    if recipe.model.start:
        halves = recipe.model.tune == "lora" and recipe.precision.compute != "f32"
        model, tokenizer = load(recipe.model.start, dtype="bf16" if halves else "f32", device=device)
        length, known = recipe.data.sequence_length, model.config.max_position_embeddings
        if length > known:
            raise RecipeError(f"data.sequence_length is {length}, and {recipe.model.start} knows {known} positions")
        return model, tokenizer
    if not recipe.tokenizer.start:
        return None, None
    path = locate(recipe.tokenizer.start)
    if path.is_dir():
        return None, Tokenizer.from_folder(path)
    return None, load(path, device="cpu")[1]


def base_fingerprint(section: ModelSection) -> str:
    """Of the files that ``model.start`` names, where parts of them never change and stand in no checkpoint; else ""."""
    from deepwell.lm.weights.opening import locate

    if section.tune == "full":
        return ""
    path = locate(section.start)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return hashlib.sha256(repr([(file.name, *checksum(file)) for file in files]).encode()).hexdigest()


def shape(section: ModelSection, vocabulary: int, ends: tuple[int, ...] = (), begin: int | None = None) -> ModelConfig:
    """The config of a new network for a tokenizer of ``vocabulary`` tokens.

    ``vocab_size`` follows the tokenizer unless the recipe gives it.

    Raises:
        RecipeError: A field that there is not, or values that contradict each other.
    """
    own = dict(section.config)
    own.setdefault("vocab_size", -(-vocabulary // _ALIGNMENT) * _ALIGNMENT)
    if own["vocab_size"] < vocabulary:
        raise RecipeError(f"model.config.vocab_size is {own['vocab_size']}, and the tokenizer has {vocabulary} tokens")
    own.update(eos_token_id=ends, bos_token_id=begin, pad_token_id=None)
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    for name in own:
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            raise RecipeError(
                f"model.config.{name} is no field of a network", hint=f"did you mean {near[0]}?" if near else ""
            )
    try:
        if section.named:
            return ModelConfig.named(section.named).replace(**own)
        return ModelConfig(**own)
    except ModelConfigError as error:
        raise RecipeError(f"model.config: {error.message}", hint=error.hint) from error
    except TypeError as error:
        raise RecipeError(f"model.config lacks fields: {error}", hint="or set model.named and change some") from error


def made(recipe: Recipe, tokenizer: Tokenizer, device: torch.device) -> Transformer:
    """A network with random weights, float32, the same for the same seed on every machine."""
    config = shape(recipe.model, tokenizer.vocab_size, tokenizer.eos_token_ids, tokenizer.bos_token_id)
    model = Transformer(config, device="meta", dtype=torch.float32)
    model.to_empty(device=device)
    model.init_weights(torch.Generator(device=device).manual_seed(recipe.seed))
    return model


def adapt(model: Transformer, recipe: Recipe) -> None:
    """Put the adapter of ``[model.lora]`` on, in float32, drawn by the recipe's seed."""
    section = recipe.model.lora
    torch.manual_seed(recipe.seed)
    add_lora(
        model, LoraConfig(rank=section.rank, alpha=section.alpha, targets=section.targets, dropout=section.dropout)
    )
    for _, layer in lora_layers(model):
        for parameter in (layer.lora_a, layer.lora_b):
            parameter.data = parameter.data.float()


def trained(model: Transformer) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def learned_state(model: Transformer) -> dict[str, torch.Tensor]:
    """What training changes: parameters that learn, and the routers' balancing biases, by name."""
    learning = set(trained(model))
    state: dict[str, Any] = model.state_dict()
    return {
        name: value for name, value in state.items() if name in learning or name.endswith("e_score_correction_bias")
    }


def write(model: Transformer, recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> Path:
    """Write ``folder/model``, which everything else here opens; for LoRA also ``folder/adapter``, and merge it.

    Returns:
        The model's folder. After LoRA the model has no adapter any more.

    Raises:
        ModelFileError: The disk is full, or the path cannot be written.
    """
    from deepwell.lm.weights.adapter import save_adapter
    from deepwell.lm.weights.lora import has_lora, merge_lora
    from deepwell.lm.weights.saving import save

    if has_lora(model):
        save_adapter(model, folder / "adapter")
        merge_lora(model)
    save(model, folder / "model", precision=recipe.checkpoint.precision, tokenizer=tokenizer)
    return folder / "model"
