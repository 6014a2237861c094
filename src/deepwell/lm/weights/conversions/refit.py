"""An output matrix fitted again by least squares, behind what was changed.

When the inputs of a matrix W have changed (half of them are left out, say), the matrix that then comes nearest to what
was there before is a least-squares problem with one solution: min |Y - Z W'|^2 + |(W - W0) l|^2. No gradient is
followed. The term with l keeps W near W0 where the text says little.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from deepwell.lm.model.moe import MLP
from deepwell.lm.model.products import Linear
from deepwell.lm.model.rowwise import swiglu
from deepwell.lm.model.transformer import Block, Transformer
from deepwell.lm.weights.conversions.calibration import Progress
from deepwell.lm.weights.conversions.rebuild import rebuilt

__all__ = ["LeastSquares", "attend_in_place", "fitted", "refit"]


class LeastSquares:
    """Collects inputs and what they should give, a few rows at a time, then solves.

    Args:
        start: [out, in], the matrix that is there.
    """

    def __init__(self, start: Tensor) -> None:
        self._start = start.detach().float()
        width = start.shape[1]
        self._gram = torch.zeros(width, width, dtype=torch.float32, device=start.device)
        self._cross = torch.zeros(width, start.shape[0], dtype=torch.float32, device=start.device)

    def add(self, inputs: Tensor, wanted: Tensor) -> None:
        """``inputs`` [N, in] should give ``wanted`` [N, out]."""
        rows = inputs.float()
        self._gram.addmm_(rows.T, rows)
        self._cross.addmm_(rows.T, wanted.float() - rows @ self._start.T)

    def solve(self, ridge: float = 1e-2) -> Tensor:
        """The matrix [out, in] in float32; ``ridge`` is l squared as a share of the inputs' mean square."""
        gram = self._gram.double()
        lift = ridge * gram.diagonal().mean() + 1e-30
        gram += lift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        change = torch.cholesky_solve(self._cross.double(), torch.linalg.cholesky(gram))
        return self._start + change.T.float()


RIDGES = (1e-2, 1e-1, 1.0)
"""Those that are tried."""


def fitted(start: Tensor, inputs: Tensor, wanted: Tensor) -> Tensor:
    """The best matrix for ``inputs`` [N, in] -> ``wanted`` [N, out], as far as it can be trusted: [out, in] float32.

    The last quarter of the rows is kept back; the ridge that is best there is taken, or ``start`` [out, in] itself
    where none is better, since a short text can be learnt by heart.
    """
    border = len(inputs) - len(inputs) // 4
    fit = LeastSquares(start)
    fit.add(inputs[:border], wanted[:border])
    kept_inputs, kept_wanted = inputs[border:].float(), wanted[border:].float()

    def error(matrix: Tensor) -> float:
        return float((kept_wanted - kept_inputs @ matrix.T).square().sum())

    errors = {ridge: error(fit.solve(ridge)) for ridge in RIDGES}
    best = min(errors, key=errors.__getitem__)
    if errors[best] >= error(start.float()):
        return start.float()
    fit.add(kept_inputs, kept_wanted)
    return fit.solve(best)


@torch.no_grad()
def refit(
    original: Transformer,
    changed: Transformer,
    windows: Tensor,
    *,
    on_progress: Progress | None = None,
) -> Transformer:
    """Fit ``o_proj`` and, where layers are dense, ``down_proj`` again, layer by layer.

    Each is made to bring the stream of ``changed`` back to that of ``original`` behind it, with all layers before it
    changed and fitted already.

    Args:
        original: What the network was.
        changed: What it has become, with the same layers and widths of stream. It keeps its weights.
        windows: [count, length] tokens of a calibration text.
        on_progress: Called with the layers done and the layers there are.
    """
    model = rebuilt(changed, changed.config, {})
    wanted = original.embed_tokens(windows.to(model.device))  # [W, T, hidden]
    stream = wanted.clone()
    for layer, (one, other) in enumerate(zip(original.layers, model.layers, strict=True)):
        before, after = cast(Block, one), cast(Block, other)
        attend_in_place(original, before, wanted)
        given = attend_in_place(model, after, stream.clone(), keep=True)
        _fit(after.self_attn.o_proj, given, wanted, stream)
        wanted += before.mlp(before.post_attention_layernorm(wanted))
        normed = after.post_attention_layernorm(stream)
        if isinstance(after.mlp, MLP):
            given = swiglu(after.mlp.gate_proj(normed), after.mlp.up_proj(normed)).flatten(0, 1)
            _fit(after.mlp.down_proj, given, wanted, stream)
        else:
            stream += after.mlp(normed)[0]
        if on_progress is not None:
            on_progress(layer + 1, len(model.layers))
    return model


def _fit(linear: Linear, given: Tensor, wanted: Tensor, stream: Tensor) -> None:
    """Fit ``linear`` so that ``stream`` with its output is near ``wanted``, and add its output to ``stream``."""
    gap = (wanted - stream).flatten(0, 1).float()
    linear.weight.copy_(fitted(linear.weight, given, gap if linear.bias is None else gap - linear.bias.float()))
    stream += linear(given).view_as(stream)


def attend_in_place(model: Transformer, block: Block, stream: Tensor, *, keep: bool = False) -> Tensor:
    """Add a layer's attention to ``stream`` [W, T, hidden], one window after the other.

    Returns what ``o_proj`` was given, [W * T, H * V], if it is to be kept; else nothing, [0].
    """
    kept: list[Tensor] = []
    hook = None
    if keep:
        hook = block.self_attn.o_proj.register_forward_hook(lambda _module, given, _out: kept.append(given[0]))
    for window in stream.split(1):
        sight = model.sight(torch.zeros(window.shape[:2], dtype=torch.int64, device=window.device))
        window += block.self_attn(block.input_layernorm(window), sight, block.layer)
    if hook is not None:
        hook.remove()
    return torch.cat(kept).flatten(0, 1) if keep else stream.new_zeros(0)
