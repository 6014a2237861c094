"""A network of another shape from the tensors of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.filling import Filling

__all__ = ["EVERY_LAYER_ONE_GROUP", "rebuilt", "windows_of"]

EVERY_LAYER_ONE_GROUP: dict[str, Any] = {
    "first_k_dense_replace": 0,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "routed_scaling_factor": 1.0,
    "dynamic_gating": None,
}
"""The routing of a network whose dense layers all became experts: plain, whatever the config said before."""


def rebuilt(model: Transformer, config: ModelConfig, changes: Mapping[str, Tensor | None]) -> Transformer:
    """A network of shape ``config`` with the tensors of ``model``, some of them changed.

    Args:
        model: Keeps its own tensors; the new network has copies, in the same dtype and on the same device.
        config: The new shape.
        changes: New or changed tensors by in-memory name; None: the tensor is left out.

    Raises:
        ModelFileError: The tensors do not make a network of that shape.
    """
    filling = Filling(config, dtype=model.dtype, device=model.device)
    for name, tensor in {**model.state_dict(), **changes}.items():
        if tensor is not None:
            filling.put(name, tensor.detach(), source="the converted network")
    return filling.finish(source="the converted network")


def windows_of(tokens: Tensor, length: int, *, most: int | None = None, what: str = "the calibration text") -> Tensor:
    """Cut ``tokens`` [N] into windows [count, length]; a last one that is not full is left out.

    Args:
        tokens: Of one text.
        length: Tokens of a window.
        most: Take no more windows than this, evenly spread over the text.
        what: Says which text, in the message.

    Raises:
        UsageError: The text has not even one window.
    """
    count = tokens.numel() // length
    if not count:
        raise UsageError(
            f"{what} has {tokens.numel():,} tokens; one window takes {length:,}", hint="give a longer text"
        )
    windows = tokens[: count * length].view(count, length)
    if most is not None and count > most:
        windows = windows[torch.linspace(0, count - 1, most).round().long()]
    return windows
