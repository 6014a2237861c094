"""Rows: what a network gets, from the documents of a corpus, in one fixed order without an end.

The position in the data is one number, that of the next row. A row follows from it, the seed and the documents alone,
so a run that goes on after a kill, or on another number of processes, sees what it would have seen.

- *Pretraining, packed*: an epoch is all documents one after the other, each with the tokens that begin and end it, in
  an order of its own; row i holds the tokens from i * T on. What is left at the end of an epoch makes no row.
- *Chats, packed*: whole conversations are put together until a row is full (first fit), which is done once; an epoch
  has the rows in an order of its own. What is longer than a row is cut.
- *Not packed*: each document is a row, cut or padded.

Held-back documents come unshuffled, are never filled in, and their last row is padded, so every token is looked at.
Labels stand at the place of their token: the network predicts each from those before it. -100 is not predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepwell.errors import DataError
from deepwell.lm.training.data.row_makers import IGNORED, PADDING, Row, maker_of
from deepwell.lm.training.data.store import Documents
from deepwell.lm.training.recipe import DataSection, Kind
from deepwell.lm.weights.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some rows.

    Attributes:
        tokens: [B, T] int64.
        labels: [B, T] int64: the token at its own place, -100 where it is not predicted.
        documents: [B, T] int64, a number for each document of a row and -1 for padding; None where documents see each
            other.
        row_bytes: [B] int64, of the text that each row's predicted tokens stand for; control tokens stand for none.
        row_filled: [B] int64, each row's tokens without padding.
    """

    tokens: Tensor
    labels: Tensor
    documents: Tensor | None
    row_bytes: Tensor
    row_filled: Tensor

    @property
    def bytes(self) -> int:
        """Of the text that the predicted tokens stand for."""
        return int(self.row_bytes.sum())

    @property
    def filled(self) -> int:
        """How many tokens are not padding, which rows of chats and of single documents have."""
        return int(self.row_filled.sum())

    def rows(self, begin: int, end: int) -> Batch:
        """Some of the rows."""
        return self._each(lambda one: one[begin:end])

    def to(self, device: str | torch.device) -> Batch:
        """The same on another device."""
        return self._each(lambda one: one.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        documents = None if self.documents is None else change(self.documents)
        return Batch(
            change(self.tokens), change(self.labels), documents, change(self.row_bytes), change(self.row_filled)
        )

    @property
    def predictions(self) -> int:
        """How many tokens are predicted: those with a label, but for the first of a row or of a separate document."""
        return int(_predicted(self.labels, self.documents).sum())


class Rows:
    """The rows of one side of a corpus.

    Attributes:
        tokens: Of one epoch, padding not counted.
        cut: Documents that are longer than a row and lose their end.
        dropped: Conversations left out, since all answers lie beyond the end of a row.
    """

    def __init__(self, documents: Documents, data: DataSection, tokenizer: Tokenizer, seed: int, kind: Kind) -> None:
        """Count the rows; none is made.

        Args:
            documents: ``Corpus.train``, or ``Corpus.validation``, whose rows are neither shuffled nor filled in.
            data: Its ``sequence_length``, ``pack``, ``mask_documents`` and ``fim_rate``.
            tokenizer: That of the corpus.
            seed: Of the recipe.
            kind: Of the recipe.

        Raises:
            DataError: What is learned has fewer tokens than one row.
            RecipeError: ``data.fim_rate`` is above 0, and the tokenizer has no tokens for it.
        """
        self._length = data.sequence_length
        self._masked = data.mask_documents
        ends = tokenizer.eos_token_ids
        eos = ends[0] if ends else None
        pad = tokenizer.pad_token_id
        self._pad = pad if pad is not None else eos if eos is not None else 0
        sizes = [
            0 if tokenizer.is_control(one) else len(tokenizer.token_bytes(one)) for one in range(tokenizer.vocab_size)
        ]
        # One more, of no bytes, for places that are not predicted.
        self._silent = len(sizes)
        self._token_bytes = torch.tensor([*sizes, 0], dtype=torch.int64)
        self._maker = maker_of(documents, data, tokenizer, seed, kind)
        self.tokens = self._maker.tokens
        self.cut = self._maker.cut
        self.dropped = self._maker.dropped
        if not self._maker.rows and not documents.held_back:
            raise DataError(
                f"the data to learn from has {self.tokens} tokens, and one row needs {self._length}"
                + (f"; the answers of {self.dropped} chats lie beyond the end of a row" if self.dropped else ""),
                hint="Change data.sequence_length, or add data",
            )

    def __len__(self) -> int:
        """Rows of one epoch."""
        return self._maker.rows

    def batch(self, first: int, count: int) -> Batch:
        """Rows ``first`` to ``first + count``, counted from the beginning of the run; epochs follow each other.

        Raises:
            DataError: There are no documents, as on the side held back for ``data.validation = 0``.
        """
        return self.at(range(first, first + count))

    def at(self, places: Sequence[int]) -> Batch:
        """Any rows, each by its number; see ``batch``."""
        if not len(self):
            raise DataError("there are no documents, so there is no row", hint="Set data.validation above 0")
        shape = (len(places), self._length)
        tokens = np.full(shape, self._pad, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        numbers = np.full(shape, PADDING, dtype=np.int64)
        for place, number in enumerate(places):
            epoch, row = divmod(number, len(self))
            self._maker.fill(epoch, row, Row(tokens[place], labels[place], numbers[place]))
        documents = torch.from_numpy(numbers) if self._masked else None
        wanted = torch.from_numpy(labels)
        predicted = _predicted(wanted, documents)
        sizes = self._token_bytes[wanted[:, 1:].masked_fill(~predicted, self._silent)].sum(dim=1)
        filled = torch.from_numpy((numbers != PADDING).sum(axis=1))
        return Batch(torch.from_numpy(tokens), wanted, documents, sizes, filled)


class Spread:
    """Some rows of many, evenly over all of them: what a look sees is then not the first files alone.

    Rows that are held back stand in the order of their files, so that the first ones may all be of one kind.
    """

    def __init__(self, rows: Rows, count: int) -> None:
        self._rows = rows
        self._count = min(count, len(rows))

    def __len__(self) -> int:
        """Rows that are looked at."""
        return self._count

    def batch(self, first: int, count: int) -> Batch:
        """Some of them, as ``Rows.batch``."""
        return self._rows.at([place * len(self._rows) // self._count for place in range(first, first + count)])


def _predicted(labels: Tensor, documents: Tensor | None) -> Tensor:
    """[B, T - 1] bool, as ``Transformer.loss`` counts: a row's first token is predicted from nothing."""
    wanted = labels[:, 1:] != IGNORED
    return wanted if documents is None else wanted & (documents[:, 1:] == documents[:, :-1])
