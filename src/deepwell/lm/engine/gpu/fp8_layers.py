"""A network whose linear layers keep their weights in FP8.

The layers that DeepSeek's FP8 files hold in 8 bits become FP8 (V3 report, section 3.3): projections, dense layers and
all experts. Embedding, head, norms and routers stay as they are. So does the up-projection of the latents, as in the
published inference code: decoding multiplies by its two halves apart.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from deepwell.lm.model.moe import Experts
from deepwell.lm.model.products import Linear
from deepwell.lm.model.rowwise import swiglu
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.precision.fp8_products import Fp8Matrix, fp8_grouped, fp8_linear

_KEPT = ("lm_head", "kv_b_proj")


class Fp8Linear(nn.Module):
    """A linear layer with FP8 weights; it cannot be trained."""

    bias: Tensor | None

    def __init__(self, weight: Fp8Matrix, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("values", weight.values)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [..., in] -> [..., out] in its dtype."""
        return fp8_linear(x, Fp8Matrix(cast(Tensor, self.values), cast(Tensor, self.scales)), self.bias)


class Fp8Experts(Experts):
    """All routed experts of a layer, their matrices in FP8."""

    def __init__(self, gate_up: Fp8Matrix, down: Fp8Matrix) -> None:
        nn.Module.__init__(self)
        self.gate_up_proj = nn.Parameter(gate_up.values, requires_grad=False)
        self.down_proj = nn.Parameter(down.values, requires_grad=False)
        self.register_buffer("gate_up_scales", gate_up.scales)
        self.register_buffer("down_scales", down.scales)

    def _run(self, rows: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        gate_up = Fp8Matrix(self.gate_up_proj.data, cast(Tensor, self.gate_up_scales))
        down = Fp8Matrix(self.down_proj.data, cast(Tensor, self.down_scales))
        gate, up = fp8_grouped(rows, gate_up, offsets).chunk(2, dim=-1)
        return fp8_grouped(swiglu(gate, up) * weights[:, None].to(rows.dtype), down, offsets)


@torch.no_grad()
def to_fp8(network: Transformer, device: torch.device | str) -> Transformer:
    """Round the network's linear layers to FP8, in place, and move it.

    One layer after the other is moved, rounded and let go of, so a GPU never holds more than the FP8 network and one
    wide layer: a network that only fits in FP8 is read into the host's memory first.

    Args:
        network: In bf16, f16 or f32.
        device: Where it goes.

    Raises:
        ModelFormatError: A weight is not finite.
    """
    for name, module in list(network.named_modules()):
        parent_name, _, own = name.rpartition(".")
        if type(module) is Linear and own not in _KEPT:
            bias = None if module.bias is None else module.bias.data.to(device)
            replaced: nn.Module = Fp8Linear(Fp8Matrix.of(module.weight.data.to(device)), bias)
        elif type(module) is Experts:
            matrices = (Fp8Matrix.of(one.data.to(device)) for one in (module.gate_up_proj, module.down_proj))
            replaced = Fp8Experts(*matrices)
        else:
            continue
        setattr(network.get_submodule(parent_name), own, replaced)
    return network.to(device)
