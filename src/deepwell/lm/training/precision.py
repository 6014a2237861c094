"""In what numbers a network trains: one line of the recipe, ``precision.compute``, put into effect.

    f32    activations in the weights' own dtype
    bf16   activations in bf16, over float32 master weights
    fp8    as bf16, and all products of attention, dense layers, shared experts and experts in FP8 (V3 section 3.3)

In FP8 training, embedding, head, gates, norms, attention itself and the projection into an MTP module stay above FP8,
as in V3. An adapter (LoRA) stays in bf16, over products of its base in FP8.
"""

from __future__ import annotations

import torch

from deepwell.lm.model.attention import MultiHeadLatentAttention
from deepwell.lm.model.moe import MLP, Experts
from deepwell.lm.model.products import Linear
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.precision.fp8_training import Fp8Products
from deepwell.lm.training.recipe import PrecisionSection


def set_precision(model: Transformer, section: PrecisionSection) -> None:
    """Let ``model`` compute as ``section`` says, whatever it was set to before.

    Set ``compute_dtype`` of the model, and ``product`` and ``activation`` of its layers. Layers that are put into the
    model later, as by ``add_lora``, are reached by another call alone.
    """
    model.compute_dtype = None if section.compute == "f32" else torch.bfloat16
    for module in model.modules():
        for hook in ("product", "activation"):
            vars(module).pop(hook, None)
    if section.compute != "fp8":
        return
    products = Fp8Products(
        scaling=section.scaling, power_of_two=section.scales == "power-of-two", keep=section.keep
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, (MLP, MultiHeadLatentAttention)):
            for layer in module.children():
                if isinstance(layer, Linear):
                    layer.product = products.linear
        if isinstance(module, Experts):
            module.product = products.grouped
        if isinstance(module, (MLP, Experts)):
            module.activation = products.swiglu


def describe(section: PrecisionSection, device: torch.device | str) -> str:
    """The precision in a few words, for the beginning of a run: "fp8, blocks, float32 scales (emulated ...)"."""
    if section.compute == "f32":
        return "float32"
    if section.compute == "bf16":
        return "bf16 over float32 weights"
    scales = "one scale a tensor" if section.scaling == "tensor" else "scales of 1 x 128 and 128 x 128"
    kind = "powers of two" if section.scales == "power-of-two" else "float32"
    told = f"fp8 (e4m3), {scales}, {kind}"
    if torch.device(device).type == "cpu":
        told += "; emulated: rounded as in FP8, multiplied in bf16, so it is no faster than bf16 here"
    return told
