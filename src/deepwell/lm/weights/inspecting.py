"""What is inside a model, from headers alone: no weight is read, so it is quick for a model of any size.

>>> inspection = inspect_model("deepseek-v3")                        # a shape: counts, and no file behind them
>>> inspection.account.cache_bytes_per_token
70272
>>> inspect_model("models/my-model").stored                           # doctest: +SKIP
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from deepwell.errors import DeepwellError, MissingModelError, UsageError
from deepwell.lm.model.accounting import PARTS, Account, weights_of
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.named import NAMES, named
from deepwell.lm.weights.opening import locate

if TYPE_CHECKING:
    from deepwell.lm.weights.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file: what part of the network it is, its kind of numbers, and its bytes."""

    name: str
    part: str
    """One of ``accounting.PARTS``, or "other" for what the network has no place for."""
    layer: int | None
    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a model's tokenizer says of itself; ``problem`` is set, and nothing else, where it cannot be read."""

    vocab_size: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    chat_template: str = ""
    """Where it comes from: "own" for the model's files, "family" for one of ours, or empty."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """A network with what it costs, and the file it lies in if there is one."""

    name: str
    source: Literal["shape", "safetensors", "gguf"]
    path: Path | None
    config: ModelConfig
    account: Account
    stored: tuple[Stored, ...] = ()
    tokenizer: TokenizerFacts | None = None

    @property
    def bytes_by_part(self) -> dict[str, int]:
        """As the file stores them; of a shape, in bf16."""
        if not self.stored:
            return self.account.bytes_by_part
        return _sums(((one.part, one.size) for one in self.stored), [*PARTS, "other"])

    @property
    def bytes_by_kind(self) -> dict[str, int]:
        """Bytes by kind of numbers (BF16, Q4_K, ...), most first; empty for a shape."""
        sums = _sums((one.kind, one.size) for one in self.stored)
        return dict(sorted(sums.items(), key=lambda pair: -pair[1]))

    @property
    def bytes_by_layer(self) -> dict[int, int]:
        """As the file stores them; of a shape, in bf16."""
        if self.stored:
            return _sums((one.layer, one.size) for one in self.stored if one.layer is not None)
        every = weights_of(self.config)
        return _sums((one.layer, one.stored_bytes()) for one in every if one.layer is not None)


def inspect_model(name_or_path: str, *, context: int = 4096) -> Inspection:
    """Look into a model.

    Args:
        name_or_path: A model on this machine, by name; one of ``ModelConfig.named``, from its shape alone; a folder
            with a checkpoint; or a GGUF file.
        context: How many tokens the token sees whose FLOPs are counted.

    Raises:
        UsageError, MissingModelError: There is no such model.
        ModelFileError, ModelFormatError: Headers or config are damaged, or of a kind that is not read here.
        ModelConfigError: The network is of a kind that is not known here.
    """
    if context < 1:
        raise UsageError(f"a context of {context} tokens", hint="a token sees at least itself")
    if name_or_path in NAMES and not _is_here(name_or_path):
        config = named(name_or_path)
        return Inspection(name_or_path, "shape", None, config, Account.of(config, context=context))
    try:
        path = locate(name_or_path)
    except (UsageError, MissingModelError) as error:
        shapes = f"or look at a shape: {', '.join(NAMES)}"
        raise type(error)(error.message, hint="; ".join(filter(None, (error.hint, shapes)))) from error
    if path.is_dir():
        return _checkpoint(path, context)
    return _gguf(path, context)


def _is_here(name: str) -> bool:
    from deepwell import models

    try:
        return models.is_present(name)
    except DeepwellError:
        return False


def _checkpoint(folder: Path, context: int) -> Inspection:
    from deepwell.lm.weights.checkpoint import open_checkpoint
    from deepwell.lm.weights.names import layout
    from deepwell.lm.weights.tokenizer import Tokenizer

    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    places = {tensor.name: (tensor.into, tensor.layer) for tensor in layout(config)}
    parts = _parts(config)
    stored = []
    for name, tensor in checkpoint.tensors.items():
        into, layer = places.get(name.removesuffix("_scale_inv"), ("", None))
        part = parts.get(into, "other")
        if layer is not None and layer >= config.num_hidden_layers:
            part = PARTS[-1]  # with the copies of embedding and head that files keep there
        stored.append(Stored(name, part, layer, tensor.kind, tensor.end - tensor.begin))
    facts = _facts(lambda: Tokenizer.from_folder(folder))
    account = Account.of(config, context=context)
    return Inspection(config.name or folder.name, "safetensors", folder, config, account, tuple(stored), facts)


def _gguf(path: Path, context: int) -> Inspection:
    from deepwell.lm.weights.gguf.container import open_gguf
    from deepwell.lm.weights.gguf.fields import config_of
    from deepwell.lm.weights.tokenizer import Tokenizer

    file = open_gguf(path)
    config = config_of(file)
    stored = []
    for name, tensor in file.tensors.items():
        number = re.match(r"blk\.(\d+)\.", name)
        layer = int(number[1]) if number else None
        predicts = layer is not None and layer >= config.num_hidden_layers
        part = PARTS[-1] if predicts else next((part for mark, part in _GGUF_PARTS if mark in name), "other")
        stored.append(Stored(name, part, layer, tensor.kind, tensor.size))
    facts = _facts(lambda: Tokenizer.from_gguf(file.fields, source=str(path)))
    account = Account.of(config, context=context)
    return Inspection(config.name or path.stem, "gguf", path, config, account, tuple(stored), facts)


_GGUF_PARTS = (
    ("norm", "norms"),
    ("token_embd", "embedding"),
    ("attn_", "attention"),
    ("output.weight", "head"),
    ("shexp", "shared experts"),
    ("exps", "routed experts"),
    ("ffn_gate_inp", "router"),
    ("exp_probs", "router"),
    ("ffn_", "feed-forward"),
)
"""The first mark that is found in a tensor's name says what it is."""


def _parts(config: ModelConfig) -> dict[str, str]:
    """The part of each tensor by its name in memory, the routers' biases too, which are no parameters."""
    parts = {weight.name: weight.part for weight in weights_of(config)}
    return parts | {
        name.replace("gate.weight", "gate.e_score_correction_bias"): part
        for name, part in parts.items()
        if name.endswith("mlp.gate.weight")
    }


def _facts(read: Callable[[], Tokenizer]) -> TokenizerFacts:
    """What the tokenizer says; that it cannot be read is a fact too, and no reason to show nothing of the network."""
    try:
        tokenizer = read()
    except DeepwellError as error:
        return TokenizerFacts(problem=error.message)
    try:
        template = "own" if tokenizer.parts.templates else "family" if tokenizer.template else ""
    except DeepwellError:
        template = ""
    return TokenizerFacts(tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_ids, template)


def _sums(pairs: Iterable[tuple[T, int]], order: Iterable[T] = ()) -> dict[T, int]:
    """Sums by key, those of ``order`` first; nothing is kept that sums to zero."""
    sums = dict.fromkeys(order, 0)
    for key, count in pairs:
        sums[key] = sums.get(key, 0) + count
    return {key: count for key, count in sums.items() if count}
