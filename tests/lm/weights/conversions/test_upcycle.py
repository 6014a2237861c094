import pytest
import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.routes import Routes
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.conversions.upcycle import upcycle


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_copies_compute_what_the_dense_layer_did(network: Transformer, text: Tensor, top_k: int) -> None:
    model = upcycle(network, experts=4, top_k=top_k)
    tokens = text[:60].view(2, 30)
    torch.testing.assert_close(model(tokens), network(tokens), rtol=0, atol=1e-5)
    assert (model.config.n_routed_experts, model.config.num_experts_per_tok) == (4, top_k)


def test_tokens_go_different_ways_and_experts_learn_apart(network: Transformer, text: Tensor) -> None:
    model = upcycle(network, experts=4, top_k=1)
    routes = Routes()
    model(text[None, :60], routes=routes)
    model.train()
    model.loss(text[None, :60]).total.backward()
    gradients = model.layers[0].mlp.experts.down_proj.grad
    assert (gradients.flatten(1).norm(dim=1) > 0).sum() >= 2
    assert not torch.allclose(gradients[0], gradients[1])


def test_noise_makes_experts_differ_a_little(network: Transformer, text: Tensor) -> None:
    model = upcycle(network, experts=4, top_k=2, noise=0.01)
    stack = model.layers[0].mlp.experts.down_proj
    apart = (stack[0] - stack[1]).std() / stack[0].std()
    assert 0.01 < apart < 0.02
    tokens = text[None, :30]
    assert 1e-5 < (model(tokens) - network(tokens)).abs().max() < 1
    again = upcycle(network, experts=4, top_k=2, noise=0.01)
    assert torch.equal(stack, again.layers[0].mlp.experts.down_proj)


def test_modules_of_multi_token_prediction_get_experts_too(grouped: ModelConfig) -> None:
    dense = Transformer(grouped.replace(num_nextn_predict_layers=1)).eval()
    model = upcycle(dense, experts=3, top_k=2)
    tokens = torch.arange(16)[None]
    hidden = dense.hidden(tokens)
    torch.testing.assert_close(model.draft(hidden, tokens)[0], dense.draft(hidden, tokens)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"experts": 1, "top_k": 1}, "at least 2"),
        ({"experts": 4, "top_k": 5}, "at most as many"),
        ({"experts": 4, "top_k": 2, "noise": -1.0}, "noise is -1.0"),
    ],
)
def test_numbers_out_of_range_are_told(network: Transformer, numbers: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        upcycle(network, **numbers)  # type: ignore[arg-type]


def test_experts_and_biases_are_refused(network: Transformer, grouped: ModelConfig) -> None:
    with pytest.raises(UsageError, match="experts already"):
        upcycle(upcycle(network, experts=2, top_k=1), experts=2, top_k=1)
    with pytest.raises(UsageError, match="biases"):
        upcycle(Transformer(grouped.replace(mlp_bias=True)), experts=2, top_k=1)
