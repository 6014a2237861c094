"""The loss against plain cross-entropy; multi-token prediction against its definition, position by position."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deepwell.errors import UsageError
from deepwell.lm.model.cache import LatentCache
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.loss import IGNORED, Losses
from deepwell.lm.model.transformer import Transformer


def network(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig.named("debug-moe").replace(
        num_hidden_layers=2, initializer_range=0.1, num_nextn_predict_layers=2, aux_loss_alpha=0.0, **changes
    )
    return Transformer(config, dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("tied", [False, True])
def test_main_loss_is_cross_entropy_of_the_next_token(tied: bool) -> None:
    model = network(tie_word_embeddings=tied)
    ids = tokens(2, 9)
    losses = model.loss(ids)
    plain = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert isinstance(losses, Losses)
    assert losses.main.item() == pytest.approx(plain.item())
    assert losses.tokens == 16
    got = torch.autograd.grad(losses.main, model.embed_tokens.weight)[0]
    assert torch.allclose(got, torch.autograd.grad(plain, model.embed_tokens.weight)[0], atol=1e-12)


def mtp_by_hand(model: Transformer, ids: Tensor, documents: Tensor) -> list[float]:
    """One row, one depth after the other, every position with only what it may know."""
    losses, stream = [], model.hidden(ids, documents=documents)
    length = ids.shape[1]
    for depth, module in enumerate(model.mtp_modules(), start=1):
        reach = length - depth
        stream = stream[:, :reach]
        embedded = model.embed_tokens(ids[:, depth:])
        joined = torch.cat([module.enorm(embedded), module.hnorm(stream)], -1)  # the embedding comes first
        x = module.eh_proj(joined)
        stream, _ = module.block(x, model.sight(ids[:, :reach], documents=documents[:, :reach]))
        logits = model.head(module.norm(stream))
        each = [
            F.cross_entropy(logits[0, i], ids[0, i + depth + 1])
            for i in range(length - depth - 1)
            if documents[0, i] == documents[0, i + depth + 1]
        ]
        losses.append(torch.stack(each).mean().item() if each else 0.0)
    return losses


@pytest.mark.parametrize("borders", [[9], [4, 5], [3, 1, 5], [2, 2, 2, 3]])
def test_multi_token_prediction_stops_at_the_borders_of_documents(borders: list[int]) -> None:
    model = network()
    ids = tokens(1, 9)
    documents = torch.repeat_interleave(torch.arange(len(borders)), torch.tensor(borders))[None]
    losses = model.loss(ids, documents=documents, mtp_weight=0.5)
    assert [loss.item() for loss in losses.mtp] == pytest.approx(mtp_by_hand(model, ids, documents))
    assert losses.tokens == 9 - len(borders)
    assert losses.total.item() == pytest.approx(losses.main.item() + 0.5 / 2 * sum(loss.item() for loss in losses.mtp))


def test_every_label_masked_is_a_loss_of_zero_that_can_be_differentiated() -> None:
    model = network()
    ids = tokens(1, 6)
    losses = model.loss(ids, torch.full_like(ids, IGNORED))
    assert losses.total.item() == 0
    assert losses.tokens == 0
    losses.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_masked_labels_are_not_predicted() -> None:
    model = network()
    ids = tokens(2, 8)
    labels = ids.clone()
    labels[:, :5] = IGNORED
    losses = model.loss(ids, labels)
    plain = F.cross_entropy(model(ids)[:, 4:-1].flatten(0, 1), ids[:, 5:].flatten())
    assert losses.main.item() == pytest.approx(plain.item())
    assert losses.tokens == 6


def test_a_row_too_short_for_a_depth_has_no_loss_there() -> None:
    assert len(network().loss(tokens(1, 3)).mtp) == 1
    assert network().loss(tokens(1, 1)).total.item() == 0


def test_labels_of_another_shape_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"labels have the shape \(1, 5\) and tokens \(1, 6\)"):
        network().loss(tokens(1, 6), tokens(1, 5))


def test_balance_is_part_of_the_total_and_off_outside_training() -> None:
    model = network()
    model = Transformer(model.config.replace(aux_loss_alpha=0.5), dtype=torch.float64)
    losses = model.loss(tokens(2, 6))
    assert losses.balance.item() > 0
    expected = losses.main + 0.15 * sum(losses.mtp) + losses.balance
    assert losses.total.item() == pytest.approx(expected.item())
    assert model.eval().loss(tokens(2, 6)).balance.item() == 0


def test_every_parameter_learns() -> None:
    model = network()
    model.loss(tokens(4, 16)).total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
    silent = [name for name, p in model.named_parameters() if not p.grad.any()]  # type: ignore[union-attr]
    assert silent == []


def test_loss_falls_when_it_is_followed() -> None:
    model = network().float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = tokens(2, 12)
    first = model.loss(ids)
    for _ in range(12):
        optimizer.zero_grad()
        losses = model.loss(ids)
        losses.total.backward()
        optimizer.step()
    assert losses.main < first.main / 2
    assert losses.mtp[0] < first.mtp[0] * 0.8


def test_drafts_step_by_step_are_what_training_sees() -> None:
    model = network().eval()
    ids = tokens(1, 7)
    with torch.no_grad():
        hidden = model.hidden(ids)
        logits, deeper = model.draft(hidden[:, :-1], ids[:, 1:])
        cache = LatentCache(model.config, batch=1, capacity=8, dtype=torch.float64, mtp=True)
        for place in range(6):
            step, _ = model.draft(hidden[:, place : place + 1], ids[:, place + 1 : place + 2], cache=cache)
            cache.advance(1)
            assert torch.allclose(step, logits[:, place : place + 1], atol=1e-12)
        second, _ = model.draft(deeper[:, :-1], ids[:, 2:], depth=1)
        plain = F.cross_entropy(second[0, :-1], ids[0, 3:])
    assert plain.item() == pytest.approx(model.loss(ids).mtp[1].item())
    with pytest.raises(UsageError, match="has 2 modules of multi-token prediction, and 2"):
        model.draft(hidden, ids, depth=2)
