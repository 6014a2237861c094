"""A dense feed-forward layer into experts.

The neurons of every layer are grouped by what they do on a calibration text (``neurons``), each group becomes an expert
with the neurons' own weights, and a gate is fitted by least squares to how much each expert adds for a token. Every
chosen expert counts fully (``weigh_experts=False``), so all of them together are the dense layer again.

With fewer experts than all, ``down_proj`` of a layer is fitted again behind the layers that were changed before it, so
that the experts that run make up for those that do not, as far as a linear map can. That is least squares too: nothing
is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.moe import MLP
from deepwell.lm.model.rowwise import swiglu
from deepwell.lm.model.transformer import Block, Transformer
from deepwell.lm.weights.conversions.calibration import Progress
from deepwell.lm.weights.conversions.neurons import group_neurons, unexplained
from deepwell.lm.weights.conversions.rebuild import EVERY_LAYER_ONE_GROUP, rebuilt, windows_of
from deepwell.lm.weights.conversions.refit import LeastSquares, attend_in_place, fitted

__all__ = ["split"]

WINDOW = 512
WINDOWS = 24
"""Windows of the calibration text that are looked at; a longer text is sampled evenly."""
_SPREAD = 0.25
"""Standard deviation of the gate's logits."""
_CLUSTERED = 4096
"""Tokens that decide which neurons go together."""


@torch.no_grad()
def split(
    model: Transformer,
    *,
    experts: int,
    top_k: int,
    shared: int = 0,
    calibration: Tensor,
    refit: bool = True,
    on_progress: Progress | None = None,
) -> Transformer:
    """Experts of equal width in place of dense layers.

    Args:
        model: All its layers are dense and without biases. It keeps its weights.
        experts: Parts that each layer's neurons make, shared ones included; divides ``intermediate_size``.
        top_k: Parts that a token takes, shared ones included. All: the same function as before.
        shared: Parts that every token takes, made of the neurons that always do much.
        calibration: [N] tokens of a text like those that the network will see; 12,000 are looked at.
        refit: Fit ``down_proj`` again where not all experts run.
        on_progress: Called with the layers done and the layers there are.

    Raises:
        UsageError: The network has experts already or biases, a number is out of its range, or the text is too short.
    """
    config = model.config
    _check(model, experts, top_k, shared)
    windows = windows_of(calibration, min(WINDOW, config.max_position_embeddings), most=WINDOWS).to(model.device)
    new = _config(config, experts, top_k, shared)
    exact = top_k == experts
    changes: dict[str, Tensor | None] = {}
    dense = model.embed_tokens(windows)  # [W, T, hidden]: the stream of the network as it is,
    changed = dense.clone()  # and of the one that it becomes
    for layer, module in enumerate(model.layers):
        block = cast(Block, module)
        mlp = cast(MLP, block.mlp)
        attend_in_place(model, block, dense)
        if exact:
            changed = dense
        else:
            attend_in_place(model, block, changed)
        normed = block.post_attention_layernorm(changed).flatten(0, 1)
        activations = swiglu(mlp.gate_proj(normed), mlp.up_proj(normed))
        parts = _part(normed, activations, mlp.down_proj.weight, experts, shared)
        dense += mlp(block.post_attention_layernorm(dense))
        down = mlp.down_proj.weight.float()
        if not exact:
            activations = activations * parts.running(normed, top_k - shared)
            if refit:
                down = fitted(down, activations, (dense - changed).flatten(0, 1))
            changed += (activations.float() @ down.T).view_as(changed).to(changed.dtype)
        del normed, activations
        changes |= {f"layers.{layer}.mlp.{name}": tensor for name, tensor in parts.tensors(mlp, down).items()}
        if on_progress is not None:
            on_progress(layer + 1, len(model.layers))
    return rebuilt(model, new, changes)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Of one layer. I neurons, E routed experts of i neurons each, n neurons that always run."""

    always: Tensor
    """[n]"""
    groups: Tensor
    """[E, i]"""
    gate: Tensor
    """[E, hidden] float32"""
    bias: Tensor
    """[E] float32"""

    def running(self, normed: Tensor, top_k: int) -> Tensor:
        """Which neurons run for each token: ``normed`` [N, hidden] -> [N, I] of zeros and ones."""
        mask = normed.new_zeros(len(normed), self.always.numel() + self.groups.numel())
        mask[:, self.always] = 1
        if top_k:
            scores = (normed.float() @ self.gate.to(normed.dtype).float().T).sigmoid() + self.bias
            chosen = torch.zeros_like(scores).scatter_(1, scores.topk(top_k, dim=-1).indices, 1.0)
            mask[:, self.groups.flatten()] = chosen.repeat_interleave(self.groups.shape[1], dim=1).to(mask.dtype)
        return mask

    def tensors(self, mlp: MLP, down: Tensor) -> dict[str, Tensor | None]:
        """The tensors of the layer's experts, with ``down`` [hidden, I] in place of the layer's own."""
        gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
        found: dict[str, Tensor | None] = dict.fromkeys(
            f"{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")
        )
        found["gate.weight"] = self.gate
        found["gate.e_score_correction_bias"] = self.bias
        found["experts.gate_up_proj"] = torch.cat([gate[self.groups], up[self.groups]], dim=1)
        found["experts.down_proj"] = down.T[self.groups].transpose(1, 2)
        if len(self.always):
            found["shared_experts.gate_proj.weight"] = gate[self.always]
            found["shared_experts.up_proj.weight"] = up[self.always]
            found["shared_experts.down_proj.weight"] = down[:, self.always]
        return found


def _part(normed: Tensor, activations: Tensor, down: Tensor, experts: int, shared: int) -> _Parts:
    """Group the neurons of one layer, and fit a gate to what each group adds for a token."""
    sample = torch.linspace(0, len(normed) - 1, min(_CLUSTERED, len(normed))).long().to(normed.device)
    always, groups = group_neurons(activations[sample], down, experts=experts, shared=shared)
    rest = unexplained(activations, always, groups.flatten()).unflatten(1, groups.shape)  # [N, E, i]
    strength = torch.stack(
        [(rest[:, one] @ down.float()[:, group].T).square().sum(1) for one, group in enumerate(groups)], dim=1
    )
    share = strength / strength.sum(1, keepdim=True).clamp_min(1e-30)
    inputs = normed.float()
    middle = inputs.mean(0)
    fit = LeastSquares(torch.zeros(len(groups), inputs.shape[1], device=inputs.device))
    fit.add(inputs - middle, share - share.mean(0))
    gate = fit.solve(1e-3)
    # Logits stay where a sigmoid is nearly straight (its slope is 1/4), so that a bias behind it can carry the means.
    scale = _SPREAD / ((inputs - middle) @ gate.T).std().clamp_min(1e-30)
    gate = gate * scale
    bias = (scale * share.mean(0) - gate @ middle) / 4
    return _Parts(always, groups, gate, bias - bias.mean())


def _check(model: Transformer, experts: int, top_k: int, shared: int) -> None:
    config = model.config
    if config.n_routed_experts:
        raise UsageError("this network has experts already", hint="split a network whose layers are dense")
    if config.mlp_bias:
        raise UsageError("the feed-forward layers of this network have biases, which experts have not")
    if model.mtp:
        raise UsageError("modules of multi-token prediction are not split", hint="save the network without them")
    if experts < 2 or config.intermediate_size % experts:
        raise UsageError(
            f"experts is {experts}; it is at least 2 and divides the {config.intermediate_size} neurons of a layer"
        )
    if not 0 <= shared < top_k <= experts:
        raise UsageError(
            f"shared ({shared}), top_k ({top_k}) and experts ({experts}): a token takes the shared ones, at least one "
            "more, and no more than there are"
        )


def _config(config: ModelConfig, experts: int, top_k: int, shared: int) -> ModelConfig:
    return config.replace(
        moe_intermediate_size=config.intermediate_size // experts,
        n_routed_experts=experts - shared,
        n_shared_experts=shared,
        num_experts_per_tok=top_k - shared,
        norm_topk_prob=False,
        weigh_experts=False,
        **EVERY_LAYER_ONE_GROUP,
    )
