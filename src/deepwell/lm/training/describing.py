"""What a run would do and take, before it is begun."""

from __future__ import annotations

from typing import Any

import torch

from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training import cost, esft, network
from deepwell.lm.training.precision import describe as words
from deepwell.lm.training.recipe import Recipe


def describe(recipe: Recipe) -> dict[str, Any]:
    """What a run would do and take, without reading its data: for ``--dry-run``.

    Returns:
        parameters, active_parameters, trained_parameters (for ESFT all experts, of which the data will choose some),
        state_bytes (weights, gradients and moments),
        flops_per_token, tokens_per_step, steps (0 where the data decides), and the precision in words.
    """
    device = torch.device("cpu")
    model, tokenizer = network.opened(recipe, device)
    if model is None:
        vocabulary = tokenizer.vocab_size if tokenizer is not None else recipe.tokenizer.vocab_size
        model = Transformer(network.shape(recipe.model, vocabulary), device="meta", dtype=torch.float32)
    if recipe.model.tune == "lora":
        network.adapt(model, recipe)
    if recipe.model.tune == "esft":  # which experts is for the data to say: all of them is the most that it can be
        section = recipe.model.esft
        every = dict.fromkeys(range(len(model.gates())), range(model.config.n_routed_experts))
        esft.restrict(model, every, tune_shared=section.tune_shared, tune_rest=section.tune_rest)
    learning = network.trained(model)
    length = recipe.data.sequence_length
    per_step = recipe.batch.sequences * length
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "active_parameters": cost.active_parameters(model.config),
        "trained_parameters": sum(parameter.numel() for parameter in learning.values()),
        "state_bytes": cost.state_bytes(model.parameters(), recipe.optimizer),
        "flops_per_token": cost.training_flops(model.config, length, model=model),
        "tokens_per_step": per_step,
        "steps": recipe.batch.steps or -(-recipe.batch.tokens // per_step),
        "precision": words(recipe.precision, device),
    }
