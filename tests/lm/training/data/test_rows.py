"""Rows: every token once an epoch, the same from any position, labels and bytes as the loss counts them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepwell.errors import DataError
from deepwell.lm.model.loss import Whole
from deepwell.lm.training.data.fim import FimTokens
from deepwell.lm.training.data.rows import Batch, Rows, Spread
from deepwell.lm.training.data.store import Documents
from deepwell.lm.training.recipe import DataSection, SourceSection
from deepwell.lm.weights.tokenizer import Tokenizer

BOS, EOS, PAD = 0, 1, 2
Writer = Callable[..., Documents]


def section(length: int = 8, **fields: Any) -> DataSection:
    return DataSection(sources=(SourceSection(path="x"),), sequence_length=length, **fields)


def documents_of(count: int, seed: int = 0) -> list[list[int]]:
    """Documents whose tokens tell where they are from, 8 to a document at most."""
    dice = np.random.default_rng(seed)
    return [[20 + 9 * number + place for place in range(dice.integers(1, 9))] for number in range(count)]


def whole_epoch(rows: Rows, epoch: int = 0) -> Batch:
    return rows.batch(epoch * len(rows), len(rows))


_fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, deadline=None)


@_fixtures
@given(st.integers(1, 30), st.integers(0, 99), st.integers(8, 40), st.integers(0, 3), st.booleans())
def test_every_token_of_an_epoch_once(
    write_side: Writer, tokenizer: Tokenizer, count: int, seed: int, length: int, epoch: int, fim: bool
) -> None:
    documents = documents_of(count, seed)
    whole = Counter([BOS, EOS] * count + [one for document in documents for one in document])
    if fim:
        marks = FimTokens.of(tokenizer)
        whole.update([marks.begin, marks.hole, marks.end] * round(0.5 * count))
    data = section(length, fim_rate=0.5 if fim else 0.0)
    if sum(whole.values()) < length:
        with pytest.raises(DataError, match=f"has {sum(whole.values())} tokens, and one row needs {length}"):
            Rows(write_side(documents), data, tokenizer, seed, "pretrain")
        return
    rows = Rows(write_side(documents), data, tokenizer, seed, "pretrain")
    assert rows.tokens == sum(whole.values())
    assert len(rows) == rows.tokens // length
    batch = whole_epoch(rows, epoch)
    left = whole - Counter(batch.tokens.flatten().tolist())
    assert sum(left.values()) == rows.tokens % length
    assert torch.equal(batch.tokens, batch.labels)


def test_documents_stay_whole_within_the_stream(write_side: Writer, tokenizer: Tokenizer) -> None:
    documents = documents_of(12)
    rows = Rows(write_side(documents), section(8), tokenizer, 3, "pretrain")
    stream = whole_epoch(rows).tokens.flatten().tolist()
    pieces = []
    for token in stream:
        if token == BOS:
            pieces.append([])
        pieces[-1].append(token)
    assert all(one[1:-1] in documents and one[-1] == EOS for one in pieces[:-1])


@_fixtures
@given(st.integers(0, 200), st.integers(1, 9), st.sampled_from([True, False]), st.sampled_from([0.0, 0.4]))
def test_a_fresh_object_gives_the_same_rows(
    write_side: Writer, tokenizer: Tokenizer, first: int, count: int, pack: bool, fim: float
) -> None:
    side = write_side(documents_of(15))
    data = section(16, pack=pack, fim_rate=fim, mask_documents=True)
    one, other = (Rows(side, data, tokenizer, 7, "pretrain") for _ in range(2))
    for position in range(0, first, 13):
        one.batch(position, 1)
    mine, parts = one.batch(first, count), [other.batch(first + place, 1) for place in range(count)]
    assert torch.equal(mine.tokens, torch.cat([part.tokens for part in parts]))
    assert torch.equal(mine.labels, torch.cat([part.labels for part in parts]))
    assert mine.documents is not None
    assert torch.equal(mine.documents, torch.cat([part.documents for part in parts if part.documents is not None]))
    assert mine.bytes == sum(part.bytes for part in parts)


def test_epochs_and_seeds_have_orders_of_their_own(write_side: Writer, tokenizer: Tokenizer) -> None:
    side = write_side(documents_of(40))
    rows = Rows(side, section(), tokenizer, 1, "pretrain")
    other = Rows(side, section(), tokenizer, 2, "pretrain")
    assert not torch.equal(whole_epoch(rows, 0).tokens, whole_epoch(rows, 1).tokens)
    assert not torch.equal(whole_epoch(rows).tokens, whole_epoch(other).tokens)


def test_a_batch_goes_on_into_the_next_epoch(write_side: Writer, tokenizer: Tokenizer) -> None:
    rows = Rows(write_side(documents_of(10)), section(), tokenizer, 1, "pretrain")
    both = rows.batch(len(rows) - 1, 2)
    assert torch.equal(both.tokens[0], rows.batch(len(rows) - 1, 1).tokens[0])
    assert torch.equal(both.tokens[1], rows.batch(len(rows), 1).tokens[0])


def test_repeated_documents(write_side: Writer, tokenizer: Tokenizer) -> None:
    rows = Rows(write_side([[7], [8, 9]], times=[3, 1]), section(12), tokenizer, 1, "pretrain")
    assert rows.tokens == 3 * 3 + 4
    assert whole_epoch(rows).tokens.flatten().tolist().count(7) >= 2


def test_document_numbers_mark_borders(write_side: Writer, tokenizer: Tokenizer) -> None:
    rows = Rows(write_side(documents_of(12)), section(10, mask_documents=True), tokenizer, 1, "pretrain")
    batch = whole_epoch(rows)
    assert batch.documents is not None
    for tokens, numbers in zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True):
        changes = [place for place in range(1, 10) if numbers[place] != numbers[place - 1]]
        assert changes == [place for place in range(1, 10) if tokens[place] == BOS]
    assert Rows(write_side(documents_of(12)), section(10), tokenizer, 1, "pretrain").batch(0, 1).documents is None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_bytes_and_predictions_are_those_of_the_loss(
    write_side: Writer, tokenizer: Tokenizer, masked: bool, pack: bool
) -> None:
    text = "井戸 は深い 😀 the well is deep"
    side = write_side([tokenizer.encode(text, bos=False) for _ in range(6)])
    batch = whole_epoch(Rows(side, section(9, mask_documents=masked, pack=pack), tokenizer, 1, "pretrain"))
    size = predictions = 0
    for row, labels in enumerate(batch.labels.tolist()):
        for place in range(1, 9):
            apart = batch.documents is not None and batch.documents[row, place] != batch.documents[row, place - 1]
            if labels[place] != -100 and not apart:
                predictions += 1
                size += 0 if tokenizer.is_control(labels[place]) else len(tokenizer.token_bytes(labels[place]))
    assert (batch.bytes, batch.predictions) == (size, predictions)
    assert Whole.of(batch.labels, batch.documents).predictions[0] == predictions


def test_parts_of_a_batch_add_up(write_side: Writer, tokenizer: Tokenizer) -> None:
    side = write_side([tokenizer.encode("井戸 the well " * many, bos=False) for many in range(1, 6)])
    rows = Rows(side, section(9, mask_documents=True, pack=False), tokenizer, 1, "pretrain")
    batch = whole_epoch(rows).to("cpu")
    parts = [batch.rows(0, 2), batch.rows(2, 5), batch.rows(5, 5)]
    for name in ("bytes", "filled", "predictions"):
        assert getattr(batch, name) == sum(getattr(part, name) for part in parts) > 0
    assert batch.filled == rows.tokens
    for name in ("tokens", "labels", "documents"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts]))
    assert batch.rows(1, 2).bytes == rows.batch(1, 1).bytes
    assert Rows(side, section(9), tokenizer, 1, "pretrain").batch(0, 0).tokens.shape == (0, 9)


def test_a_whole_text_has_its_bytes(write_side: Writer, tokenizer: Tokenizer) -> None:
    text = "井戸は深い 😀 naïve"
    side = write_side([tokenizer.encode(text, bos=False)])
    rows = Rows(side, section(64, pack=False), tokenizer, 1, "pretrain")
    assert rows.batch(0, 1).bytes == len(text.encode())


def test_unpacked_rows_are_cut_or_padded(write_side: Writer, tokenizer: Tokenizer) -> None:
    rows = Rows(write_side([[7, 8], list(range(20, 60))]), section(8, pack=False), tokenizer, 1, "pretrain")
    batch = whole_epoch(rows)
    short, long = sorted(batch.tokens.tolist(), key=lambda row: row[1])
    assert short == [BOS, 7, 8, EOS, PAD, PAD, PAD, PAD]
    assert long == [BOS, *range(20, 27)]
    labels = sorted(batch.labels.tolist(), key=lambda row: row[1])
    assert labels[0] == [BOS, 7, 8, EOS, -100, -100, -100, -100]
    assert (rows.cut, rows.tokens) == (1, 12)


def test_what_is_filled_in_keeps_its_middle_in_an_unpacked_row(write_side: Writer, tokenizer: Tokenizer) -> None:
    data = section(16, pack=False, fim_rate=1.0)
    rows = Rows(write_side([list(range(20, 60))] * 5), data, tokenizer, 1, "pretrain")
    end = FimTokens.of(tokenizer).end
    for row in whole_epoch(rows).tokens.tolist():
        assert end in row
        assert row[-1] == EOS
        assert sorted(one for one in row if one >= 20) == list(range(20, 31))


# ---- what is held back ----


def test_held_back_rows_are_in_order_and_the_last_is_padded(write_side: Writer, tokenizer: Tokenizer) -> None:
    side = write_side([[7, 8], [9], [10, 11, 12]], side="validation")
    rows = Rows(side, section(10, fim_rate=0.5), tokenizer, 1, "pretrain")
    assert len(rows) == 2
    first, second = whole_epoch(rows).tokens.tolist()
    assert first == [BOS, 7, 8, EOS, BOS, 9, EOS, BOS, 10, 11]
    assert second == [12, EOS, *[PAD] * 8]
    assert whole_epoch(rows).labels[1].tolist() == [12, EOS, *[-100] * 8]
    assert torch.equal(whole_epoch(rows, 3).tokens, whole_epoch(rows).tokens)


def test_a_spread_takes_rows_from_all_over(write_side: Writer, tokenizer: Tokenizer) -> None:
    rows = Rows(write_side(documents_of(40), side="validation"), section(8), tokenizer, 1, "pretrain")
    assert len(rows) > 8
    some = Spread(rows, 4)
    assert len(some) == 4
    for place in range(4):
        whole = rows.batch(place * len(rows) // 4, 1)
        assert torch.equal(some.batch(place, 1).tokens, whole.tokens)
    assert torch.equal(some.batch(1, 2).tokens, torch.cat([some.batch(1, 1).tokens, some.batch(2, 1).tokens]))
    assert len(Spread(rows, 10**6)) == len(rows)


def test_nothing_held_back(write_side: Writer, tokenizer: Tokenizer) -> None:
    rows = Rows(write_side([], side="validation"), section(), tokenizer, 1, "pretrain")
    assert len(rows) == 0
    with pytest.raises(DataError, match="no documents"):
        rows.batch(0, 1)


# ---- chats ----


def chats_of(count: int, seed: int = 0) -> list[tuple[list[int], list[bool]]]:
    dice = np.random.default_rng(seed)
    made = []
    for document in documents_of(count, seed):
        learned = dice.random(len(document)) < 0.5
        learned[-1] = True
        made.append((document, learned.tolist()))
    return made


@_fixtures
@given(st.integers(1, 30), st.integers(0, 99), st.booleans(), st.integers(0, 2))
def test_chats_are_never_cut_while_they_fit(
    write_side: Writer, tokenizer: Tokenizer, count: int, seed: int, pack: bool, epoch: int
) -> None:
    chats = chats_of(count, seed)
    rows = Rows(write_side(chats, chats=True), section(24, pack=pack, mask_documents=True), tokenizer, seed, "sft")
    batch = whole_epoch(rows, epoch)
    assert batch.documents is not None
    found = []
    for tokens, labels, numbers in zip(
        batch.tokens.tolist(), batch.labels.tolist(), batch.documents.tolist(), strict=True
    ):
        for number in sorted({one for one in numbers if one >= 0}):
            places = [place for place in range(24) if numbers[place] == number]
            assert places == list(range(places[0], places[0] + len(places)))
            assert all(labels[place] in {tokens[place], -100} for place in places)
            found.append(([tokens[place] for place in places], [labels[place] != -100 for place in places]))
        assert all(labels[place] == -100 for place in range(24) if numbers[place] < 0)
    assert sorted(found) == sorted(chats)
    assert len(rows) <= count
    assert pack or len(rows) == count


def test_long_chats_are_cut_and_unlearnable_ones_left_out(write_side: Writer, tokenizer: Tokenizer) -> None:
    ids = list(range(100, 130))
    late, early = [place >= 20 for place in range(30)], [place >= 5 for place in range(30)]
    rows = Rows(write_side([(ids, late), (ids, early)], chats=True), section(10), tokenizer, 0, "sft")
    assert (rows.cut, rows.dropped, len(rows), rows.tokens) == (1, 1, 1, 10)
    assert rows.batch(0, 1).labels.tolist() == [[-100] * 5 + ids[5:10]]
    with pytest.raises(DataError, match="the answers of 1 chats lie beyond the end of a row"):
        Rows(write_side([(ids, late)], chats=True), section(10), tokenizer, 0, "sft")


def test_packed_chats_come_in_other_orders(write_side: Writer, tokenizer: Tokenizer) -> None:
    side = write_side(chats_of(60), chats=True)
    rows = Rows(side, section(24), tokenizer, 0, "sft")
    one, other = whole_epoch(rows, 0).tokens.tolist(), whole_epoch(rows, 1).tokens.tolist()
    assert one != other
    assert sorted(one) == sorted(other)
