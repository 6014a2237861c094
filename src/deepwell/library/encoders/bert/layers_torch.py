"""BERT in torch: for bulk.

What makes it faster than a padded batch through transformers:

- no padding (``packing``): linear layers see one matrix of all tokens, attention runs once for each run of equally
  long texts;
- query, key and value are one matrix product;
- each core computes a batch of its own. Sharing one batch, cores wait for each other after every operation, and where
  another process holds one of them the others spin;
- batches of about 1,024 tokens, whose widest activations (6 MB) the allocator gives back at once: fresh 50 MB tensors
  cost more in page faults than the arithmetic on them;
- bfloat16 where the processor multiplies it in hardware (see ``precision``), six times the rate of float32. Norms, the
  residual stream's sums and pooling then still round to bfloat16 between layers; ``benchmarks/encoding.py`` prints what
  that does to vectors and to retrieval.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deepwell.library.encoders.bert.config import BertConfig
from deepwell.library.encoders.packing import Batch
from deepwell.library.encoders.recipe import Pooling
from deepwell.library.encoders.weights import Weights


def precision() -> torch.dtype:
    """bfloat16 where there are instructions for its products, else float32.

    Without them (AVX2, older AVX-512) torch emulates bfloat16 at a tenth of float32's rate, so asking the processor is
    not optional.
    """
    able = torch.cpu.get_capabilities()
    has = any(able.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if has else torch.float32


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights are [out, in], as stored; ``qkv`` is query, key and value on top of each other."""

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    norm1: tuple[Tensor, Tensor]
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    norm2: tuple[Tensor, Tensor]


class TorchBert:
    """Pooled states of packed batches. Weights are read-only after construction, so threads may share it."""

    def __init__(
        self, config: BertConfig, weights: Weights, pooling: Pooling, *, dtype: torch.dtype | None = None
    ) -> None:
        self._config = config
        self._pooling = pooling
        self.dtype = dtype or precision()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

        def get(name: str) -> Tensor:
            # A copy: torch tensors must not alias a read-only mapping.
            return torch.from_numpy(np.array(weights[name], np.float32)).to(self.dtype)

        def norm(prefix: str) -> tuple[Tensor, Tensor]:
            return get(prefix + "weight"), get(prefix + "bias")

        # The table stays mapped: a batch gathers its few thousand rows, and 47 to 384 MB are not copied.
        self._weights = weights
        self._embedding_norm = norm("embeddings.LayerNorm.")
        self._positions = get("embeddings.position_embeddings.weight")
        self._positions += get("embeddings.token_type_embeddings.weight")[0]
        self._layers = []
        for index in range(config.num_hidden_layers):
            at = f"encoder.layer.{index}."
            parts = [f"{at}attention.self.{name}." for name in ("query", "key", "value")]
            self._layers.append(
                _Layer(
                    qkv=torch.cat([get(part + "weight") for part in parts]),
                    qkv_bias=torch.cat([get(part + "bias") for part in parts]),
                    out=get(at + "attention.output.dense.weight"),
                    out_bias=get(at + "attention.output.dense.bias"),
                    norm1=norm(at + "attention.output.LayerNorm."),
                    up=get(at + "intermediate.dense.weight"),
                    up_bias=get(at + "intermediate.dense.bias"),
                    down=get(at + "output.dense.weight"),
                    down_bias=get(at + "output.dense.bias"),
                    norm2=norm(at + "output.LayerNorm."),
                )
            )

    def each(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
        """``pooled`` of every batch, in order, as many at once as torch has threads."""
        batches = list(batches)
        if len(batches) < 2 or torch.get_num_threads() < 2:
            return map(self.pooled, batches)
        with self._lock:
            if self._pool is None:
                self._pool = _workers(torch.get_num_threads())
        return self._pool.map(self.pooled, batches)

    @torch.inference_mode()
    def pooled(self, batch: Batch) -> NDArray[np.float32]:
        """[N, hidden] in the order of the batch, not normalised."""
        words = torch.from_numpy(self._weights.rows("embeddings.word_embeddings.weight", batch.ids)).to(self.dtype)
        states = self._norm(words.add_(self._positions[torch.from_numpy(batch.positions)]), self._embedding_norm)
        for layer in self._layers:
            context = self._attend(F.linear(states, layer.qkv, layer.qkv_bias), batch)
            states = self._norm(F.linear(context, layer.out, layer.out_bias).add_(states), layer.norm1)
            inner = F.linear(states, layer.up, layer.up_bias)
            torch.ops.aten.gelu_(inner)
            states = self._norm(F.linear(inner, layer.down, layer.down_bias).add_(states), layer.norm2)
        return _pool(states.float(), batch, self._pooling).numpy()

    def _norm(self, states: Tensor, scale_shift: tuple[Tensor, Tensor]) -> Tensor:
        # Statistics are float32 inside the kernel, also for bfloat16 states.
        return F.layer_norm(states, (self._config.hidden_size,), *scale_shift, eps=self._config.layer_norm_eps)

    def _attend(self, qkv: Tensor, batch: Batch) -> Tensor:
        """[T, 3 * hidden] -> [T, hidden]; views all the way, since the kernel takes strides."""
        heads, width = self._config.num_attention_heads, self._config.head_dim
        context = qkv.new_empty(len(qkv), heads * width)
        for first, count, length in batch.runs:
            here = slice(first, first + count * length)
            query, key, value = qkv[here].view(count, length, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
            seen = F.scaled_dot_product_attention(query, key, value)  # [count, heads, length, width]
            context[here].view(count, length, heads, width).copy_(seen.transpose(1, 2))
        return context


def _workers(count: int) -> ThreadPoolExecutor:
    """Threads in which an operation of torch runs on one core; other threads of the process keep their setting."""
    started = threading.Barrier(count)

    def alone() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="deepwell-encode")
    for done in [pool.submit(alone) for _ in range(count)]:
        done.result()
    torch.set_num_threads(count)  # also what a thread takes that is new to torch
    return pool


def _pool(states: Tensor, batch: Batch, pooling: Pooling) -> Tensor:
    lengths = torch.from_numpy(np.diff(batch.starts, append=len(states)))
    starts = torch.from_numpy(batch.starts)
    if pooling == "cls":
        return states[starts]
    if pooling == "last":
        return states[starts + lengths - 1]
    return torch.segment_reduce(states, "max" if pooling == "max" else "mean", lengths=lengths)
