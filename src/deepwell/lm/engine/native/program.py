"""A network written down as a program: the operations of all layers, their weights, and the rows they work on.

The program is written once; ``run`` carries it out for the rows of a step. Weights are copied into panels (and, in the
integer formats, rounded); the network itself is not looked at again.

Attention is always the absorbed form: queries meet the rows of the cache as they stand. For MLA that takes more
multiplications in a long prompt than expanding keys and values would, and it makes the result of a token independent of
how its prompt was cut.

Shapes: h hidden, W width of a cached row, R rank of the latent, H heads, G rotary keys, N and D the parts of a head
without and with rope, V width of a value.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from deepwell.lm.engine.native import library as native
from deepwell.lm.engine.native.panels import Format, Panels, panels, pointer
from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.engine.pages import Pages
from deepwell.lm.model.attention import LATENT_NORM_EPS, MultiHeadLatentAttention
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.moe import MLP, MixtureOfExperts
from deepwell.lm.model.rowwise import RMSNorm
from deepwell.lm.model.transformer import Block, MTPModule, Transformer

Precision = Literal["f32", "bf16", "int8", "int4"]


def supports(config: ModelConfig) -> bool:
    """Whether a program can be written for this network; else PyTorch computes it."""
    plain_mla = config.rope_key_heads == 1 and config.qk_nope_head_dim > 0
    return config.is_grouped or plain_mla


def head_format(precision: Precision) -> Format:
    """The embedding's other half decides between similar words: it is never rounded to 4 bits."""
    return "int8" if precision == "int4" else precision


class Rows:
    """Memory for the rows of a step, which all programs of a network share.

    Attributes:
        most: Rows that there is memory for.
        pages: Where it comes from, and the weights with it.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.pages = Pages()
        self._made: dict[str, Tensor] = {}

    def __call__(self, name: str, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Those of this name, always of one width: [most, width], each at a whole cache line."""
        known = self._made.get(name)
        if known is None:
            known = self._made[name] = self.pages.take(self.most, -(-width // 16) * 16, dtype=dtype)
        if known.shape[1] < width:
            raise AssertionError(f"rows {name} are {known.shape[1]} wide, and {width} are wanted")
        return known[:, :width]


class Program:
    """Operations in order, and all that they point to.

    Attributes:
        rows: The memory that they work on.
        weight_bytes: What its matrices take.
        where: What messages call the matrices that are being added.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.weight_bytes = 0
        self.where = "the matrix"
        self._ops: list[native.Op] = []
        self._kept: list[object] = []
        self._array: Any = None

    def run(self, library: native.Library, batch: native.Batch) -> None:
        """Carry it out."""
        if batch.rows > self.rows.most:
            raise AssertionError(f"a step of {batch.rows} rows, and there is memory for {self.rows.most}")
        if self._array is None:
            self._array = (native.Op * len(self._ops))(*self._ops)
        library.run(self._array, len(self._ops), batch)

    def matrices(self, weights: Sequence[Tensor], format: Format, biases: Sequence[Tensor | None] = ()) -> Panels:
        """``panels`` beside the other weights."""
        return panels(weights, format, biases, self.rows.pages, where=self.where)

    # ---- operations ----

    def norm(self, x: Tensor, weight: Tensor, epsilon: float, y: Tensor) -> None:
        """``y`` = RMSNorm of ``x``."""
        kept = weight.detach().float().contiguous().clone()
        self._kept.append(kept)
        self._add(native.NORM, x, y, width=x.shape[1], matrix=kept.data_ptr(), number=epsilon)

    def linear(self, x: Tensor, matrix: Panels, y: Tensor, *, add: bool = False) -> None:
        """``y`` (+)= ``x`` W^T + b."""
        self.heads(x, 0, matrix, y, 0, add=add)

    def heads(self, x: Tensor, x_head: int, matrix: Panels, y: Tensor, y_head: int, *, add: bool = False) -> None:
        """Several products side by side: that of matrix i reads from ``i * x_head`` on, writes from ``i * y_head``."""
        self._kept.append(matrix)
        self.weight_bytes += matrix.bytes
        self._add(
            native.LINEAR, x, y, heads=len(matrix.structures), x_head=x_head, y_head=y_head,
            matrix=pointer(matrix.structures), flags=native.ADD if add else 0,
        )  # fmt: skip

    def rope(self, x: Tensor, x_head: int, heads: int, width: int, y: Tensor, y_head: int) -> None:
        """``heads`` parts of ``width``, turned."""
        self._add(native.ROPE, x, y, heads=heads, width=width, x_head=x_head, y_head=y_head)

    def store(self, x: Tensor, cache: PagedCache, layer: int) -> None:
        """Rows [n, W] into the cache."""
        self._add(native.STORE, x, x, width=x.shape[1], **self._cache(cache, layer))

    def swiglu(self, x: Tensor, y: Tensor) -> None:
        """``x`` holds gate, then up."""
        self._add(native.SWIGLU, x, y, width=y.shape[1])

    def copy(self, x: Tensor, y: Tensor) -> None:
        """``y`` = ``x``."""
        self._add(native.COPY, x, y, width=x.shape[1])

    def attend(self, x: Tensor, y: Tensor, cache: PagedCache, layer: int, config: ModelConfig) -> None:
        """Queries ``x`` [n, H * (width of a key)] over the cache -> ``y`` [n, H * (width of a value)]."""
        grouped, heads = config.is_grouped, config.num_attention_heads
        rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
        key_width = rope if grouped else rank + rope
        value_width = config.v_head_dim if grouped else rank
        self._add(
            native.ATTEND, x, y, heads=heads, x_head=key_width, y_head=value_width,
            key=rank if grouped else 0, key_group=rope if grouped else 0, value=0,
            value_group=value_width if grouped else 0, groups=config.rope_key_heads if grouped else 1,
            key_width=key_width, value_width=value_width, window=config.sliding_window or 0,
            number=config.softmax_scale, **self._cache(cache, layer),
        )  # fmt: skip

    def experts(self, x: Tensor, mixture: MixtureOfExperts, precision: Format, y: Tensor) -> None:
        """``y`` += the chosen experts of each row of ``x``."""
        gate, config = mixture.gate, mixture.gate.config
        gating = config.dynamic_gating
        count, width = config.n_routed_experts, config.moe_intermediate_size
        chosen = config.num_experts_per_tok if gating is None else gating.maximum
        gate_up = self.matrices(list(mixture.experts.gate_up_proj), precision)
        down = self.matrices(list(mixture.experts.down_proj), precision)
        router = self.matrices([gate.weight.float()], "f32")
        bias = gate.e_score_correction_bias.detach().float().clone() if config.topk_method == "noaux_tc" else None
        rows = self.rows
        scratch = {
            "choice": rows("choice", chosen, torch.int32),
            "weights": rows("weights of experts", chosen),
            "scores": rows("scores", count),
            "middle": rows("middle of experts", chosen * 2 * width),
            "out": rows("experts", chosen * config.hidden_size),
            "pairs": rows("pairs", chosen, torch.int32),
            "starts": rows("starts", count + 1, torch.int32),
        }
        structure = native.Experts(
            experts=count, chosen=chosen, kept_groups=config.topk_group, width=width,
            groups=config.n_group if config.topk_method != "greedy" else 1,
            sigmoid=config.scoring_func == "sigmoid", best_two=config.topk_method == "noaux_tc",
            normalised=config.norm_topk_prob, weighed=config.weigh_experts,
            minimum=0 if gating is None else gating.minimum,
            share=-1.0 if gating is None else gating.share, factor=config.routed_scaling_factor,
            router=router.owned[0].data_ptr(), bias=None if bias is None else bias.data_ptr(),
            gate_up=pointer(gate_up.structures), down=pointer(down.structures),
            **{name: tensor.data_ptr() for name, tensor in scratch.items()},
        )  # fmt: skip
        self._kept += [gate_up, down, router, bias, scratch, structure]
        self.weight_bytes += gate_up.bytes + down.bytes + router.bytes
        self._add(native.EXPERTS, x, y, matrix=ctypes.addressof(structure))

    def _cache(self, cache: PagedCache, layer: int) -> dict[str, int]:
        self._kept.append(cache)
        return {
            "cache": cache.rows[layer].data_ptr(),
            "cache_format": native.F32 if cache.rows.dtype is torch.float32 else native.BF16,
            "cache_width": cache.rows.shape[-1],
        }

    def _add(self, kind: int, x: Tensor, y: Tensor, **fields: int | float) -> None:
        self._ops.append(
            native.Op(
                kind=kind, x=x.data_ptr(), x_row=x.stride(0), y=y.data_ptr(), y_row=y.stride(0),
                **{"heads": 1, **fields},
            )
        )  # fmt: skip


def write(model: Transformer, cache: PagedCache, precision: Precision, rows: Rows) -> Iterator[Program]:
    """The program from the embedded tokens in rows "x" to the normed states in rows "hidden".

    Yields the program after each layer, and once when it is complete, so that the caller may let go of the layer.
    """
    program = Program(rows)
    hidden = model.config.hidden_size
    x = rows("x", hidden)
    for block in model.layers:
        _write_layer(program, cast(Block, block), model.config, cache, precision, x)
        yield program
    program.norm(x, model.norm.weight, model.norm.eps, rows("hidden", hidden))
    yield program


def write_mtp(module: MTPModule, config: ModelConfig, cache: PagedCache, precision: Precision, rows: Rows) -> Program:
    """The program of a module of multi-token prediction (V3 section 2.2).

    From the following tokens' embeddings in rows "following" and the states in rows "hidden" to the module's own states
    in rows "drafted", normed for the head.
    """
    program = Program(rows)
    hidden = config.hidden_size
    both, x = rows("both", 2 * hidden), rows("x", hidden)
    program.norm(rows("following", hidden), module.enorm.weight, module.enorm.eps, both[:, :hidden])
    program.norm(rows("hidden", hidden), module.hnorm.weight, module.hnorm.eps, both[:, hidden:])
    program.linear(both, program.matrices([module.eh_proj.weight], precision), x)
    _write_layer(program, module.block, config, cache, precision, x)
    program.norm(x, module.norm.weight, module.norm.eps, rows("drafted", hidden))
    return program


def write_head(model: Transformer, precision: Precision, rows: Rows) -> Program:
    """The program from states in rows "chosen" to logits over the vocabulary in rows "logits"."""
    program = Program(rows)
    program.where = "the head"
    weight = (model.embed_tokens if model.config.tie_word_embeddings else model.lm_head).weight
    matrix = program.matrices([weight], head_format(precision))
    program.linear(rows("chosen", model.config.hidden_size), matrix, rows("logits", model.config.vocab_size))
    return program


def _write_layer(
    program: Program, block: Block, config: ModelConfig, cache: PagedCache, precision: Precision, x: Tensor
) -> None:
    rows = program.rows
    program.where = f"a matrix of layer {block.layer}"
    normed = rows("normed", config.hidden_size)
    _norm(program, x, block.input_layernorm, normed)
    found = _write_attention(program, block.self_attn, config, cache, block.layer, precision, normed)
    out = block.self_attn.o_proj
    program.linear(found, program.matrices([out.weight], precision, [out.bias]), x, add=True)
    _norm(program, x, block.post_attention_layernorm, normed)
    if isinstance(block.mlp, MLP):
        _write_mlp(program, block.mlp, precision, normed, x)
        return
    if block.mlp.shared_experts is not None:
        _write_mlp(program, block.mlp.shared_experts, precision, normed, x)
    program.experts(normed, block.mlp, precision, x)


def _write_mlp(program: Program, mlp: MLP, precision: Precision, x: Tensor, y: Tensor) -> None:
    both = torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()])
    bias = None
    if mlp.gate_proj.bias is not None:
        bias = torch.cat([mlp.gate_proj.bias.detach(), mlp.up_proj.bias.detach()])
    width = mlp.down_proj.in_features
    wide = program.rows(f"gate and up {width}", 2 * width)
    program.linear(x, program.matrices([both], precision, [bias]), wide)
    middle = program.rows(f"middle {width}", width)
    program.swiglu(wide, middle)
    program.linear(middle, program.matrices([mlp.down_proj.weight], precision, [mlp.down_proj.bias]), y, add=True)


def _write_attention(
    program: Program,
    attention: MultiHeadLatentAttention,
    config: ModelConfig,
    cache: PagedCache,
    layer: int,
    precision: Precision,
    x: Tensor,
) -> Tensor:
    """From the normed stream to what all heads found, [n, H * V]."""
    rows, heads = program.rows, config.num_attention_heads
    width, rank, rope = config.latent_width, config.kv_lora_rank, config.qk_rope_head_dim
    first = attention.q_proj if config.q_lora_rank is None else attention.q_a_proj
    latent = attention.kv_a_proj_with_mqa
    both = torch.cat([latent.weight.detach(), first.weight.detach()])
    bias = None if first.bias is None else torch.cat([latent.bias.detach(), first.bias.detach()])
    into = rows("into", both.shape[0])
    program.linear(x, program.matrices([both], precision, [bias]), into)
    found = rows("found", heads * config.v_head_dim)
    if config.is_grouped:
        # Rotary keys and queries stand side by side.
        program.rope(into[:, rank:], rope, config.rope_key_heads + heads, rope, into[:, rank:], rope)
        program.store(into[:, :width], cache, layer)
        program.attend(into[:, width:], found, cache, layer, config)
        return found
    if config.latent_norm:
        program.norm(into[:, :rank], attention.kv_a_layernorm.weight, LATENT_NORM_EPS, into[:, :rank])
    program.rope(into[:, rank:width], 0, 1, rope, into[:, rank:width], 0)
    program.store(into[:, :width], cache, layer)
    queries = into[:, width:]
    if config.q_lora_rank is not None:
        if config.latent_norm:
            program.norm(queries, attention.q_a_layernorm.weight, LATENT_NORM_EPS, queries)
        wide = rows("queries", heads * config.qk_head_dim)
        program.linear(queries, program.matrices([attention.q_b_proj.weight], precision), wide)
        queries = wide
    plain, absorbed = config.qk_nope_head_dim, rows("absorbed", heads * (rank + rope))
    up_key, up_value = attention.up_projections()  # [H, N, R], [H, V, R]
    small: Format = "f32" if precision == "f32" else "bf16"
    program.rope(queries[:, plain:], config.qk_head_dim, heads, rope, absorbed[:, rank:], rank + rope)
    keys = program.matrices([key.t() for key in up_key], small)
    program.heads(queries, config.qk_head_dim, keys, absorbed, rank + rope)
    summed = rows("summed", heads * rank)
    program.attend(absorbed, summed, cache, layer, config)
    program.heads(summed, rank, program.matrices(list(up_value), small), found, config.v_head_dim)
    return found


def _norm(program: Program, x: Tensor, norm: RMSNorm, y: Tensor) -> None:
    program.norm(x, norm.weight, norm.eps, y)
