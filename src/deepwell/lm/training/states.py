"""The whole state of a run as tensors and plain values, for checkpoints: taken, and put back to the bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepwell.errors import TrainingError
from deepwell.lm.training import network
from deepwell.lm.training.checkpoint import Loaded, copy_into, random_state, set_random_state
from deepwell.lm.training.loop import Loop

_ORIGINS = {
    "data": ("the text or its tokenizer", "data.sources"),
    "base": ("the network that the adapter or the experts belong to", "model.start"),
}


def collect(loop: Loop) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint holds: learned parameters, router biases, moments, random states, and how far the run is."""
    tensors: dict[str, Tensor] = {}
    tensors.update((f"model.{name}", value) for name, value in network.learned_state(loop.model).items())
    values: dict[str, Any] = {}
    for name, value in loop.optimizer.state_dict().items():
        if isinstance(value, Tensor):
            tensors[f"optimizer.{name}"] = value
        else:
            values[f"optimizer.{name}"] = value
    drawn, plain = random_state()
    tensors.update((f"random.{name}", value) for name, value in drawn.items())
    progress = loop.progress
    values.update(
        tokens=progress.tokens,
        seconds=progress.seconds,
        random=plain,
        guard=loop.guard.state(),
        steps=loop.plan.steps,
        origins=dict(loop.origins),
    )
    return tensors, values


def put_back(loop: Loop, loaded: Loaded) -> None:
    """Set everything to what a checkpoint holds.

    Raises:
        TrainingError: It is of another network or other data.
    """
    values = loaded.values
    if values["steps"] != loop.plan.steps:
        raise TrainingError(
            f"the run was planned for {values['steps']} steps, and its data now makes {loop.plan.steps}",
            hint="the data changed: put it back, or begin anew in another folder",
        )
    for kind, mark in loop.origins.items():
        if values.get("origins", {}).get(kind, mark) != mark:
            what, files = _ORIGINS[kind]
            raise TrainingError(
                f"{what} is another than the run began with",
                hint=f"put the files of {files} back as they were, or begin anew in another folder",
            )
    state = network.learned_state(loop.model)
    tensors = loaded.tensors
    absent = [name for name in state if f"model.{name}" not in tensors]
    if absent:
        raise TrainingError(f"the checkpoint of step {loaded.step} lacks {absent[0]}: it is of another network")
    with torch.no_grad():
        for name, target in state.items():
            copy_into(target, tensors[f"model.{name}"], name=name)
    begin = "optimizer."
    moments: dict[str, Any] = {k.removeprefix(begin): v for k, v in values.items() if k.startswith(begin)}
    moments.update((k.removeprefix(begin), v) for k, v in tensors.items() if k.startswith(begin))
    loop.optimizer.load_state_dict(moments)
    set_random_state(
        {k.removeprefix("random."): v for k, v in tensors.items() if k.startswith("random.")}, values["random"]
    )
    loop.guard.restore(values["guard"])
    loop.progress.step = loaded.step
    loop.progress.tokens = values["tokens"]
    loop.progress.seconds = values["seconds"]
