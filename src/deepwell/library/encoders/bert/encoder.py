"""One encoder object for a BERT checkpoint; it chooses the executor.

Importing torch takes two seconds, in which numpy encodes some ten thousand tokens at four fifths of torch's float32
rate. So queries and small additions go through numpy, and torch is loaded when enough passages have come to pay for it.
Once loaded it takes everything.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from deepwell.library.encoders.bert.config import read_config
from deepwell.library.encoders.bert.layers_numpy import NumpyBert
from deepwell.library.encoders.fingerprint import fingerprint
from deepwell.library.encoders.packing import Batch, pack
from deepwell.library.encoders.recipe import Recipe, read_recipe
from deepwell.library.encoders.tokens import Tokens
from deepwell.library.encoders.vectors import unit
from deepwell.library.encoders.weights import Weights

if TYPE_CHECKING:
    from deepwell.library.encoders.bert.layers_torch import TorchBert
    from deepwell.models import ModelInfo

WINDOW = 2048
"""Texts that are tokenised and sorted together. More makes runs of equal length longer; this many need 2 MB of ids."""

IMPORT_TOKENS = 8192
"""Tokens of passages, since the encoder was made, after which importing torch pays. Queries do not count: a server
would stop for two seconds after some hundred of them, for a millisecond each."""

WAKE_TOKENS = 512
"""The same where torch is imported already and only its copy of the weights (42 MB) is to be made."""

TOKEN_BUDGET = 1024
"""Tokens that a core computes at once. More leave its cache; fewer make the products small."""


class Executor(Protocol):
    """What a packed batch is computed by."""

    def pooled(self, batch: Batch) -> NDArray[np.float32]:
        """One vector for each sequence of the batch, in its order."""
        ...

    def each(self, batches: Sequence[Batch]) -> Iterator[NDArray[np.float32]]:
        """The same for several batches, in their order."""
        ...


class BertEncoder:
    """A ``TextEncoder`` of a BERT checkpoint's folder. Thread-safe.

    Args:
        folder: With ``config.json``, ``model.safetensors``, ``tokenizer.json``.
        name: As in the catalogue.
        executor: ``auto`` chooses; ``numpy`` and ``torch`` insist (for tests and measurements).
        dim: Keep this many leading numbers (only of models trained for it, Matryoshka); None keeps all.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "",
        *,
        executor: Literal["auto", "numpy", "torch"] = "auto",
        dim: int | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        self.name = name or folder.name
        self.recipe = recipe or read_recipe(folder)
        self._config = read_config(folder)
        weights_path = folder / "model.safetensors"
        self._weights = Weights(weights_path, prefix="bert.")
        self.dim = dim or self._config.hidden_size
        self.fingerprint = fingerprint(
            folder, ["model.safetensors", "tokenizer.json"], recipe=self.recipe, dim=self.dim
        )
        self.max_tokens = self.recipe.max_tokens
        self._tokens = Tokens(folder, self.max_tokens)
        self._choice = executor
        self._lock = threading.Lock()
        self._numpy: NumpyBert | None = None
        self._torch: TorchBert | None = None
        self._passage_tokens = 0

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Unit vectors [N, dim]; memory beyond the result does not grow with N."""
        vectors = np.empty((len(texts), self.dim), np.float32)
        prompt = self.recipe.prompt(query=query)
        for first, sequences in self._windows(texts, prompt):
            executor = self._executor(0 if query else sum(map(len, sequences)))
            batches = list(pack(sequences, TOKEN_BUDGET))
            for batch, pooled in zip(batches, executor.each(batches), strict=True):
                vectors[first + batch.rows] = pooled[:, : self.dim]
        return unit(vectors)

    def count_tokens(self, texts: Sequence[str], *, query: bool = False) -> list[int]:
        """Tokens of each text as a whole; of one that has more than ``max_tokens`` the beginning is encoded."""
        return self._tokens.counts(texts, self.recipe.prompt(query=query))

    def _windows(self, texts: Sequence[str], prompt: str) -> Iterator[tuple[int, list[NDArray[np.int32]]]]:
        """Token ids of one window after another; the next is tokenised while the caller computes on this one."""
        if len(texts) <= WINDOW:
            if texts:
                yield 0, self._tokens.ids(texts, prompt)
            return
        firsts = range(0, len(texts), WINDOW)
        with ThreadPoolExecutor(1, thread_name_prefix="deepwell-tokens") as pool:
            ahead = pool.submit(self._tokens.ids, texts[:WINDOW], prompt)
            for first in firsts:
                sequences = ahead.result()
                following = texts[first + WINDOW : first + 2 * WINDOW]
                if following:
                    ahead = pool.submit(self._tokens.ids, following, prompt)
                yield first, sequences

    def _executor(self, passage_tokens: int) -> Executor:
        with self._lock:
            self._passage_tokens += passage_tokens
            if self._choice == "torch" or (self._choice == "auto" and self._torch_pays()):
                if self._torch is None:
                    from deepwell.library.encoders.bert.layers_torch import TorchBert

                    self._torch = TorchBert(self._config, self._weights, self.recipe.pooling)
                return self._torch
            if self._numpy is None:
                self._numpy = NumpyBert(self._config, self._weights, self.recipe.pooling)
            return self._numpy

    def _torch_pays(self) -> bool:
        if self._torch is not None:
            return True
        price = WAKE_TOKENS if "torch" in sys.modules else IMPORT_TOKENS
        return self._passage_tokens > price and importlib.util.find_spec("torch") is not None


def load(folder: Path, info: ModelInfo | None = None, *, dim: int | None = None) -> BertEncoder:
    """The entry point's function; see ``deepwell.library.encoders``."""
    name, settings = (info.name, info.settings) if info is not None else (folder.name, None)
    return BertEncoder(folder, name, dim=dim, recipe=read_recipe(folder, settings))
