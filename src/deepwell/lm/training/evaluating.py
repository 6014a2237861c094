"""Looks at a network while it learns: its losses on what was held back, and what it writes.

Nothing of the run moves by being looked at: expert loads, routing biases, random states and the training flag are as
before, so a run that is looked at often computes the same bits as one that never is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from deepwell.errors import DataError
from deepwell.lm.model.cross_entropy import linear_cross_entropy
from deepwell.lm.model.loss import further_states, wanted_places
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training.records import Validated

if TYPE_CHECKING:
    from deepwell.lm.weights.tokenizer import Tokenizer

_LOGITS = 2**22
"""Logits that are in memory at once."""
_BLOCK = 16
"""Tokens of a block of the engine's cache."""


class Batch(Protocol):
    """Some rows: ``tokens`` and ``labels`` [B, T] int64, -100 where nothing is predicted."""

    @property
    def tokens(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def documents(self) -> Tensor | None: ...

    @property
    def bytes(self) -> int: ...


class Rows(Protocol):
    """Rows of what was held back."""

    def __len__(self) -> int: ...

    def batch(self, first: int, count: int) -> Batch:
        """The rows from ``first`` on."""


class _Sums:
    """Over all predictions a given number of tokens ahead."""

    def __init__(self) -> None:
        self.nats = 0.0
        self.count = 0
        self.right = 0

    @property
    def loss(self) -> float:
        return self.nats / max(self.count, 1)


@torch.no_grad()
def validate(model: Transformer, rows: Rows, *, count: int, micro: int, step: int = 0) -> Validated:
    """Losses of the first ``count`` rows, ``micro`` at a time.

    Every prediction weighs the same, whatever row it stands in, and numbers are added in float64; so ``micro`` changes
    no more than rounding. Logits are there a few rows at a time, never for a whole batch.

    Args:
        model: The network, in whatever precision it trains; spread over processes if all of them call this.
        rows: What was held back.
        count: Rows to look at; all of them if there are fewer.
        micro: Rows computed at once.
        step: For the record.

    Returns:
        Means over predictions: the loss in nats, bits per byte of the text that was predicted (comparable between
        tokenizers), and for each MTP module its loss and the share of its predictions whose best guess was right.

    Raises:
        DataError: There are no rows.
    """
    count = min(count, len(rows))
    if count < 1:
        raise DataError("there are no rows to validate on", hint="set data.validation above 0, or give more text")
    sums = [_Sums() for _ in range(1 + len(model.mtp))]
    seen_bytes = 0
    with evaluating(model):
        for first in range(0, count, max(micro, 1)):
            batch = rows.batch(first, min(max(micro, 1), count - first))
            seen_bytes += int(batch.bytes)
            _add(model, batch, sums)
    main, *ahead = sums
    return Validated(
        step=step,
        loss=main.loss,
        bits_per_byte=main.nats / math.log(2) / seen_bytes if seen_bytes else 0.0,
        predictions=main.count,
        mtp_losses=tuple(one.loss for one in ahead),
        mtp_right=tuple(one.right / max(one.count, 1) for one in ahead),
    )


def _add(model: Transformer, batch: Batch, sums: Sequence[_Sums]) -> None:
    tokens, labels = batch.tokens.to(model.device), batch.labels.to(model.device)
    documents = None if batch.documents is None else batch.documents.to(model.device)
    hidden = model.hidden(tokens, documents=documents)
    _add_depth(model, hidden, labels, documents, 1, sums[0])
    for depth, (states, _) in enumerate(further_states(model, tokens, documents, hidden), start=1):
        _add_depth(model, states, labels, documents, depth + 1, sums[depth])


def _add_depth(
    model: Transformer, states: Tensor, labels: Tensor, documents: Tensor | None, ahead: int, sums: _Sums
) -> None:
    places = wanted_places(labels, documents, ahead)
    chosen, aims = states[:, : labels.shape[1] - ahead][places], labels[:, ahead:][places]
    sums.count += aims.shape[0]
    sums.nats += float(linear_cross_entropy(chosen, model.head_weight, aims))
    if ahead > 1:
        size = max(16, _LOGITS // model.config.vocab_size)
        for part, aim in zip(chosen.split(size), aims.split(size), strict=True):
            sums.right += int((model.head(part).argmax(-1) == aim).sum())


@contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    """The network as it is used; after it every module trains or not, as before.

    Where weights are spread over processes they are also let go again: gathered ones would go on to be used after the
    next step has changed them.
    """
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
            if callable(reshard := getattr(module, "reshard", None)):
                reshard()


def sample(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    tokens: int,
    seed: int,
    temperature: float = 0.8,
    chats: bool = False,
) -> list[str]:
    """What the network writes behind each prompt, by the engine that its users will have.

    Computed in the dtype of the weights (float32 masters) and by plain products, in whatever precision it trains. The
    same seed gives the same texts from the same weights. Global random states do not move.

    Args:
        model: The network, whole in this process.
        tokenizer: Its tokenizer.
        prompts: What to go on from; "" is the beginning of a text.
        tokens: At most that many are written, fewer where the network ends the text or its length is reached.
        seed: Of the draws; each prompt has its own.
        temperature: Logits are divided by it; 0 takes the most probable token.
        chats: Prompts are what a user says, and what is written answers them, in the form of the tokenizer's chats.
    """
    from deepwell.lm.engine.model import Model
    from deepwell.lm.engine.params import SamplingParams

    longest = model.config.max_position_embeddings
    begun = [_begun(model, tokenizer, prompt, chats=chats)[: longest - 1] for prompt in prompts]
    params = [
        SamplingParams(temperature=temperature, seed=seed + index, max_tokens=max(1, min(tokens, longest - len(one))))
        for index, one in enumerate(begun)
    ]
    if not begun or tokens < 1:
        return [""] * len(begun)
    blocks = sum(-(-(len(one) + tokens) // _BLOCK) + 1 for one in begun)
    width = model.config.cache_bytes_per_token(model.dtype.itemsize)
    with evaluating(model), _plain(model):
        writer = Model(model, tokenizer, cache_bytes=int(blocks * _BLOCK * width), speculate=False)
        return [completion.text for completion in writer.generate(begun, params)]


def _begun(model: Transformer, tokenizer: Tokenizer, prompt: str, *, chats: bool) -> list[int]:
    """The prompt's tokens. A text has something before it in training: a begin token, or the end of another text."""
    if chats and prompt:
        return tokenizer.chat([{"role": "user", "content": prompt}])
    if found := tokenizer.encode(prompt):
        return list(found)
    begin = tokenizer.bos_token_id
    ends = (*tokenizer.eos_token_ids, *model.config.eos_token_id)
    return [begin if begin is not None else ends[0] if ends else 0]


@contextmanager
def _plain(model: Transformer) -> Iterator[None]:
    """Without what training has put in: activations of another dtype, other products, kept and restored.

    The engine also lays matrices that read the same input side by side and makes the parameters views of that; they get
    their own memory back, with the same numbers in it, so that training goes on with what it had.
    """
    held = [(parameter, parameter.data) for parameter in model.parameters()]
    hooks = [
        (module, name, vars(module)[name])
        for module in model.modules()
        for name in ("product", "activation")
        if name in vars(module)
    ]
    dtype = model.compute_dtype
    try:
        model.compute_dtype = None
        for module, name, _ in hooks:
            delattr(module, name)
        yield
    finally:
        model.compute_dtype = dtype
        for module, name, hook in hooks:
            setattr(module, name, hook)
        for parameter, data in held:
            parameter.data = data
