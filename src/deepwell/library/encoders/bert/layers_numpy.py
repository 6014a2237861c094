"""BERT in numpy, float32: for a query in a cold process, and for everything where torch is not installed.

Most weights are views of the mapped file, so loading costs next to nothing and the first query reads 40 MB from the
page cache; a process that goes on encoding has them copied into a faster order (``_lay_out``). GELU is the exact one;
numpy has no erf, so ``gelu_`` has its own way to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepwell.library.encoders.bert.config import BertConfig
from deepwell.library.encoders.packing import Batch
from deepwell.library.encoders.recipe import Pooling
from deepwell.library.encoders.weights import Weights

Array = NDArray[np.float32]

_ROWS = 64
"""Rows of the feed-forward's inner matrix [T, 1536] that are activated at a time: 400 kB, which stays in the cache."""


@dataclass(slots=True)
class _Layer:
    """Weights are [in, out]; ``qkv`` is query, key and value side by side, the query's share scaled for attention."""

    qkv: Array
    qkv_bias: Array
    out: Array
    out_bias: Array
    norm1: tuple[Array, Array]
    up: Array
    up_bias: Array
    down: Array
    down_bias: Array
    norm2: tuple[Array, Array]


class NumpyBert:
    """Pooled states of packed batches. Threads may share it."""

    def __init__(self, config: BertConfig, weights: Weights, pooling: Pooling) -> None:
        self._config = config
        self._weights = weights
        self._pooling = pooling
        self._eps = np.float32(config.layer_norm_eps)
        self._embedding_norm = self._pair("embeddings.LayerNorm.")
        self._types = weights.rows("embeddings.token_type_embeddings.weight", np.zeros(1, np.intp))
        self._layers = [self._load(f"encoder.layer.{index}.") for index in range(config.num_hidden_layers)]
        self._batches = 0

    def _load(self, at: str) -> _Layer:
        parts = [self._pair(f"{at}attention.self.{name}.") for name in ("query", "key", "value")]
        qkv = np.concatenate([weight for weight, _ in parts]).T
        qkv_bias = np.concatenate([bias for _, bias in parts])
        scale = np.float32(self._config.head_dim**-0.5)
        qkv[:, : self._config.hidden_size] *= scale
        qkv_bias[: self._config.hidden_size] *= scale
        (out, out_bias), (up, up_bias), (down, down_bias) = (
            self._pair(at + name) for name in ("attention.output.dense.", "intermediate.dense.", "output.dense.")
        )
        norm1, norm2 = self._pair(at + "attention.output.LayerNorm."), self._pair(at + "output.LayerNorm.")
        return _Layer(qkv, qkv_bias, out.T, out_bias, norm1, up.T, up_bias, down.T, down_bias, norm2)

    def _pair(self, prefix: str) -> tuple[Array, Array]:
        # Views of the mapped file where it holds float32; other checkpoints are widened once.
        weight, bias = (np.asarray(self._weights[prefix + name], np.float32) for name in ("weight", "bias"))
        return weight, bias

    def _lay_out(self) -> None:
        """Copy the weights into the order that a product with a few rows reads fastest, 42 MB for MiniLM.

        Short queries then take two thirds of the time. The copy costs as much as five of them, so a process that
        encodes once does without.
        """
        for layer in self._layers:
            for name in ("qkv", "out", "up", "down"):
                setattr(layer, name, np.ascontiguousarray(getattr(layer, name)))

    def each(self, batches: Iterable[Batch]) -> Iterator[Array]:
        """``pooled`` of every batch, one after another: numpy's products use all cores by themselves."""
        return map(self.pooled, batches)

    def pooled(self, batch: Batch) -> Array:
        """[N, hidden] in the order of the batch, not normalised."""
        self._batches += 1
        if self._batches == 2:
            self._lay_out()  # a second thread meanwhile computes on either order
        states = self._embed(batch)
        for layer in self._layers:
            context = self._attend(_linear(states, layer.qkv, layer.qkv_bias), batch)
            context = _linear(context, layer.out, layer.out_bias)
            context += states
            states = self._norm(context, layer.norm1)
            inner = _linear(states, layer.up, layer.up_bias)
            for first in range(0, len(inner), _ROWS):
                gelu_(inner[first : first + _ROWS])
            result = _linear(inner, layer.down, layer.down_bias)
            result += states
            states = self._norm(result, layer.norm2)
        return pool(states, batch, self._pooling)

    def _embed(self, batch: Batch) -> Array:
        rows = self._weights.rows
        states = rows("embeddings.word_embeddings.weight", batch.ids)
        states = states + rows("embeddings.position_embeddings.weight", batch.positions)
        states += self._types
        return self._norm(states, self._embedding_norm)

    def _attend(self, qkv: Array, batch: Batch) -> Array:
        """[T, 3 * hidden] -> [T, hidden]."""
        heads, width = self._config.num_attention_heads, self._config.head_dim
        context = np.empty((len(qkv), heads * width), np.float32)
        for first, count, length in batch.runs:
            here = slice(first, first + count * length)
            # [3, count, heads, length, width]
            q, k, v = qkv[here].reshape(count, length, 3, heads, width).transpose(2, 0, 3, 1, 4)
            scores = q @ k.transpose(0, 1, 3, 2)  # [count, heads, length, length]
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            context[here] = (scores @ v).transpose(0, 2, 1, 3).reshape(count * length, -1)
        return context

    def _norm(self, states: Array, scale_shift: tuple[Array, Array]) -> Array:
        """In place."""
        scale, shift = scale_shift
        states -= states.mean(axis=-1, keepdims=True)
        variance = np.einsum("td,td->t", states, states)[:, None] / np.float32(states.shape[-1])
        states /= np.sqrt(variance + self._eps)
        states *= scale
        states += shift
        return states


def _linear(states: Array, weight: Array, bias: Array) -> Array:
    result: Array = states @ weight
    result += bias
    return result


def pool(states: Array, batch: Batch, pooling: Pooling) -> Array:
    """Token states [T, hidden] to one vector for each sequence [N, hidden]."""
    lengths = np.diff(batch.starts, append=len(states))
    if pooling == "cls":
        return states[batch.starts]
    if pooling == "last":
        return states[batch.starts + lengths - 1]
    if pooling == "max":
        return np.asarray(np.maximum.reduceat(states, batch.starts, axis=0), np.float32)
    means: Array = np.add.reduceat(states, batch.starts, axis=0)
    means /= lengths[:, None].astype(np.float32)
    return means


_LOGIT = tuple(
    np.float32(c)
    for c in (3.6280024e-09, -2.6757287e-07, 7.9482441e-06, -1.1054750e-04, -6.6051067e-05, 7.2668295e-02, 1.5957685)
)
"""log(Phi(x) / (1 - Phi(x))) / x as a polynomial in x**2, highest power first, for ``|x|`` up to 6.5."""


def gelu_(x: Array) -> None:
    """In place: x * Phi(x), with the exact normal distribution function and not its tanh approximation.

    Phi is the logistic function of an odd polynomial, fitted so that x * Phi(x) is within 7e-8 of the truth, before
    float32 rounds it to 6e-7. It takes one exponential and no division but the last: a quarter of the time of a series
    for erf.
    """
    square = x * x
    np.minimum(square, np.float32(42), out=square)
    logit = square * _LOGIT[0]
    logit += _LOGIT[1]
    for coefficient in _LOGIT[2:]:
        logit *= square
        logit += coefficient
    logit *= x
    np.negative(logit, out=logit)
    np.minimum(logit, np.float32(80), out=logit)  # exp(88) is infinite
    np.exp(logit, out=logit)
    logit += np.float32(1)
    x /= logit
