"""What training minimises: next tokens, tokens further on, balance (V3 sections 2.1.2 and 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.products import linear_cross_entropy

if TYPE_CHECKING:
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


def language_model_losses(
    model: Transformer,
    tokens: Tensor,
    labels: Tensor | None,
    documents: Tensor | None,
    hidden: Tensor,
    balance: list[Tensor],
    mtp_weight: float,
) -> Losses:
    """The losses for the normed states ``hidden`` [B, T, h] of ``tokens`` [B, T]. Runs the MTP modules.

    Raises:
        UsageError: ``labels`` have another shape than ``tokens``.
    """
    if labels is None:
        labels = tokens
    if labels.shape != tokens.shape:
        raise UsageError(f"labels have the shape {tuple(labels.shape)} and tokens {tuple(tokens.shape)}")
    main, count = _mean_loss(model, hidden, labels, documents, ahead=1)
    stream, ahead = hidden, []
    for depth, module in enumerate(model.mtp_modules(), start=1):
        if tokens.shape[1] <= depth + 1:
            break
        # Position i has the state of token i and the embedding of token i + depth, and predicts token i + depth + 1.
        stream = stream[:, : tokens.shape[1] - depth]
        near = None if documents is None else documents[:, : stream.shape[1]]
        sight = model.sight(tokens[:, : stream.shape[1]], documents=near)
        stream, routing = module(stream, model.embed_tokens(tokens[:, depth:]), sight)
        if routing is not None and routing.balance is not None:
            balance.append(routing.balance)
        ahead.append(_mean_loss(model, module.norm(stream), labels, documents, ahead=depth + 1)[0])
    total_balance = torch.stack(balance).sum() if balance else main.new_zeros(())
    total = main + total_balance
    if ahead:
        total = total + mtp_weight / len(model.mtp) * torch.stack(ahead).sum()
    return Losses(total=total, main=main, mtp=tuple(ahead), balance=total_balance, tokens=count)


def _mean_loss(
    model: Transformer, hidden: Tensor, labels: Tensor, documents: Tensor | None, *, ahead: int
) -> tuple[Tensor, int]:
    """Mean cross-entropy of the token ``ahead`` places on; no prediction leaves its document or the row."""
    reach = labels.shape[1] - ahead
    aims = labels[:, ahead:]
    wanted = aims != IGNORED
    if documents is not None:
        # Documents are contiguous, so both ends in one document means that everything between is.
        wanted = wanted & (documents[:, ahead:] == documents[:, :reach])
    count = int(wanted.sum())
    total = linear_cross_entropy(hidden[:, :reach][wanted], model.head_weight, aims[wanted])
    return total / max(count, 1), count
