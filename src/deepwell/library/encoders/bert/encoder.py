"""One encoder object for a BERT checkpoint; it chooses the executor.

A few short texts go through numpy until torch is loaded: importing torch takes two seconds, a query three milliseconds.
Bulk goes through torch where it is installed. Once loaded, torch takes everything.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

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
    from deepwell.models import ModelInfo

WINDOW = 2048
"""Texts that are tokenised and sorted together. More makes runs of equal length longer; this many need 2 MB of ids."""

NUMPY_TOKENS = 512
"""Up to this many tokens in a call, numpy answers sooner than torch can be imported."""

TOKEN_BUDGET = 2048


class Executor(Protocol):
    """What a packed batch is computed by."""

    def pooled(self, batch: Batch) -> NDArray[np.float32]:
        """One vector for each sequence of the batch, in its order."""
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
        self._tokens = Tokens(folder, self.recipe.max_tokens)
        self._choice = executor
        self._lock = threading.Lock()
        self._numpy: NumpyBert | None = None
        self._torch: Any = None

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Unit vectors [N, dim]; memory beyond the result does not grow with N."""
        vectors = np.empty((len(texts), self.dim), np.float32)
        prompt = self.recipe.prompt(query=query)
        for first, sequences in self._windows(texts, prompt):
            executor = self._executor(sum(map(len, sequences)), bulk=len(texts) > WINDOW)
            for batch in pack(sequences, TOKEN_BUDGET):
                vectors[first + batch.rows] = executor.pooled(batch)[:, : self.dim]
        return unit(vectors)

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

    def _executor(self, tokens: int, *, bulk: bool) -> Executor:
        small = tokens <= NUMPY_TOKENS and not bulk
        wanted = self._choice
        if wanted == "auto":
            ready = self._torch is not None
            wanted = "torch" if ready or (not small and importlib.util.find_spec("torch") is not None) else "numpy"
        with self._lock:
            if wanted == "torch":
                if self._torch is None:
                    from deepwell.library.encoders.bert.layers_torch import TorchBert

                    self._torch = TorchBert(self._config, self._weights, self.recipe.pooling)
                return self._torch  # type: ignore[no-any-return]
            if self._numpy is None:
                self._numpy = NumpyBert(self._config, self._weights, self.recipe.pooling)
            return self._numpy


def load(folder: Path, info: ModelInfo | None = None, *, dim: int | None = None) -> BertEncoder:
    """The entry point's function; see ``deepwell.library.encoders``."""
    name, settings = (info.name, info.settings) if info is not None else (folder.name, None)
    return BertEncoder(folder, name, dim=dim, recipe=read_recipe(folder, settings))
