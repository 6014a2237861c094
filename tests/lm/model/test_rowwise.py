"""Norm and gate beside torch's, forward and backward."""

import torch
from torch.nn import functional as F

from deepwell.lm.model.rowwise import RMSNorm, swiglu

from .differentiating import random


def test_swiglu() -> None:
    gate, up = random(3, 4), random(3, 4)
    assert torch.allclose(swiglu(gate, up), F.silu(gate) * up)
    assert torch.autograd.gradcheck(swiglu, (gate, up))


def test_rms_norm() -> None:
    norm = RMSNorm(6, 1e-3, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    x = random(2, 3, 6)
    assert torch.allclose(norm(x), F.rms_norm(x, (6,), norm.weight, 1e-3))
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(norm, {"weight": w}, x), (x, norm.weight))


def test_rms_norm_of_bf16_has_its_mean_in_float32() -> None:
    norm = RMSNorm(4096, 1e-6, dtype=torch.bfloat16)
    x = torch.full((1, 4096), 300.0, dtype=torch.bfloat16)
    assert norm(x).dtype is torch.bfloat16
    assert (norm(x) == 1).all()
