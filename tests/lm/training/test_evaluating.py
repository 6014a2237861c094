"""Looks at a network: the numbers are those of training, and nothing moves by looking."""

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deepwell.errors import DataError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training import evaluating
from deepwell.lm.training.evaluating import sample, validate
from deepwell.lm.training.records import Validated
from deepwell.lm.weights.tokenizer import Tokenizer

LENGTH = 24


@dataclass(frozen=True)
class Batch:
    tokens: Tensor
    labels: Tensor
    documents: Tensor | None
    bytes: int


class Rows:
    """Random rows; a third of the labels is masked, unequally over rows; each prediction stands for two bytes."""

    def __init__(self, count: int = 7, *, documents: bool = False) -> None:
        generator = torch.Generator().manual_seed(3)
        self.tokens = torch.randint(0, 512, (count, LENGTH), generator=generator)
        masked = torch.rand(count, LENGTH, generator=generator) < torch.linspace(0, 0.6, count)[:, None]
        self.labels = self.tokens.masked_fill(masked, -100)
        self.documents = (torch.arange(LENGTH) // 10).expand(count, -1).contiguous() if documents else None

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, first: int, count: int) -> Batch:
        part = slice(first, first + count)
        documents = None if self.documents is None else self.documents[part]
        wanted = self.labels[part, 1:] != -100
        if documents is not None:
            wanted = wanted & (documents[:, 1:] == documents[:, :-1])
        return Batch(self.tokens[part], self.labels[part], documents, 2 * int(wanted.sum()))


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig.named("debug-moe").replace(num_hidden_layers=2, num_nextn_predict_layers=2)
    network = Transformer(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # as it is drawn, a network finds every token about as likely
    return network.train()


@pytest.mark.parametrize("documents", [False, True])
def test_the_losses_are_those_of_training(model: Transformer, documents: bool) -> None:
    rows = Rows(documents=documents)
    whole = rows.batch(0, 7)
    with torch.no_grad(), evaluating.evaluating(model):
        expected = model.loss(whole.tokens, whole.labels, documents=whole.documents)
    found = validate(model, rows, count=7, micro=7, step=5)
    assert isinstance(found, Validated)
    assert found.step == 5
    assert found.predictions == expected.tokens
    assert found.loss == pytest.approx(float(expected.main), rel=1e-6)
    assert found.mtp_losses == pytest.approx([float(one) for one in expected.mtp], rel=1e-6)
    assert found.bits_per_byte == pytest.approx(float(expected.main) / math.log(2) / 2, rel=1e-6)


@pytest.mark.parametrize("micro", [0, 1, 2, 3, 100])
def test_micro_batches_weigh_every_prediction_the_same(model: Transformer, micro: int) -> None:
    whole, parts = validate(model, Rows(), count=7, micro=7), validate(model, Rows(), count=7, micro=micro)
    assert parts.predictions == whole.predictions
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.mtp_losses == pytest.approx(whole.mtp_losses, rel=1e-5)
    assert parts.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-5)


def guesses(model: Transformer, rows: Rows) -> list[float]:
    """The shares of right guesses, by ``draft`` and whole logits."""
    right = []
    with torch.no_grad(), evaluating.evaluating(model):
        states = model.hidden(rows.tokens)
        for depth in range(len(model.mtp)):
            states = states[:, : LENGTH - depth - 1]
            logits, states = model.draft(states, rows.tokens[:, depth + 1 :], depth=depth)
            aims = rows.labels[:, depth + 2 :]
            hits = logits[:, :-1].argmax(-1) == aims
            right.append(float(hits.sum() / (aims != -100).sum()))
    return right


def test_the_share_of_right_second_tokens(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows()
    # Rows in which the modules do guess right: they are asked for what they would say.
    with torch.no_grad(), evaluating.evaluating(model):
        logits, _ = model.draft(model.hidden(rows.tokens)[:, :-1], rows.tokens[:, 1:])
        kept = rows.labels[:, 2::2] != -100
        rows.labels[:, 2::2] = torch.where(kept, logits[:, :-1].argmax(-1)[:, ::2], -100)
    expected = guesses(model, rows)
    assert 0.3 < expected[0] < 0.8
    assert validate(model, rows, count=7, micro=3).mtp_right == pytest.approx(expected)
    monkeypatch.setattr(evaluating, "_LOGITS", 512 * 16)
    assert validate(model, rows, count=7, micro=3).mtp_right == pytest.approx(expected)


def test_logits_are_never_there_for_a_whole_batch(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    head = Transformer.head
    monkeypatch.setattr(evaluating, "_LOGITS", 512 * 20)
    monkeypatch.setattr(Transformer, "head", lambda self, x: sizes.append(len(x)) or head(self, x))
    validate(model, Rows(), count=7, micro=7)
    assert len(sizes) > 4
    assert max(sizes) <= 20


def everything(model: Transformer) -> dict[str, Any]:
    return {
        **{name: tensor.clone() for name, tensor in model.state_dict().items()},
        "loads": model.expert_loads(),
        "training": torch.tensor([module.training for module in model.modules()]),
        "pointers": torch.tensor([parameter.data_ptr() for parameter in model.parameters()]),
        "torch": torch.get_rng_state(),
        "python": torch.tensor(random.getstate()[1]),
        "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_looking_moves_nothing(model: Transformer, deepseek: Tokenizer) -> None:
    model.loss(Rows().tokens).total.detach()  # loads that are there
    model.layers[1].eval()  # a part that does not train
    try:
        before = everything(model)
        assert before["loads"].sum() > 0
        validate(model, Rows(), count=3, micro=2)
        assert_same(before, everything(model))
    finally:
        model.train()


def test_a_failure_moves_nothing_either(model: Transformer) -> None:
    rows = Rows()
    rows.tokens[6, 0] = 10**6
    before = everything(model)
    with pytest.raises(IndexError):
        validate(model, rows, count=7, micro=2)
    assert_same(before, everything(model))


def test_fewer_rows_than_wanted_and_none(model: Transformer) -> None:
    assert (
        validate(model, Rows(2), count=50, micro=8).predictions
        == validate(model, Rows(2), count=2, micro=1).predictions
    )
    with pytest.raises(DataError, match="no rows to validate on"):
        validate(model, Rows(0), count=5, micro=1)


def test_rows_without_a_prediction(model: Transformer) -> None:
    rows = Rows(2)
    rows.labels.fill_(-100)
    found = validate(model, rows, count=2, micro=2)
    assert (found.loss, found.bits_per_byte, found.predictions) == (0.0, 0.0, 0)
    assert found.mtp_right == (0.0, 0.0)


# ---- samples ----


@pytest.fixture(scope="module")
def writer(deepseek: Tokenizer) -> Transformer:
    """A network for the tokenizer, as it is in training: float32 with bf16 activations."""
    torch.manual_seed(1)
    config = ModelConfig.named("debug-moe").replace(num_hidden_layers=2, vocab_size=deepseek.vocab_size)
    network = Transformer(config).train()
    network.compute_dtype = torch.bfloat16
    return network


def test_samples_are_the_same_for_the_same_seed_and_move_nothing(writer: Transformer, deepseek: Tokenizer) -> None:
    before = everything(writer)
    first = sample(writer, deepseek, ["the well", ""], tokens=12, seed=1)
    assert_same(before, everything(writer))
    assert writer.compute_dtype is torch.bfloat16
    assert len(first) == 2
    assert all(first)
    assert sample(writer, deepseek, ["the well", ""], tokens=12, seed=1) == first
    assert sample(writer, deepseek, ["the well", ""], tokens=12, seed=2) != first
    assert sample(writer, deepseek, ["the well"], tokens=12, seed=1) == first[:1]


@pytest.mark.parametrize("chats", [False, True])
def test_a_greedy_sample_is_what_the_network_finds_likeliest(
    writer: Transformer, deepseek: Tokenizer, chats: bool
) -> None:
    said = "the water is"
    (text,) = sample(writer, deepseek, [said], tokens=5, seed=0, temperature=0, chats=chats)
    tokens = deepseek.chat([{"role": "user", "content": said}]) if chats else list(deepseek.encode(said))
    start = len(tokens)
    writer.compute_dtype = None
    try:
        with torch.no_grad(), evaluating.evaluating(writer):
            for _ in range(5):
                tokens.append(int(writer(torch.tensor([tokens]))[0, -1].argmax()))
    finally:
        writer.compute_dtype = torch.bfloat16
    assert text == deepseek.decode(tokens[start:])


def test_products_of_training_are_put_aside_and_put_back(writer: Transformer, deepseek: Tokenizer) -> None:
    plain = sample(writer, deepseek, ["the"], tokens=4, seed=0)

    def other(*args: Any) -> Tensor:
        raise AssertionError("a product of training was asked to write")

    changed = [module for module in writer.modules() if hasattr(type(module), "product")]
    assert len(changed) > 5
    for module in changed:
        module.product = other  # type: ignore[assignment]
    try:
        assert sample(writer, deepseek, ["the"], tokens=4, seed=0) == plain
        assert all(module.product is other for module in changed)
    finally:
        for module in changed:
            del module.product


def test_long_prompts_and_no_tokens(writer: Transformer, deepseek: Tokenizer) -> None:
    assert sample(writer, deepseek, ["the", ""], tokens=0, seed=0) == ["", ""]
    assert sample(writer, deepseek, [], tokens=3, seed=0) == []
    longest = writer.config.max_position_embeddings
    assert len(sample(writer, deepseek, ["the well " * longest], tokens=9, seed=0)) == 1


def test_training_goes_on_to_the_bit_after_a_sample(deepseek: Tokenizer) -> None:
    config = ModelConfig.named("debug-moe").replace(num_hidden_layers=2, vocab_size=max(512, deepseek.vocab_size))
    tokens = torch.randint(0, 512, (2, 16), generator=torch.Generator().manual_seed(0))
    ends = []
    for looks in (False, True):
        torch.manual_seed(5)
        model = Transformer(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(3):
            model.loss(tokens).total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            if looks:
                sample(model, deepseek, ["the"], tokens=3, seed=0)
                validate(model, Rows(), count=2, micro=2)
        ends.append(model.state_dict())
    assert all(torch.equal(one, ends[1][name]) for name, one in ends[0].items())
