"""BERT in numpy, float32: for a query in a cold process, and for everything where torch is not installed.

Weights are views of the mapped file, so loading costs nothing and the first query reads 40 MB from the page cache. GELU
is the exact one (with erf); numpy has no erf, so a series stands in (see ``erf``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepwell.library.encoders.bert.config import BertConfig
from deepwell.library.encoders.packing import Batch
from deepwell.library.encoders.recipe import Pooling
from deepwell.library.encoders.weights import Weights

Array = NDArray[np.float32]

_ROWS = 64
"""Rows of the feed-forward's inner matrix [T, 1536] that are activated at a time: 400 kB, which stays in the cache."""


class NumpyBert:
    """Pooled states of packed batches. Holds no state of its own, so threads may share it."""

    def __init__(self, config: BertConfig, weights: Weights, pooling: Pooling) -> None:
        self._config = config
        self._weights = weights
        self._pooling = pooling
        self._eps = np.float32(config.layer_norm_eps)
        # float16 and bfloat16 checkpoints would be widened at each use; linear layers are small, so keep them widened.
        self._cached = {
            name: np.ascontiguousarray(weights[name], np.float32)
            for name in weights
            if not name.startswith("embeddings.") and weights.is_float(name)
        }

    def pooled(self, batch: Batch) -> Array:
        """[N, hidden] in the order of the batch, not normalised."""
        states = self._embed(batch)
        for layer in range(self._config.num_hidden_layers):
            states = self._layer(f"encoder.layer.{layer}.", states, batch)
        return pool(states, batch, self._pooling)

    def _embed(self, batch: Batch) -> Array:
        rows = self._weights.rows
        states = rows("embeddings.word_embeddings.weight", batch.ids)
        states = states + rows("embeddings.position_embeddings.weight", batch.positions)
        states += rows("embeddings.token_type_embeddings.weight", np.zeros(1, np.intp))
        return self._norm("embeddings.LayerNorm.", states)

    def _layer(self, prefix: str, states: Array, batch: Batch) -> Array:
        context = self._attend(prefix + "attention.self.", states, batch)
        states = states + self._linear(prefix + "attention.output.dense.", context)
        states = self._norm(prefix + "attention.output.LayerNorm.", states)
        inner = self._linear(prefix + "intermediate.dense.", states)
        for first in range(0, len(inner), _ROWS):
            gelu_(inner[first : first + _ROWS])
        states = states + self._linear(prefix + "output.dense.", inner)
        return self._norm(prefix + "output.LayerNorm.", states)

    def _attend(self, prefix: str, states: Array, batch: Batch) -> Array:
        heads, width = self._config.num_attention_heads, self._config.head_dim
        query, key, value = (self._linear(f"{prefix}{name}.", states) for name in ("query", "key", "value"))
        query *= np.float32(width**-0.5)
        context = np.empty_like(states)
        for first, count, length in batch.runs:
            here = slice(first, first + count * length)
            q, k, v = (x[here].reshape(count, length, heads, width).transpose(0, 2, 1, 3) for x in (query, key, value))
            scores = q @ k.transpose(0, 1, 3, 2)  # [count, heads, length, length]
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            context[here] = (scores @ v).transpose(0, 2, 1, 3).reshape(count * length, -1)
        return context

    def _linear(self, prefix: str, states: Array) -> Array:
        result: Array = states @ self._cached[prefix + "weight"].T
        result += self._cached[prefix + "bias"]
        return result

    def _norm(self, prefix: str, states: Array) -> Array:
        if prefix.startswith("embeddings."):
            scale, shift = (np.asarray(self._weights[prefix + name], np.float32) for name in ("weight", "bias"))
        else:
            scale, shift = self._cached[prefix + "weight"], self._cached[prefix + "bias"]
        states = states - states.mean(axis=-1, keepdims=True)
        variance = np.einsum("td,td->t", states, states)[:, None] / np.float32(states.shape[-1])
        states /= np.sqrt(variance + self._eps)
        states *= scale
        states += shift
        return states


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


def erf(x: Array) -> Array:
    """The error function, within 5e-7 in float32 (Abramowitz and Stegun, Mathematical Functions, 7.1.26)."""
    size = np.abs(x)
    t = np.float32(1) / (np.float32(0.3275911) * size + np.float32(1))
    series = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series *= t
        series += np.float32(coefficient)
    series *= t
    np.multiply(size, size, out=size)
    np.negative(size, out=size)
    np.exp(size, out=size)
    size *= series
    result: Array = np.copysign(np.float32(1) - size, x)
    return result


def gelu_(x: Array) -> None:
    """In place: x * Phi(x), with the exact normal distribution function and not its tanh approximation."""
    gate = erf(x * np.float32(0.5**0.5))
    gate += np.float32(1)
    gate *= np.float32(0.5)
    x *= gate
