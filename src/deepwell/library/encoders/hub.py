"""Encoders through transformers (extra ``hub``): whatever a model hub has that we do not compute ourselves.

ModernBERT (granite-embedding-small-english-r2), EmbeddingGemma 1 (Gemma 3 made bidirectional, two dense layers after
pooling) and EmbeddingGemma 2 (its own architecture; of its towers only the text one is loaded, 270 of 740 million
parameters), and any other checkpoint that transformers' ``AutoModel`` knows. transformers computes token states;
pooling, dense layers and prompts follow the files of sentence-transformers (``recipe``), whose package is not needed.

Nothing is downloaded and no code from a checkpoint's folder is ever run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepwell.errors import MissingExtraError, ModelSourceError, UsageError
from deepwell.library.encoders.fingerprint import fingerprint
from deepwell.library.encoders.recipe import Recipe, read_json, read_recipe
from deepwell.library.encoders.tokens import Tokens
from deepwell.library.encoders.vectors import unit

if TYPE_CHECKING:
    from torch import Tensor

    from deepwell.models import ModelInfo

WINDOW = 512
"""Texts tokenised and sorted by length together."""

PADDED_TOKENS = 4096
"""Tokens of a batch, padding included. Attention masks grow with the square of the longest text in it."""


class HubEncoder:
    """A ``TextEncoder`` of a checkpoint's folder. Thread-safe; the network loads at the first call.

    Args:
        folder: As a hub publishes it, with ``tokenizer.json``.
        name: As in the catalogue.
        recipe: Pooling, dense layers, prompts, longest input.
        dim: Keep this many leading numbers (Matryoshka); None keeps all.
    """

    def __init__(self, folder: Path, name: str, recipe: Recipe, *, dim: int | None = None) -> None:
        self.name = name
        self.recipe = recipe
        self._folder = folder
        full = _full_dim(folder, recipe)
        if dim is not None and not 1 <= dim <= full:
            raise UsageError(f"{name} makes {full} numbers, {dim} were asked for", hint=f"Use 1 to {full}.")
        self.dim = dim or full
        # Weights may be one file or many (model-00001-of-00002.safetensors), dense layers have their own.
        files = [str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")]
        self.fingerprint = fingerprint(folder, [*files, "tokenizer.json"], recipe=recipe, dim=self.dim)
        self._tokens = Tokens(folder, recipe.max_tokens)
        self._padding = int(read_json(folder / "config.json").get("pad_token_id") or 0)
        self._lock = threading.Lock()
        self._network: Any = None
        self._dense: list[tuple[Tensor, Tensor | None, str]] = []

    def encode(self, texts: Sequence[str], *, query: bool = False) -> NDArray[np.float32]:
        """Unit vectors [N, dim]; memory beyond the result does not grow with N."""
        with self._lock:
            if self._network is None:
                self._network = load_network(self._folder)
                self._dense = [_dense(self._folder, step.folder, step.activation) for step in self.recipe.dense]
        prompt = self.recipe.prompt(query=query)
        skip = 0 if self.recipe.pool_prompt or not prompt else self._prompt_tokens(prompt)
        vectors = np.empty((len(texts), self.dim), np.float32)
        for first in range(0, len(texts), WINDOW):
            sequences = self._tokens.ids(texts[first : first + WINDOW], prompt)
            for rows in padded_batches([len(sequence) for sequence in sequences], PADDED_TOKENS):
                vectors[first + rows] = self._pooled([sequences[row] for row in rows], skip)[:, : self.dim]
        return unit(vectors)

    def _prompt_tokens(self, prompt: str) -> int:
        """Tokens at the start that belong to the prompt, special ones before it included (and not the closing one)."""
        alone, ending = self._tokens.ids([prompt, ""])
        return len(alone) - (1 if len(ending) and alone[-1] == ending[-1] else 0)

    def _pooled(self, sequences: Sequence[NDArray[np.int32]], skip: int) -> NDArray[np.float32]:
        import torch

        lengths = torch.tensor([len(sequence) for sequence in sequences])
        width = int(lengths.max())
        ids = torch.full((len(sequences), width), self._padding, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
        places = torch.arange(width)
        mask = places < lengths[:, None]
        with torch.inference_mode():
            states = self._network(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
            kept = mask & (places >= torch.minimum(torch.tensor(skip), lengths - 1)[:, None])
            pooled = _pool(states, kept, lengths, self.recipe.pooling)
            for weight, bias, activation in self._dense:
                pooled = _activate(torch.nn.functional.linear(pooled, weight, bias), activation)
        result: NDArray[np.float32] = pooled.numpy()
        return result


def padded_batches(lengths: Sequence[int], budget: int) -> Iterator[NDArray[np.intp]]:
    """Rows of each batch, longest first, so that rows x longest stays within ``budget`` (one row always fits)."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    first = 0
    while first < len(order):
        count = max(1, budget // max(1, lengths[order[first]]))
        yield order[first : first + count]
        first += count


def load_network(folder: Path) -> Any:
    """The network of ``folder`` in float32, ready for inference: token ids to ``last_hidden_state``.

    Raises ``MissingExtraError`` without transformers, ``ModelSourceError`` for a checkpoint it cannot load.
    """
    try:
        import torch
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise MissingExtraError(
            f"the model in {folder} needs the package {error.name}", hint='Run: pip install "deepwell[hub]"'
        ) from error
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if config.model_type == "embedding_gemma2":
            # Its vision and audio towers are two thirds of the weights and nothing of a text's vector.
            config.vision_config = None
            config.audio_config = None
        network = AutoModel.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first_line = str(error).strip().split("\n", 1)[0]
        raise ModelSourceError(f"transformers cannot load {folder}: {first_line}") from error
    return network.eval()


def _full_dim(folder: Path, recipe: Recipe) -> int:
    if recipe.dense:
        return int(read_json(folder / recipe.dense[-1].folder / "config.json")["out_features"])
    config = read_json(folder / "config.json")
    text = config.get("text_config") or config
    size = text.get("embedding_dim") or text.get("hidden_size")
    if not size:
        raise ModelSourceError(f"{folder / 'config.json'} names neither embedding_dim nor hidden_size")
    return int(size)


def _dense(folder: Path, where: str, activation: str) -> tuple[Tensor, Tensor | None, str]:
    import torch
    from safetensors.torch import load_file

    path = folder / where / "model.safetensors"
    if not path.is_file():
        raise ModelSourceError(f"there is no {path}", hint="Fetch the whole repository, its dense layers too.")
    tensors = load_file(path)
    bias = tensors.get("linear.bias")
    return tensors["linear.weight"].to(torch.float32), None if bias is None else bias.to(torch.float32), activation


def _activate(states: Tensor, activation: str) -> Tensor:
    import torch

    functions = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}
    return functions[activation](states) if activation in functions else states


def _pool(states: Tensor, kept: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """States [N, L, hidden] and the tokens that count [N, L] to [N, hidden]. Padding is on the right."""
    import torch

    rows = torch.arange(len(states))
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[rows, lengths - 1]
    if pooling == "max":
        return states.masked_fill(~kept[..., None], float("-inf")).amax(dim=1)
    weights = kept[..., None].float()
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def load(folder: Path, info: ModelInfo | None = None, *, dim: int | None = None) -> HubEncoder:
    """The entry point's function; see ``deepwell.library.encoders``."""
    name, settings = (info.name, info.settings) if info is not None else (folder.name, None)
    return HubEncoder(folder, name, read_recipe(folder, settings), dim=dim)
