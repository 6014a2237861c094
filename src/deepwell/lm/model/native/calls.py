"""The compiled kernels as functions of tensors, and for which tensors they are made: bf16 on a processor.

Nothing behind these functions asks how large a tensor is. What does not fit together is left to PyTorch, whose error
says why, or is an error here; and never a read beyond a tensor's end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepwell.lm.model.native.library import Attention, Entropy, Gated, Grouped, Norm, Outer, Rows, library


def available(*tensors: Tensor) -> bool:
    """Whether there are kernels, and all of these tensors are bf16 on the processor."""
    return all(t.dtype is torch.bfloat16 and t.device.type == "cpu" for t in tensors) and library() is not None


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _run(name: str, arguments: Attention | Entropy | Gated | Grouped | Norm | Outer) -> None:
    found = library()
    assert found is not None
    found.run(name, arguments)


# ---- attention ----


def suits_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> bool:
    """Whether the kernel is made for these shapes: widths of whole sixteens, and more than a few queries."""
    fit = query.dim() == 4 and key.shape[:3] == value.shape[:3] and query.shape[3] == key.shape[3]
    if not fit or query.shape[0] != key.shape[0] or not key.shape[1] or query.shape[1] % key.shape[1]:
        return False
    widths = query.shape[-1] % 16 == 0 and value.shape[-1] % 16 == 0
    whole = query.shape[2] >= 8 and (not causal or query.shape[2] == key.shape[2])
    return widths and whole


def _readable(tensor: Tensor) -> Tensor:
    """As it is, or copied, so that the values of a row lie side by side and rows begin at whole pairs."""
    fits = tensor.stride(-1) == 1 and tensor.stride(-2) % 2 == 0
    return tensor if fits else tensor.contiguous()


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Attention:
    of = Attention(
        batch=query.shape[0], heads=query.shape[1], groups=key.shape[1], queries=query.shape[2], keys=key.shape[2],
        key_width=query.shape[3], value_width=value.shape[3], scale=scale, causal=causal,
        query=Rows.of(query), key=Rows.of(key), value=Rows.of(value),
    )  # fmt: skip
    if mask is not None:
        seen = mask.expand(*query.shape[:3], key.shape[2])
        of.mask = seen.data_ptr()
        of.mask_batch, of.mask_head, of.mask_row, of.mask_key = seen.stride()
    return of


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [B, H, T, V], its memory as [B, T, H, V], and each query's log of the sum of exponentials [B, H, T]."""
    query, key, value = map(_readable, (query, key, value))
    batch, heads, count, _ = query.shape
    out = query.new_empty(batch, count, heads, value.shape[3]).transpose(1, 2)
    normaliser = query.new_empty(batch, heads, count, dtype=torch.float32)
    of = _attention(query, key, value, mask, causal, scale)
    packed_key, packed_value = _room(key), _room(value)
    of.out, of.normaliser = Rows.of(out), normaliser.data_ptr()
    of.packed_key, of.packed_value = packed_key.data_ptr(), packed_value.data_ptr()
    _run("dw_attend", of)
    return out, normaliser


def attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    normaliser: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, in bf16; summed over the heads of a group in float32."""
    grad, query, key, value, out = map(_readable, (grad, query, key, value, out))
    (batch, heads, count, width), (groups, seen), valued = query.shape, key.shape[1:3], value.shape[3]
    grad_query, grad_key, grad_value = (
        query.new_empty(batch, heads, rows, each, dtype=torch.float32)
        for rows, each in ((count, width), (seen, width), (seen, valued))
    )
    of = _attention(query, key, value, mask, causal, scale)
    of.grad, of.out, of.normaliser = Rows.of(grad), Rows.of(out), normaliser.data_ptr()
    packed_key, packed_value, packed_rows = _room(key), _room(value), _room(key)
    of.packed_key, of.packed_value = packed_key.data_ptr(), packed_value.data_ptr()
    of.packed_key_rows = packed_rows.data_ptr()
    of.grad_query, of.grad_key, of.grad_value = grad_query.data_ptr(), grad_key.data_ptr(), grad_value.data_ptr()
    _run("dw_attend_backward", of)
    if groups < heads:
        grad_key, grad_value = (g.unflatten(1, (groups, -1)).sum(2) for g in (grad_key, grad_value))
    found = []
    for wide_grad in (grad_query, grad_key, grad_value):  # in the memory order of the projections that they go to
        b, h, t, d = wide_grad.shape
        found.append(query.new_empty(b, t, h, d).transpose(1, 2).copy_(wide_grad))
    return found[0], found[1], found[2]


def _room(rows: Tensor) -> Tensor:
    """Memory for the packed form of keys or values [B, G, S, D]."""
    found = library()
    assert found is not None
    return rows.new_empty(rows.shape[0] * rows.shape[1] * found.padded_keys(rows.shape[2]) * rows.shape[3])


# ---- norms ----


def norm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x / rms(x) * weight`` [..., width], and 1 / rms [..., 1] float32. ``x`` may have any strides."""
    x, weight = x.contiguous(), weight.float().contiguous()
    out, inverse = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    of = Norm(rows=inverse.numel(), width=x.shape[-1], eps=eps)
    of.x, of.weight, of.out, of.inverse = x.data_ptr(), weight.data_ptr(), out.data_ptr(), inverse.data_ptr()
    _run("dw_norm_forward", of)
    return out, inverse


def norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, wants_x: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``x``, bf16, and of the weight, float32."""
    grad, x, weight = grad.contiguous(), x.contiguous(), weight.float().contiguous()
    found = library()
    assert found is not None
    rows, width = inverse.numel(), x.shape[-1]
    out = torch.empty_like(x) if wants_x else None
    partial = inverse.new_empty(-(-rows // found.norm_chunk), width) if wants_weight else None
    of = Norm(rows=rows, width=width)
    of.x, of.grad, of.weight, of.inverse = x.data_ptr(), grad.data_ptr(), weight.data_ptr(), inverse.data_ptr()
    of.out, of.partial = _address(out), _address(partial)
    _run("dw_norm_backward", of)
    return out, None if partial is None else partial.sum(0)


# ---- gates ----


def _gated(gate: Tensor, up: Tensor) -> tuple[Gated, Tensor, Tensor]:
    gate, up = (torch.atleast_2d(t if t.stride(-1) == 1 else t.contiguous()).flatten(0, -2) for t in (gate, up))
    rows, width = gate.shape
    of = Gated(rows=rows, width=width, gate_row=gate.stride(0), up_row=up.stride(0))
    of.gate, of.up = gate.data_ptr(), up.data_ptr()
    return of, gate, up


def swiglu_forward(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, rounded once; both [..., width]."""
    out = gate.new_empty(gate.shape)
    of, *_kept = _gated(gate, up)
    of.out = out.data_ptr()
    _run("dw_gated_forward", of)
    return out


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    grad = grad.contiguous()
    grad_gate, grad_up = gate.new_empty(gate.shape), up.new_empty(up.shape)
    of, *_kept = _gated(gate, up)
    of.grad, of.grad_gate, of.grad_up = grad.data_ptr(), grad_gate.data_ptr(), grad_up.data_ptr()
    _run("dw_gated_backward", of)
    return grad_gate, grad_up


# ---- loss and gradients of weights ----


def entropy_rows(logits: Tensor, labels: Tensor, scale: float, wants_gradient: bool) -> Tensor:
    """Cross-entropy of each row, [N] float32; ``logits`` [N, V] become their gradient times ``scale`` if wanted.

    Raises:
        IndexError: A label is none of 0 to V - 1.
        ValueError: There are more or fewer labels than rows.
    """
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"{tuple(labels.shape)} labels for {logits.shape[0]} rows")
    labels = labels.to(torch.int64).contiguous()
    if labels.numel():
        lowest, highest = (int(label) for label in labels.aminmax())
        if lowest < 0 or highest >= logits.shape[1]:
            raise IndexError(f"labels are {lowest} to {highest}, of a vocabulary of {logits.shape[1]}")
    losses = logits.new_empty(logits.shape[0], dtype=torch.float32)
    of = Entropy(rows=logits.shape[0], width=logits.shape[1], scale=scale, wants_gradient=wants_gradient)
    of.logits, of.labels, of.losses = logits.data_ptr(), labels.data_ptr(), losses.data_ptr()
    _run("dw_entropy_rows", of)
    return losses


def outer(left: Tensor, right: Tensor, total: Tensor, *, add: bool = False) -> None:
    """``total (+)= left^T right``: float32 [M, N], bf16 [K, M] and [K, N] with N in whole sixteens; sums in float32."""
    left, right = (t if t.stride(-1) == 1 else t.contiguous() for t in (left, right))
    packed = right.new_empty((right.shape[0] + 1) * right.shape[1])
    of = Outer(rows=total.shape[0], columns=total.shape[1], inner=left.shape[0], add=add)
    of.a_row, of.b_row = left.stride(0), right.stride(0)
    of.a, of.b, of.c, of.packed = left.data_ptr(), right.data_ptr(), total.data_ptr(), packed.data_ptr()
    _run("dw_outer_product", of)


def suits_grouped(weight: Tensor, width: int, *, turned: bool) -> bool:
    """Whether the kernel is made for rows of this width and these matrices: float32, their sides whole thirty-twos."""
    fits = weight.shape[1] % 32 == 0 and weight.shape[2] % 32 == 0 and width == weight.shape[2 if turned else 1]
    return fits and weight.dtype is torch.float32 and weight.is_contiguous()


def grouped(x: Tensor, weight: Tensor, offsets: Tensor, room: Tensor, *, turned: bool) -> Tensor:
    """Rows by the matrices of their groups, ``weight`` [E, out, in]: x [N, in] W^T if turned, else x [N, out] W.

    ``room`` takes the matrices in bf16. PyTorch's product is made anew for every number of rows that an expert gets:
    its kernels are kept, hundreds of megabytes of them; these serve any number.

    Raises:
        ValueError: The groups do not end in order, the last of them with the last row.
    """
    found = library()
    assert found is not None
    x = _readable(x)
    columns, inner = weight.shape[1:] if turned else (weight.shape[2], weight.shape[1])
    ends = offsets.tolist()
    if len(ends) != len(weight) or ends != sorted(ends) or ends[0] < 0 or ends[-1] != len(x):
        raise ValueError(f"{len(weight)} groups of {len(x)} rows cannot end at {ends}")
    blocks = [
        place
        for group, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
        for first in range(start, end, found.block)
        for place in (group, first)
    ]
    places = torch.tensor(blocks, dtype=torch.int64, device="cpu")
    offsets = offsets.to(torch.int32).contiguous()
    out = x.new_empty(x.shape[0], columns)
    of = Grouped(groups=weight.shape[0], inner=inner, columns=columns, x_row=x.stride(0), turned=turned)
    of.count, of.ends, of.x, of.matrices = len(blocks) // 2, offsets.data_ptr(), x.data_ptr(), weight.data_ptr()
    of.packed, of.out, of.blocks = room.data_ptr(), out.data_ptr(), places.data_ptr()
    _run("dw_grouped_product", of)
    return out
