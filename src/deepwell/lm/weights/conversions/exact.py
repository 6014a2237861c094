"""Grouped attention to multi-head latent attention, exactly.

A Llama's cache holds, for G key/value heads, G values and G rotated keys. Call the values of all heads together a
latent: then every head's value is a part of it, that is, the product with a matrix of zeros and ones. Written out, that
matrix is ``kv_b_proj``, and the network is MLA with G rotary keys. Its cache is as large as before, and its
``kv_b_proj`` can be trained, which grouped attention's fixed copying cannot (TransMLA, arXiv 2502.07864, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.conversions.rebuild import rebuilt

__all__ = ["to_mla"]


def to_mla(model: Transformer) -> Transformer:
    """The same function as MLA: Llama, Mistral, Qwen2 or SmolLM with a materialised ``kv_b_proj``.

    Args:
        model: Has grouped attention. It keeps its weights.

    Returns:
        A network with ``kv_up_proj=True``, ``kv_lora_rank`` G*V and G rotary keys. Every tensor of ``model`` is in it
        unchanged, so logits differ by the order of additions alone.

    Raises:
        UsageError: The network is MLA already.
    """
    config = model.config
    if not config.is_grouped:
        raise UsageError(
            "this network has multi-head latent attention already", hint="convert Llama, Mistral, Qwen2 or SmolLM"
        )
    heads, groups, width = config.num_attention_heads, config.rope_key_heads, config.v_head_dim
    select = torch.eye(groups * width, dtype=model.dtype, device=model.device).unflatten(0, (groups, width))
    select = select.repeat_interleave(heads // groups, dim=0).flatten(0, 1)  # [H*V, R]: head i reads group i // (H/G)
    changes: dict[str, Tensor | None] = {
        name.replace("o_proj.weight", "kv_b_proj.weight"): select
        for name in model.state_dict()
        if name.endswith("self_attn.o_proj.weight")
    }
    return rebuilt(model, config.replace(kv_up_proj=True), changes)
