"""Mixtures of experts as one operation, beside the module of the network."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deepwell.lm.engine.native.library import Batch, Library
from deepwell.lm.engine.native.panels import Format
from deepwell.lm.engine.native.program import Program, Rows
from deepwell.lm.model.config import DynamicGating
from deepwell.lm.model.moe import MixtureOfExperts

from .shapes import close, shape

MOST = 70

MIXTURES: dict[str, dict[str, Any]] = {
    "sigmoid, two best of groups, bias": {"n_group": 3, "topk_group": 2},
    "softmax, the best of groups": {
        "n_group": 3, "topk_group": 2, "topk_method": "group_limited_greedy", "scoring_func": "softmax",
        "norm_topk_prob": False, "routed_scaling_factor": 16.0,
    },
    "softmax, greedy": {"topk_method": "greedy", "scoring_func": "softmax", "n_group": 3, "topk_group": 3},
    "sigmoid, greedy, not normalised": {"topk_method": "greedy", "norm_topk_prob": False},
    "dynamic": {"dynamic_gating": DynamicGating(share=0.5, minimum=1, maximum=5), "n_group": 3, "topk_group": 2},
    "dynamic, at least two, softmax": {
        "dynamic_gating": DynamicGating(share=0.9, minimum=2, maximum=12), "topk_method": "greedy",
        "scoring_func": "softmax",
    },
    "not weighed": {"weigh_experts": False, "routed_scaling_factor": 1.0},
    "all of them": {"num_experts_per_tok": 12},
    "one": {"num_experts_per_tok": 1, "topk_method": "greedy"},
}  # fmt: skip


def mixture_of(changes: dict[str, Any], dtype: torch.dtype = torch.float32) -> MixtureOfExperts:
    fields = {
        "n_routed_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 21, "routed_scaling_factor": 2.5,
        "hidden_size": 40,
    }  # fmt: skip
    mixture = MixtureOfExperts(shape("latent", **(fields | changes)), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
        if hasattr(mixture.gate, "e_score_correction_bias"):
            mixture.gate.e_score_correction_bias.copy_(torch.randn(12) * 0.2)
    return mixture


class Mixed:
    """A layer's experts as an operation."""

    def __init__(self, mixture: MixtureOfExperts, format: Format) -> None:
        hidden = mixture.gate.config.hidden_size
        self.rows = Rows(MOST)
        self.x, self.y = self.rows("x", hidden), self.rows("y", hidden)
        self.program = Program(self.rows)
        self.program.experts(self.x, mixture, format, self.y)

    def __call__(self, library: Library, x: Tensor, threads: int = 1, before: float = 0.0) -> Tensor:
        self.y.fill_(before)
        self.x[: len(x)] = x
        self.program.run(library, Batch(rows=len(x), threads=threads))
        assert bool((self.y[len(x) :] == before).all())
        return self.y[: len(x)].clone()


@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_experts(name: str, library: Library) -> None:
    torch.manual_seed(1)
    mixture = mixture_of(MIXTURES[name])
    mixed = Mixed(mixture, "f32")
    mixture.double()
    for count, threads in ((1, 1), (3, 3), (13, 2), (MOST, 3)):
        x = torch.randn(count, 40)
        wanted, routing = mixture(x[None].double())
        if "dynamic" in name and count > 10:
            assert (routing.experts >= 0).sum(1).unique().numel() > 1
        close(mixed(library, x, threads, before=2.0), wanted[0] + 2.0)


@pytest.mark.parametrize("format", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["sigmoid, two best of groups, bias", "dynamic"])
@torch.no_grad()
def test_experts_say_the_same_bits_in_any_company(name: str, format: Format, library: Library) -> None:
    mixture = mixture_of(MIXTURES[name])
    mixed = Mixed(mixture, format)
    x = torch.randn(MOST, 40)
    alone = torch.cat([mixed(library, row[None]) for row in x])
    tolerance = {"f32": 1e-5, "bf16": 0.02, "int8": 0.02, "int4": 0.2}[format]
    wanted = mixture(x[None])[0][0]
    assert (alone - wanted).norm() < tolerance * wanted.norm()
    for count in (2, 5, MOST):
        for threads in (1, 2, 3):
            assert torch.equal(mixed(library, x[:count], threads), alone[:count])


@torch.no_grad()
def test_a_broken_row_finds_no_expert_and_harms_no_other(library: Library) -> None:
    mixed = Mixed(mixture_of(MIXTURES["dynamic"]), "int4")
    x = torch.randn(9, 40)
    whole = mixed(library, x, 2)
    x[4] = torch.nan
    found = mixed(library, x, 2)
    assert not found[4].isfinite().any()
    others = torch.arange(9) != 4
    assert torch.equal(found[others], whole[others])
