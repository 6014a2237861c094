"""Attention beside softmax of all scores, in float64 and in bf16 with and without instructions for it."""

import pytest
import torch

from deepwell.lm.model.attending import attend

from .differentiating import grads, random


@pytest.mark.parametrize("value_width", [8, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_softmax_of_scores(instructions: bool, value_width: int, masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = random(2, 4, 6, 8), random(2, 2, 6, 8), random(2, 2, 6, value_width)
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    got = attend(query, key, value, scale=0.3, causal=not masked, mask=causal if masked else None)
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.3
    expected = scores.masked_fill(~causal, -torch.inf).softmax(-1) @ value.repeat_interleave(2, 1)
    assert got.shape == (2, 4, 6, value_width)
    assert torch.allclose(got, expected)
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in (query, key, value)]
    mask = causal if masked else None
    narrow = grads(lambda q, k, v: attend(q, k, v, scale=0.3, causal=not masked, mask=mask), *half)
    wide = grads(lambda q, k, v: attend(q, k, v, scale=0.3, causal=not masked, mask=mask), query, key, value)
    for ours, plain in zip(narrow, wide, strict=True):
        assert ours.dtype is torch.bfloat16
        assert torch.allclose(ours.double(), plain, rtol=5e-2, atol=5e-2)
