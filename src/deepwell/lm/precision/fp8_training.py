"""Training with FP8 products (V3 report, section 3.3).

    products = Fp8Products()                       # scales for tiles of 1 x 128 and blocks of 128 x 128
    y = products.linear(x, weight)                 # x bf16, weight its float32 master
    y = products.grouped(x, weights, offsets)      # rows sorted by expert
    h = products.swiglu(gate, up)

Of a linear layer all three products have E4M3 operands: forward, the gradient of the input and the gradient of the
weight. Gradients are E4M3 too and not E5M2, which tiles this small make possible. Results are in the dtype of ``x``,
gradients of weights in that of the weight.

For the backward pass a layer keeps its input in FP8, one byte a value and not two. It sums over tokens there, so what
is kept has tiles of 128 x 1, rounded from the input itself. (DeepSeek keeps tiles of 1 x 128 and rounds them once more.
Scales that are powers of two, and E5M6 for the layer behind attention, mend that second rounding, which is not here.)
SwiGLU keeps its two inputs in FP8 and computes its output again.

Whoever multiplies one input by several matrices (gate and up; both projections down to a latent) rounds and keeps it
once: the tiles of the inputs last seen are remembered as long as nobody changes those.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from deepwell.lm.precision.fp8_emulation import Emulation
from deepwell.lm.precision.fp8_gpu import Kernels
from deepwell.lm.precision.fp8_tiles import Tiles


@dataclass(frozen=True, slots=True)
class Fp8Products:
    """The operations of a network, in FP8.

    Attributes:
        scaling: "block" as above, or "tensor": one scale for each whole tensor.
        power_of_two: Whether scales are powers of two.
        keep: What stays for the backward pass: FP8, or the bf16 that came in.
    """

    scaling: Literal["block", "tensor"] = "block"
    power_of_two: bool = False
    keep: Literal["fp8", "bf16"] = "fp8"

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x W^T + b``.

        Args:
            x: [..., in], bf16 or float32.
            weight: [out, in], float32 or the dtype of ``x``.
            bias: [out], or None. It is added in the dtype of ``x``.

        Returns:
            [..., out] in the dtype of ``x``. A tile with a value that is not finite makes all that it touches NaN.
        """
        out = self._product(x, weight, None)
        return out if bias is None else out + bias.to(out.dtype)

    def grouped(self, x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
        """Rows sorted by expert, each by its expert's matrix.

        Args:
            x: [N, in], bf16 or float32.
            weight: [E, out, in].
            offsets: [E] int32: the row at which each expert's rows end, the last N. Experts may have none.

        Returns:
            [N, out] in the dtype of ``x``.
        """
        return self._product(x, weight, offsets)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) * up``, elementwise, from the exact inputs; the backward pass has those that FP8 kept."""
        return _SwiGLU.apply(gate, up, self)  # type: ignore[no-any-return,no-untyped-call]

    def _product(self, x: Tensor, weight: Tensor, offsets: Tensor | None) -> Tensor:
        if not torch.is_grad_enabled():  # an autograd function is not told, and would round for the backward pass too
            weight = weight.detach()
        return _Product.apply(x, weight, offsets, self)  # type: ignore[no-any-return,no-untyped-call]

    def ways(self, device: torch.device) -> Emulation | Kernels:
        """What rounds and multiplies on a device. One scale a tensor, for comparison alone, is emulated anywhere."""
        if device.type == "cuda" and self.scaling == "block":
            return Kernels(self.power_of_two)
        return Emulation(self.scaling == "block", self.power_of_two)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offsets: Tensor | None, how: Fp8Products) -> Tensor:
        inputs = _Inputs.of(x, offsets, how)
        ctx.how, ctx.shape, ctx.dtype = how, x.shape, x.dtype
        kept: tuple[Tensor, ...] = ()
        if ctx.needs_input_grad[1]:
            if how.keep == "fp8":
                columns = inputs.columns()
                kept = (columns.values, columns.scales)
            else:
                kept = (x,)
        ctx.save_for_backward(weight, offsets, *kept)
        out = how.ways(x.device).forward(inputs.rows(), weight, offsets, x.dtype)
        return out.to(x.dtype).view(*x.shape[:-1], weight.shape[-2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, offsets, *kept = ctx.saved_tensors
        products = ctx.how.ways(weight.device)
        grad = grads[0].flatten(0, -2)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = products.grad_input(grad, weight, offsets).to(ctx.dtype).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            if len(kept) == 1:
                columns = products.columns(kept[0].flatten(0, -2), offsets)
                kept = [columns.values, columns.scales]
            grad_weight = products.grad_weight(grad, *kept, weight, offsets)
        return grad_x, grad_weight, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, how: Fp8Products) -> Tensor:
        ctx.how = how
        if how.keep == "fp8":
            tiles = [how.ways(gate.device).rows(one.flatten(0, -2)) for one in (gate, up)]
            ctx.shape, ctx.dtype = gate.shape, gate.dtype
            ctx.borders, ctx.width = tiles[0].borders, tiles[0].width
            ctx.save_for_backward(*(part for one in tiles for part in (one.values, one.scales)))
        else:
            ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        if ctx.how.keep == "fp8":
            pairs = (Tiles(kept[at], kept[at + 1], ctx.borders, ctx.width) for at in (0, 2))
            kept = [tiles.dequantised(ctx.dtype).view(ctx.shape) for tiles in pairs]
        gate, up = kept
        grad = grads[0]
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad), None


class _Inputs:
    """The tiles of one input, made when they are first asked for."""

    def __init__(self, x: Tensor, offsets: Tensor | None, how: Fp8Products) -> None:
        self.x, self.offsets, self.how = weakref.ref(x), offsets, how
        self.version = 0 if x.is_inference() else x._version
        self._rows: Tiles | None = None
        self._columns: Tiles | None = None

    @classmethod
    def of(cls, x: Tensor, offsets: Tensor | None, how: Fp8Products) -> _Inputs:
        """Those remembered for this very input if nothing changed it since, else new ones."""
        if x.is_inference():  # such tensors do not say whether they changed
            return cls(x, offsets, how)
        recent: deque[_Inputs] | None = getattr(_remembered, "inputs", None)
        if recent is None:
            recent = _remembered.inputs = deque(maxlen=_RECENT)
        for one in tuple(recent):
            if one.x() is None:  # nobody can ask for it again: its tiles are let go
                recent.remove(one)
            elif one.x() is x and one.version == x._version and one.offsets is offsets and one.how == how:
                return one
        recent.append(cls(x, offsets, how))
        return recent[-1]

    def rows(self) -> Tiles:
        """In tiles of 1 x 128."""
        if self._rows is None:
            x = self._flat()
            self._rows = self.how.ways(x.device).rows(x)
        return self._rows

    def columns(self) -> Tiles:
        """In tiles of 128 x 1."""
        if self._columns is None:
            x = self._flat()
            self._columns = self.how.ways(x.device).columns(x, self.offsets)
        return self._columns

    def _flat(self) -> Tensor:
        x = self.x()
        assert x is not None, "asked only while the input is at hand"
        return x.flatten(0, -2)


_remembered = threading.local()
_RECENT = 4
"""Inputs remembered: a block multiplies its normed input twice, with one other product between."""
