"""What a GPU does differently: one attention kernel for all that decode, steps as graphs, products with FP8 weights."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.engine.runner import Runner
from deepwell.lm.model.transformer import Transformer


def runner_for(model: Transformer, cache: PagedCache) -> Runner:
    """The runner for the network's device: on a GPU with Triton's kernels, where they are installed.

    They sum in float32, so a network in float64 is left to PyTorch.
    """
    if model.device.type == "cuda" and model.dtype is not torch.float64 and find_spec("triton"):
        from deepwell.lm.engine.gpu.runner import GPURunner

        return GPURunner(model, cache)
    return Runner(model, cache)
