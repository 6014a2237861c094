import pytest
import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.routes import Routes
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.conversions import split as module
from deepwell.lm.weights.conversions.exact import to_mla
from deepwell.lm.weights.conversions.measure import compare
from deepwell.lm.weights.conversions.split import split


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 50)


@pytest.mark.parametrize("shared", [0, 2])
def test_all_experts_together_are_the_dense_layer(network: Transformer, text: Tensor, shared: int) -> None:
    whole = split(network, experts=6, top_k=6, shared=shared, calibration=text)
    assert whole.config.n_routed_experts == 6 - shared and whole.config.moe_intermediate_size == 8
    tokens = text[:60].view(2, 30)
    torch.testing.assert_close(whole(tokens), network(tokens), rtol=0, atol=1e-5)
    before = sum(tensor.numel() for name, tensor in network.state_dict().items() if ".mlp." in name)
    after = sum(t.numel() for n, t in whole.state_dict().items() if ".experts." in n or "shared_experts" in n)
    assert before == after  # every neuron once


def test_the_more_experts_run_the_less_is_lost(network: Transformer, text: Tensor) -> None:
    losses = [
        compare(network, split(network, experts=6, top_k=top_k, shared=1, calibration=text), text, window=50).kl
        for top_k in (6, 5, 4, 2)
    ]
    assert losses == sorted(losses)
    assert losses[0] < 1e-6 < losses[1]


def test_fitting_down_again_makes_up_for_much(network: Transformer, text: Tensor) -> None:
    arguments = {"experts": 6, "top_k": 3, "shared": 1, "calibration": text}
    fitted, plain = split(network, **arguments), split(network, **arguments, refit=False)  # type: ignore[arg-type]
    assert compare(network, fitted, text, window=50).kl < 0.8 * compare(network, plain, text, window=50).kl
    gate = plain.layers[0].mlp.experts.gate_up_proj
    torch.testing.assert_close(gate, fitted.layers[0].mlp.experts.gate_up_proj)  # the neurons are the same


def test_the_gate_chooses_better_than_chance(network: Transformer, text: Tensor) -> None:
    model = split(network, experts=6, top_k=2, calibration=text, refit=False)
    tokens = text[None, :50]
    chosen = compare(network, model, text[:50], window=50).kl
    generator = torch.Generator().manual_seed(0)
    for layer in model.layers:
        layer.mlp.gate.weight.data = torch.randn(layer.mlp.gate.weight.shape, generator=generator)
    assert chosen < compare(network, model, text[:50], window=50).kl
    routes = Routes()
    model(tokens, routes=routes)


def test_the_split_of_a_network_with_latents(network: Transformer, text: Tensor) -> None:
    model = to_mla(network)
    whole = split(model, experts=4, top_k=4, calibration=text)
    torch.testing.assert_close(whole(text[None, :30]), network(text[None, :30]), rtol=0, atol=1e-5)


def test_what_the_fit_meets_is_what_the_network_computes(network: Transformer, text: Tensor) -> None:
    """With every token of the text in the fit, the last layer's error is that of the fit: below no fit at all."""
    model = split(network, experts=6, top_k=3, calibration=text[:50])
    tokens = text[None, :50]
    error = (model.hidden(tokens) - network.hidden(tokens)).norm() / network.hidden(tokens).norm()
    assert error < 0.3


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"experts": 5, "top_k": 2}, "divides the 48"),
        ({"experts": 1, "top_k": 1}, "at least 2"),
        ({"experts": 6, "top_k": 7}, "no more than there are"),
        ({"experts": 6, "top_k": 2, "shared": 2}, "at least one"),
    ],
)
def test_numbers_out_of_range_are_told(network: Transformer, text: Tensor, numbers: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        split(network, **numbers, calibration=text)  # type: ignore[arg-type]


def test_what_cannot_be_split_is_refused(network: Transformer, grouped: ModelConfig, text: Tensor) -> None:
    once = split(network, experts=4, top_k=4, calibration=text)
    with pytest.raises(UsageError, match="experts already"):
        split(once, experts=4, top_k=4, calibration=text)
    with pytest.raises(UsageError, match="biases"):
        split(Transformer(grouped.replace(mlp_bias=True)), experts=4, top_k=4, calibration=text)
    with pytest.raises(UsageError, match="multi-token"):
        split(Transformer(grouped.replace(num_nextn_predict_layers=1)), experts=4, top_k=4, calibration=text)
    with pytest.raises(UsageError, match="10 tokens; one window takes 50"):
        split(network, experts=4, top_k=4, calibration=text[:10])
