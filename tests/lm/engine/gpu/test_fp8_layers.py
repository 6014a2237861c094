"""Networks in FP8, computed on a CPU with the numerics of the GPU."""

import copy
from functools import partial

import pytest
import torch

from deepwell.lm.engine.engine import Engine
from deepwell.lm.engine.gpu import fp8_layers
from deepwell.lm.engine.gpu.fp8_layers import Fp8Experts, Fp8Linear, to_fp8
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.precision.fp8 import dequantize_blocks, quantize_blocks
from deepwell.lm.precision.fp8_products import fp8_grouped, fp8_linear

from ..networks import SHAPES, greedy, prompts


def made(shape: str) -> Transformer:
    torch.manual_seed(0)
    return Transformer(SHAPES[shape], dtype=torch.float32).eval()


def rounded(network: Transformer) -> Transformer:
    """The same network with each weight that becomes FP8 replaced by what it then stands for."""
    for name, weight in network.named_parameters():
        if "proj" in name and name.endswith(("weight", "_proj")) and "kv_b_proj" not in name:
            for one in weight.data if weight.dim() == 3 else [weight.data]:
                one.copy_(dequantize_blocks(*quantize_blocks(one), dtype=torch.float32))
    return network


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_the_network_computes_with_its_rounded_weights(shape: str) -> None:
    network = made(shape)
    tokens = torch.tensor(prompts(1, 40, seed=3))
    wanted = rounded(copy.deepcopy(network))(tokens)
    found = to_fp8(network, "cpu")(tokens)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_deepseek_keeps_wide_stays_wide() -> None:
    network = to_fp8(made("experts"), "cpu")
    kinds = {name: type(module) for name, module in network.named_modules()}
    assert kinds["layers.1.mlp.experts"] is Fp8Experts
    assert kinds["layers.1.self_attn.o_proj"] is Fp8Linear
    assert kinds["mtp.0.eh_proj"] is Fp8Linear
    assert network.layers[1].mlp.gate.weight.dtype is torch.float32
    assert network.layers[1].self_attn.kv_b_proj.weight.dtype is torch.float32
    assert network.head_weight.dtype is torch.float32
    assert network.dtype is torch.float32
    assert network.layers[1].mlp.experts.down_proj.dtype is torch.float8_e4m3fn


@pytest.mark.parametrize("shape", ["grouped", "experts"])
def test_the_engine_runs_it(shape: str) -> None:
    wanted = rounded(made(shape))
    network = to_fp8(made(shape), "cpu")
    answers = []
    for model in (wanted, network):
        engine = Engine(model, cache_bytes=2**20)
        sequences = [engine.add(prompt, greedy(prompt), most=6) for prompt in prompts(3, 20, seed=5)]
        while engine.busy:
            engine.step()
        answers.append([sequence.answer for sequence in sequences])
    assert answers[0] == answers[1]


@torch.no_grad()
def test_layers_and_experts_compute_the_same_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    network = to_fp8(made("experts"), "cpu")
    tokens = torch.tensor([[5, 3, 9, 60]])
    wanted = network(tokens)
    monkeypatch.setattr(fp8_layers, "fp8_linear", partial(fp8_linear, kernel=True))
    monkeypatch.setattr(fp8_layers, "fp8_grouped", partial(fp8_grouped, kernel=True))
    torch.testing.assert_close(network(tokens), wanted, rtol=1e-4, atol=1e-4)
