"""The makers of rows, one for each way that ``rows`` describes: texts packed, texts alone, and chats."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepwell.lm.training.data.fim import EXTRA, FimTokens, chosen, rearranged
from deepwell.lm.training.data.packing import first_fit
from deepwell.lm.training.data.store import Documents
from deepwell.lm.training.recipe import DataSection, Kind
from deepwell.lm.weights.tokenizer import Tokenizer

IGNORED = -100
"""The label of a token that is not predicted."""
PADDING = -1
"""The document that padding belongs to."""
_ORDER, _PACKING = 0, 3


class Maker(Protocol):
    """Makes rows of one kind: ``rows`` of them an epoch, which has ``tokens`` without padding.

    ``cut`` documents are longer than a row, and ``dropped`` ones have nothing to be learned within one.
    """

    rows: int
    tokens: int
    cut: int
    dropped: int

    def fill(self, epoch: int, row: int, out: Row) -> None:
        """Write the row into ``out``."""


@dataclass(slots=True)
class Row:
    """Places for one row, [T] each, filled with padding."""

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    documents: NDArray[np.int64]

    def put(self, at: int, tokens: NDArray[Any], number: int, learned: NDArray[Any] | None = None) -> None:
        # Not in the files' dtype, which has no -100.
        tokens = tokens.astype(np.int64)
        end = at + len(tokens)
        self.tokens[at:end] = tokens
        self.labels[at:end] = tokens if learned is None else np.where(learned != 0, tokens, IGNORED)
        self.documents[at:end] = number


def _permutation(count: int, seed: int, epoch: int, *, shuffled: bool, purpose: int = _ORDER) -> NDArray[np.int64]:
    if not shuffled:
        return np.arange(count, dtype=np.int64)
    return np.random.Generator(np.random.PCG64([seed, epoch, purpose])).permutation(count)


class _Pieces:
    """Texts as they are learned: repeated, with the tokens around them, and some of them filled in."""

    def __init__(
        self,
        documents: Documents,
        data: DataSection,
        bos: int | None,
        eos: int | None,
        fim: FimTokens | None,
        seed: int,
    ) -> None:
        self._documents, self._fim, self._seed = documents, fim, seed
        self._rate = data.fim_rate if fim is not None else 0.0
        self.longest = None if data.pack else data.sequence_length
        self._before = [] if bos is None else [bos]
        self._after = [] if eos is None else [eos]
        self.shuffled = not documents.held_back
        self.numbers = np.repeat(np.arange(len(documents)), documents.times)
        self.lengths = np.diff(documents.offsets)[self.numbers] + len(self._before) + len(self._after)
        # Rows of a batch come from one epoch, or from two where it ends.
        self.filled = lru_cache(maxsize=2)(self._filled)
        self.order = lru_cache(maxsize=2)(self._order)

    def _filled(self, epoch: int) -> NDArray[np.bool_]:
        """Which pieces are filled in in an epoch."""
        return chosen(len(self.numbers), self._rate, self._seed, epoch)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch's pieces."""
        return _permutation(len(self.numbers), self._seed, epoch, shuffled=self.shuffled)

    @property
    def tokens(self) -> int:
        """Of an epoch; which documents are filled in changes, and how many does not."""
        return int(self.lengths.sum()) + EXTRA * round(self._rate * len(self.numbers))

    def piece(self, epoch: int, number: int, begin: int, end: int) -> NDArray[Any]:
        """The tokens of one piece from ``begin`` to ``end`` (or its own end)."""
        tokens = self._documents.document(int(self.numbers[number]))
        before, after = self._before, self._after
        if self._fim is None or not self.filled(epoch)[number]:
            # A document can be far longer than a row, so no more of it is read than is asked for.
            taken: list[Any] = []
            for part in (before, tokens, after):
                taken.append(part[max(begin, 0) : max(end, 0)])
                begin, end = begin - len(part), end - len(part)
            return np.concatenate(taken).astype(np.int64)
        if self.longest is not None:
            tokens = tokens[: self.longest - EXTRA - len(before) - len(after)]
        tokens = rearranged(tokens, self._fim, seed=self._seed, epoch=epoch, document=number)
        return np.concatenate([before, tokens, after]).astype(np.int64)[begin:end]


class _Packed:
    """One stream of texts an epoch, cut into rows."""

    cut = dropped = 0

    def __init__(self, pieces: _Pieces, length: int) -> None:
        self._pieces, self._length = pieces, length
        self.tokens = pieces.tokens
        self.rows = self.tokens // length if pieces.shuffled else -(-self.tokens // length)
        self._stream = lru_cache(maxsize=2)(self._order_and_ends)

    def _order_and_ends(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of an epoch's pieces, and where in its stream each ends."""
        order = self._pieces.order(epoch)
        lengths = self._pieces.lengths + EXTRA * self._pieces.filled(epoch)
        return order, np.cumsum(lengths[order])

    def fill(self, epoch: int, row: int, out: Row) -> None:
        order, ends = self._stream(epoch)
        begin, end = row * self._length, min((row + 1) * self._length, self.tokens)
        at = begin
        number = int(np.searchsorted(ends, begin, side="right"))
        while at < end:
            begins = int(ends[number - 1]) if number else 0
            tokens = self._pieces.piece(epoch, int(order[number]), at - begins, end - begins)
            out.put(at - begin, tokens, number)
            at += len(tokens)
            number += 1


class _Single:
    """A text a row."""

    dropped = 0

    def __init__(self, pieces: _Pieces) -> None:
        self._pieces = pieces
        self._length = pieces.longest or 0
        self.rows = len(pieces.numbers)
        self.tokens = int(np.minimum(pieces.lengths, self._length).sum())
        self.cut = int((pieces.lengths > self._length).sum())

    def fill(self, epoch: int, row: int, out: Row) -> None:
        number = int(self._pieces.order(epoch)[row])
        out.put(0, self._pieces.piece(epoch, number, 0, self._length), 0)


class _Chats:
    """Conversations, several a row or one."""

    def __init__(self, documents: Documents, data: DataSection, seed: int) -> None:
        self._documents, self._seed, self._length = documents, seed, data.sequence_length
        self._shuffled = not documents.held_back
        lengths = np.diff(documents.offsets)
        fits = np.ones(len(lengths), dtype=np.bool_)
        for number in np.flatnonzero(lengths > self._length).tolist():
            fits[number] = self._learned(number).any()
        kept = np.repeat(np.arange(len(lengths)), documents.times * fits)
        self.cut = int((lengths[kept] > self._length).sum())
        self.dropped = int((~fits).sum())
        shown = np.minimum(lengths[kept], self._length)
        self.tokens = int(shown.sum())
        if data.pack:
            # Packed in a mixed order, since rows of neighbours would be alike.
            mixed = _permutation(len(kept), seed, 0, shuffled=self._shuffled, purpose=_PACKING)
            rows = first_fit(shown[mixed].tolist(), self._length)
            self._numbers = [kept[mixed[row]] for row in rows]
        else:
            self._numbers = [kept[place : place + 1] for place in range(len(kept))]
        self.rows = len(self._numbers)
        self._order = lru_cache(maxsize=2)(self._order_of)

    def fill(self, epoch: int, row: int, out: Row) -> None:
        at = 0
        for place, number in enumerate(self._numbers[int(self._order(epoch)[row])].tolist()):
            tokens = self._documents.document(number)[: self._length]
            out.put(at, tokens, place, self._learned(number))
            at += len(tokens)

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        return _permutation(self.rows, self._seed, epoch, shuffled=self._shuffled)

    def _learned(self, number: int) -> NDArray[np.uint8]:
        begin, end = (int(one) for one in self._documents.offsets[number : number + 2])
        learned = self._documents.learned
        assert learned is not None
        return learned[begin : min(end, begin + self._length)]


def maker_of(documents: Documents, data: DataSection, tokenizer: Tokenizer, seed: int, kind: Kind) -> Maker:
    """The maker for what a recipe asks for; see ``Rows``."""
    if kind == "sft":
        return _Chats(documents, data, seed)
    ends = tokenizer.eos_token_ids
    bos = tokenizer.bos_token_id if tokenizer.adds_bos else None
    fim = FimTokens.of(tokenizer) if data.fim_rate > 0 and not documents.held_back else None
    pieces = _Pieces(documents, data, bos, ends[0] if ends else None, fim, seed)
    return _Packed(pieces, data.sequence_length) if data.pack else _Single(pieces)
