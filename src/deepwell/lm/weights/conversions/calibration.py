"""What a calibration text shows of every attention layer.

To leave things out well one must know what matters. For a head with attention shares a over earlier tokens s and an
error E in the map from inputs x to its keys, the score of query q at token t is off by q . E x_s, and to first order
the loss moves by

    sum_s  g_ts q_t . E x_s  =  q_t . E y_t,        y_t = sum_s g_ts x_s,

where g_ts is the derivative of the loss by the score. So what counts are the second moments of q and of y: E costs
about tr(E' M E S) with M = mean q q' and S = mean y y' (the Kronecker approximation of the Fisher information, arXiv
1503.05671). That an equal shift of all scores is free is in it by itself, since g sums to zero. For values,
y_t = sum_s a_ts x_s, and in place of q stands the derivative of the loss by the head's output.

The derivatives are of the network's own predictions: labels are drawn from what it predicts (the true Fisher
information), so no text needs to be the right one. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from deepwell.lm.model.attention import MultiHeadLatentAttention
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.rope import inverse_frequencies, magnitude, rotate
from deepwell.lm.model.transformer import Block, Transformer

__all__ = ["AttentionStatistics", "Projections", "observe", "projections"]

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps there are."""


@dataclass(frozen=True, slots=True)
class Projections:
    """The matrices of grouped attention, by head, in float32.

    X is the hidden size, and one more where there are biases: inputs then end with a constant 1.
    """

    query: Tensor
    """[H, D, X]"""
    key: Tensor
    """[G, D, X]"""
    value: Tensor
    """[G, V, X]"""
    output: Tensor
    """[H, hidden, V]"""

    def inputs(self, x: Tensor) -> Tensor:
        """``x`` [..., hidden] -> [..., X] in float32."""
        x = x.float()
        if self.query.shape[-1] > x.shape[-1]:
            x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
        return x


@dataclass(slots=True)
class AttentionStatistics:
    """Of one layer with H heads whose keys have F = D/2 pairs. All are means over tokens."""

    queries: Tensor
    """[H, D, D]: M of the keys"""
    scored: Tensor
    """[H, X, X]: S of the keys"""
    outputs: Tensor
    """[H, V, V]: M of the values"""
    attended: Tensor
    """[H, X, X]: S of the values"""
    looked_at: Tensor
    """[X, X]: inputs weighted by how much the loss depends on the scores that they get"""
    energy: Tensor
    """[H, F]: how much each pair of the key adds to the square of what moves the loss"""
    turned: Tensor
    """[H, F] complex: the same times exp(i * frequency * (key's place - query's place)), so that turned / energy is the
    mean turn of a pair over the distances at which it is looked at"""


def projections(attention: MultiHeadLatentAttention, config: ModelConfig) -> Projections:
    """The matrices of a grouped attention layer; biases become a last column."""

    def with_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
        return (weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)).detach().float()

    heads, groups = config.num_attention_heads, config.rope_key_heads
    rows = with_bias(attention.kv_a_proj_with_mqa.weight, attention.kv_a_proj_with_mqa.bias)
    value, key = rows.split([config.kv_lora_rank, config.rope_key_width])
    query = with_bias(attention.q_proj.weight, attention.q_proj.bias)
    output = attention.o_proj.weight.detach().float().unflatten(1, (heads, -1)).transpose(0, 1)
    return Projections(
        query.unflatten(0, (heads, -1)), key.unflatten(0, (groups, -1)), value.unflatten(0, (groups, -1)), output
    )


def observe(
    model: Transformer, windows: Tensor, *, on_progress: Progress | None = None, seed: int = 0
) -> list[AttentionStatistics]:
    """Statistics of every layer of a grouped network over ``windows`` [count, length] of tokens.

    Takes a forward and a backward pass, and about as much again for the moments; memory is that of one window.
    """
    config = model.config
    generator = torch.Generator(device=model.device).manual_seed(seed)
    matrices = [projections(cast(Block, block).self_attn, config) for block in model.layers]
    found: list[AttentionStatistics] = []
    steps = len(windows) * len(matrices)
    for number, window in enumerate(windows.to(model.device)):
        inputs, slopes, mask = _backward(model, window[None], generator)
        for layer, matrix in enumerate(matrices):
            seen = _moments(config, matrix, matrix.inputs(inputs[layer]), slopes[layer].float(), mask)
            if number == 0:
                found.append(seen)
            else:
                for field in AttentionStatistics.__slots__:
                    getattr(found[layer], field).add_(getattr(seen, field))
            if on_progress is not None:
                on_progress(number * len(matrices) + layer + 1, steps)
    for one in found:
        for field in AttentionStatistics.__slots__:
            getattr(one, field).div_(windows.numel())
    return found


def _backward(
    model: Transformer, tokens: Tensor, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Inputs of every attention layer [T, hidden], the loss's derivatives by its outputs, and the mask [T, T]."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(_module: Any, given: tuple[Any, ...], out: Tensor) -> None:
        inputs.append(given[0].detach()[0])
        out.retain_grad()
        outputs.append(out)

    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    hooks = [cast(Block, block).self_attn.register_forward_hook(keep) for block in model.layers]
    try:
        model.requires_grad_(False)
        sight = model.sight(tokens)
        with torch.enable_grad():
            x = model.embed_tokens(tokens).requires_grad_()
            for block in model.layers:
                x, _ = block(x, sight)
            hidden = model.norm(x)[0]
        # The derivative of a drawn label's cross-entropy by the logits: what is predicted, less the label.
        wrong = model.head(hidden.detach()).float().softmax(-1)
        drawn = torch.rand(len(wrong), 1, generator=generator, device=wrong.device)
        labels = torch.searchsorted(wrong.cumsum(-1), drawn).clamp_(max=wrong.shape[-1] - 1)
        wrong.scatter_add_(1, labels, wrong.new_full(labels.shape, -1.0))
        hidden.backward(wrong.to(hidden.dtype) @ model.head_weight)
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, value in wanted:
            parameter.requires_grad_(value)
    length = tokens.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    if sight.mask is not None:
        mask = sight.mask[0, 0]
    return inputs, [cast(Tensor, out.grad)[0] for out in outputs], mask


@torch.no_grad()
def _moments(config: ModelConfig, matrix: Projections, x: Tensor, slope: Tensor, mask: Tensor) -> AttentionStatistics:
    """Sums over one window: ``x`` [T, X] inputs, ``slope`` [T, hidden] derivatives by the layer's output."""
    heads, groups, scale = config.num_attention_heads, config.rope_key_heads, config.softmax_scale
    frequencies = inverse_frequencies(config).to(x.device)
    pairs = len(frequencies)
    angles = torch.arange(len(x), device=x.device, dtype=torch.float32)[:, None] * frequencies  # [T, F]
    cos, sin = angles.cos(), angles.sin()
    times = magnitude(config)
    query, key = x @ matrix.query.transpose(1, 2), x @ matrix.key.transpose(1, 2)  # [H, T, D], [G, T, D]
    value = x @ matrix.value.transpose(1, 2)
    turned_query, turned_key = rotate(query, cos * times, sin * times), rotate(key, cos * times, sin * times)
    q_energy = query.unflatten(-1, (2, pairs)).square().sum(-2)  # [H, T, F]
    k_energy = key.unflatten(-1, (2, pairs)).square().sum(-2)
    wanted = slope @ matrix.output  # [H, T, V]: derivatives by what each head puts out
    width = x.shape[-1]
    scored, attended = x.new_zeros(heads, width, width), x.new_zeros(heads, width, width)
    energy, turn = x.new_zeros(heads, pairs), torch.zeros(heads, pairs, dtype=torch.complex64, device=x.device)
    weight = x.new_zeros(len(x))
    for head in range(heads):
        group = head // (heads // groups)
        shares = (turned_query[head] @ turned_key[group].T * scale).masked_fill_(~mask, -torch.inf).softmax(-1)
        slopes = wanted[head] @ value[group].T
        slopes = shares * (slopes - (shares * slopes).sum(-1, keepdim=True)) * scale  # by the scores before scaling
        y = slopes @ x
        scored[head] = y.T @ y
        y = shares @ x
        attended[head] = y.T @ y
        squares = slopes.square_()
        weight += squares.sum(0)
        rows = k_energy[group]
        sums = squares @ torch.cat([rows, rows * cos, rows * sin], dim=1)  # [T, 3F]
        plain, real, imaginary = (sums.unflatten(-1, (3, pairs)) * q_energy[head][:, None]).unbind(1)
        energy[head] = plain.sum(0)
        turn[head] = torch.complex((real * cos + imaginary * sin).sum(0), (imaginary * cos - real * sin).sum(0))
    return AttentionStatistics(
        queries=query.transpose(1, 2) @ query,
        scored=scored,
        outputs=wanted.transpose(1, 2) @ wanted,
        attended=attended,
        looked_at=x.T @ (weight[:, None] * x),
        energy=energy,
        turned=turn,
    )
