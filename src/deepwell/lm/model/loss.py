"""What training minimises: next tokens, tokens further on, balance (V3 sections 2.1.2 and 2.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepwell.errors import UsageError
from deepwell.lm.model.cross_entropy import linear_cross_entropy

if TYPE_CHECKING:
    from deepwell.lm.model.moe import Routing
    from deepwell.lm.model.transformer import Transformer

IGNORED = -100
"""The label of a token that is not predicted."""


@dataclass(frozen=True, slots=True)
class Losses:
    """The parts of a loss, float32 scalars.

    ``main`` and each of ``mtp`` are means over the ``tokens`` predicted; ``balance`` is the sum over layers, already
    weighed by ``aux_loss_alpha``; ``total`` is main + lambda/D * sum of mtp + balance.
    """

    total: Tensor
    main: Tensor
    mtp: tuple[Tensor, ...]
    balance: Tensor
    tokens: int


@dataclass(frozen=True, slots=True)
class Whole:
    """The sizes of a batch that is computed in parts: by one process after the other, or by several at once.

    Means over the parts of a batch would weigh tokens unequally, since parts predict different numbers of them; so the
    whole is counted first, and each part divides by it.
    """

    predictions: tuple[int, ...]
    """Tokens predicted one place ahead, two places ahead (the first MTP module), and so on."""
    sequences: int

    @classmethod
    def of(cls, labels: Tensor, documents: Tensor | None = None, *, depth: int = 0) -> Whole:
        """Count a batch, or a part of one: ``labels`` and ``documents`` [B, T] as ``Transformer.loss`` takes them."""
        counts = (int(wanted_places(labels, documents, ahead).sum()) for ahead in range(1, depth + 2))
        return cls(tuple(counts), labels.shape[0])

    def __add__(self, other: Whole) -> Whole:
        """Both together."""
        pairs = zip(self.predictions, other.predictions, strict=True)
        return Whole(tuple(a + b for a, b in pairs), self.sequences + other.sequences)


def language_model_losses(
    model: Transformer,
    tokens: Tensor,
    labels: Tensor | None,
    documents: Tensor | None,
    hidden: Tensor,
    balance: list[Tensor],
    mtp_weight: float,
    whole: Whole | None = None,
) -> Losses:
    """The losses for the normed states ``hidden`` [B, T, h] of ``tokens`` [B, T]. Runs the MTP modules.

    Raises:
        UsageError: ``labels`` have another shape than ``tokens``.
    """
    if labels is None:
        labels = tokens
    if labels.shape != tokens.shape:
        raise UsageError(f"labels have the shape {tuple(labels.shape)} and tokens {tuple(tokens.shape)}")
    main, count = _mean_loss(model, hidden, labels, documents, ahead=1, whole=whole)
    ahead = []
    for depth, (states, routing) in enumerate(further_states(model, tokens, documents, hidden), start=1):
        if routing is not None and routing.balance is not None:
            balance.append(routing.balance)
        ahead.append(_mean_loss(model, states, labels, documents, ahead=depth + 1, whole=whole)[0])
    total_balance = torch.stack(balance).sum() if balance else main.new_zeros(())
    if whole is not None:
        total_balance = total_balance * (tokens.shape[0] / whole.sequences)
    total = main + total_balance
    if ahead:
        total = total + mtp_weight / len(model.mtp) * torch.stack(ahead).sum()
    return Losses(total=total, main=main, mtp=tuple(ahead), balance=total_balance, tokens=count)


def further_states(
    model: Transformer, tokens: Tensor, documents: Tensor | None, hidden: Tensor
) -> Iterator[tuple[Tensor, Routing | None]]:
    """Run the MTP modules one after the other: the normed states [B, T - depth, h] of each, and where its tokens went.

    Arguments as for ``language_model_losses``. Rows too short for a module's predictions end it.
    """
    stream = hidden
    for depth, module in enumerate(model.mtp_modules(), start=1):
        if tokens.shape[1] <= depth + 1:
            break
        # Position i has the state of token i and the embedding of token i + depth, and predicts token i + depth + 1.
        stream = stream[:, : tokens.shape[1] - depth]
        near = None if documents is None else documents[:, : stream.shape[1]]
        sight = model.sight(tokens[:, : stream.shape[1]], documents=near)
        after = model.embed(tokens[:, depth:])
        if model.recompute == "blocks" and torch.is_grad_enabled():
            stream, routing = checkpoint(module, stream, after, sight, use_reentrant=False)
        else:
            stream, routing = module(stream, after, sight)
        yield module.norm(stream), routing


def _mean_loss(
    model: Transformer,
    hidden: Tensor,
    labels: Tensor,
    documents: Tensor | None,
    *,
    ahead: int,
    whole: Whole | None,
) -> tuple[Tensor, int]:
    """Mean cross-entropy of the token ``ahead`` places on, over the whole batch, and this part's count."""
    reach = labels.shape[1] - ahead
    wanted = wanted_places(labels, documents, ahead)
    count = int(wanted.sum())
    divisor = max(count if whole is None else whole.predictions[ahead - 1], 1)
    aims = labels[:, ahead:][wanted]
    return linear_cross_entropy(hidden[:, :reach][wanted], model.head_weight, aims, divisor), count


def wanted_places(labels: Tensor, documents: Tensor | None, ahead: int) -> Tensor:
    """Which places predict the token ``ahead`` of them, in their own document and row: [B, T - ahead] bool."""
    wanted = labels[:, ahead:] != IGNORED
    if documents is not None:
        # Documents are contiguous, so both ends in one document means that everything between is.
        wanted = wanted & (documents[:, ahead:] == documents[:, : labels.shape[1] - ahead])
    return wanted
