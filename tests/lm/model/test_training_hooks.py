"""What training asks of the network: parts of a batch, recomputation, float32 masters under bf16, other products."""

import pytest
import torch
from torch import Tensor

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.loss import IGNORED, Whole
from deepwell.lm.model.products import Linear, linear
from deepwell.lm.model.routes import Routes
from deepwell.lm.model.transformer import Transformer

CONFIG = ModelConfig.named("debug-moe").replace(num_hidden_layers=3, vocab_size=128, aux_loss_alpha=0.01)


def network(dtype: torch.dtype = torch.float64) -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG, dtype=dtype).train()


def batch(rows: int = 4, length: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels of which some rows predict far fewer than others, and documents."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(CONFIG.vocab_size, (rows, length), generator=draw)
    labels = tokens.clone()
    labels[0, :20] = IGNORED
    labels[1, 5:] = IGNORED
    documents = torch.zeros_like(tokens)
    documents[2, 9:] = 1
    return tokens, labels, documents


def gradients(model: Transformer) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("size", [1, 3])
def test_the_parts_of_a_batch_sum_to_it(size: int) -> None:
    tokens, labels, documents = batch()
    model = network()
    expected = model.loss(tokens, labels, documents=documents)
    expected.total.backward()
    wanted, loads = gradients(model), model.expert_loads().clone()
    model.zero_grad()
    model.reset_expert_loads()
    depth = len(model.mtp)
    parts = [slice(begin, begin + size) for begin in range(0, len(tokens), size)]
    counted = [Whole.of(labels[part], documents[part], depth=depth) for part in parts]
    whole = counted[0]
    for more in counted[1:]:
        whole = whole + more
    assert whole == Whole.of(labels, documents, depth=depth)
    total = 0.0
    for part in parts:
        losses = model.loss(tokens[part], labels[part], documents=documents[part], whole=whole)
        losses.total.backward()
        total += losses.total.item()
    assert total == pytest.approx(expected.total.item(), rel=1e-10)
    assert torch.equal(model.expert_loads(), loads)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-8, atol=1e-12, msg=name)


def test_a_part_without_predictions_adds_nothing() -> None:
    tokens, labels, _ = batch()
    model = network()
    whole = Whole.of(labels, depth=1)
    losses = model.loss(tokens[:1], torch.full_like(tokens[:1], IGNORED), whole=whole)
    losses.total.backward()
    assert losses.main.item() == 0 and all(loss.item() == 0 for loss in losses.mtp)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(model).values())


@pytest.mark.parametrize("what", ["attention", "blocks"])
def test_recomputing_changes_neither_gradients_nor_loads(what: str) -> None:
    tokens, labels, documents = batch()
    model = network()
    model.loss(tokens, labels, documents=documents).total.backward()
    wanted, loads = gradients(model), model.expert_loads().clone()
    model.zero_grad()
    model.reset_expert_loads()
    model.recompute = what  # type: ignore[assignment]
    model.loss(tokens, labels, documents=documents).total.backward()
    assert torch.equal(model.expert_loads(), loads)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-10, atol=1e-14, msg=name)


@pytest.mark.parametrize("what", ["attention", "blocks"])
def test_recomputing_keeps_less(what: str) -> None:
    def kept(model: Transformer) -> int:
        held: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.loss(batch(length=48)[0]).total
        loss.backward()
        return sum(held.values())

    model = network(torch.float32)
    whole = kept(model)
    model.recompute = what  # type: ignore[assignment]
    assert kept(model) < (0.95 if what == "attention" else 0.6) * whole


def test_float32_masters_meet_bf16_activations() -> None:
    tokens, labels, documents = batch()
    model = network(torch.float32)
    routes = Routes()
    exact = model.loss(tokens, labels, documents=documents, routes=routes)
    exact.total.backward()
    wanted = gradients(model)
    model.zero_grad()
    model.compute_dtype = torch.bfloat16
    assert model.hidden(tokens).dtype is torch.bfloat16
    rounded = model.loss(tokens, labels, documents=documents, routes=routes.replay())
    rounded.total.backward()
    assert rounded.main.dtype is torch.float32
    assert rounded.main.item() == pytest.approx(exact.main.item(), rel=1e-3)
    for name, gradient in gradients(model).items():
        assert gradient.dtype is torch.float32, name
    for name in ("layers.0.mlp.down_proj.weight", "layers.2.mlp.experts.gate_up_proj", "lm_head.weight", "norm.weight"):
        a, b = gradients(model)[name].flatten(), wanted[name].flatten()
        assert float(torch.nn.functional.cosine_similarity(a, b, 0)) > 0.99, name


def test_another_product_takes_the_place_of_the_plain_one() -> None:
    seen = []

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(tuple(weight.shape))
        return linear(x, weight, bias)

    layer = Linear(8, 4)
    layer.product = product  # type: ignore[method-assign]
    x = torch.randn(2, 8)
    assert torch.equal(layer(x), linear(x, layer.weight, layer.bias))
    assert seen == [(4, 8)]
