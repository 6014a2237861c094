"""Logits to tokens, one row a request, no row aware of another.

A draw takes one number from 0 to 1, and the token where the summed probabilities pass it. The number is a hash of the
request's seed and of how many tokens its answer has, so nothing is to be kept or restored: a request draws the same
tokens alone, in any batch, after it was evicted and computed again, and with drafts or without.

Log-probabilities are the network's own: of all tokens, at the sampling temperature (1 where that is 0), before any
penalty, grammar, top_k, top_p and min_p. They are what training needs and what ``Model.score`` gives, and do not change
with what was cut away around a token.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from deepwell.errors import DeepwellError, UsageError
from deepwell.lm.engine.params import LEAST_TEMPERATURE, SamplingParams


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token that was chosen.

    Attributes:
        token: Its id.
        logprob: Its log-probability; None unless ``SamplingParams.logprobs`` asks for it.
        top: The most probable tokens with theirs, best first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Constraint(Protocol):
    """What keeps an answer to a form: a grammar, a budget for thoughts."""

    @property
    def done(self) -> bool:
        """Whether the answer is whole, and nothing may follow but its end."""
        ...

    @property
    def forced(self) -> Sequence[int]:
        """Tokens that come next because no others may, as far as that is known."""
        ...

    def restrict(self, logits: Tensor) -> Tensor:
        """Logits [V] with -inf where no token may come now; the given tensor itself when all may."""
        ...

    def accept(self, token: int) -> None:
        """Go on behind a token that was chosen."""
        ...


class SamplerState:
    """What the choice of a request's next token depends on besides the logits.

    Attributes:
        params: How the answer is written.
        count: Tokens of the answer so far.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_tokens: Sequence[int],
        vocab_size: int,
        *,
        constraint: Constraint | None = None,
    ) -> None:
        """Start a request's answer.

        Args:
            params: How it is written.
            prompt_tokens: What stands before it, for the repetition penalty.
            vocab_size: Tokens that have a text; a network may have more rows of logits, which are never chosen.
            constraint: What keeps the answer to a form.
        """
        self.params = params
        self.vocab_size = vocab_size
        self.count = 0
        self._constraint = constraint
        self._seed = (secrets.randbits(64) if params.seed is None else params.seed) & (2**64 - 1)
        self._counts: Tensor | None = None
        self._seen: Tensor | None = None
        if params.penalises:
            self._counts = torch.zeros(vocab_size)
            self._seen = torch.zeros(vocab_size, dtype=torch.bool)
            known = [token for token in set(prompt_tokens) if 0 <= token < vocab_size]
            self._seen[torch.tensor(known, dtype=torch.int64)] = True

    @property
    def adjusts(self) -> bool:
        """Whether ``adjust`` can change anything."""
        return self._constraint is not None or self._counts is not None

    @property
    def done(self) -> bool:
        """Whether the answer has the form that was asked for, and nothing may follow: no token need be computed."""
        return self._constraint is not None and self._constraint.done

    @property
    def forced(self) -> Sequence[int]:
        """Tokens that come next because no others may: guesses that are always right."""
        return () if self._constraint is None else self._constraint.forced

    def adjust(self, logits: Tensor) -> Tensor:
        """Penalties, then what may not come: logits [V] float32 to new ones; the given tensor is left as it is."""
        if self._counts is not None and self._seen is not None:
            if self._counts.device != logits.device:
                self._counts, self._seen = self._counts.to(logits.device), self._seen.to(logits.device)
            penalty = self.params.repetition_penalty
            if penalty != 1.0:
                pressed = torch.where(logits > 0, logits / penalty, logits * penalty)
                logits = torch.where(self._seen, pressed, logits)
            logits = logits - self.params.frequency_penalty * self._counts
            logits = logits - self.params.presence_penalty * (self._counts > 0)
        return logits if self._constraint is None else self._constraint.restrict(logits)

    def accept(self, token: int) -> None:
        """Put a chosen token behind the answer."""
        self.count += 1
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True
        if self._constraint is not None:
            self._constraint.accept(token)

    def uniform(self) -> float:
        """The number in [0, 1) that draws the next token: 53 bits of a hash of seed and position."""
        digest = hashlib.blake2b(struct.pack("<QQ", self._seed, self.count), digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


@torch.no_grad()
def sample(logits: Tensor, states: Sequence[SamplerState]) -> list[Sampled]:
    """Choose the next token of each request; ``SamplerState.accept`` is the caller's to call.

    Args:
        logits: [B, V], any float dtype; computed with in float32. V may exceed the states' ``vocab_size``.
        states: One for each row, all with the same ``vocab_size``.

    Raises:
        UsageError: Not one state a row, or the network has fewer tokens than the vocabulary.
        DeepwellError: The logits are not numbers, or no token may come.
    """
    if logits.dim() != 2 or len(states) != logits.shape[0]:
        raise UsageError(f"logits {list(logits.shape)} do not have one row for each of {len(states)} requests")
    if not states:
        return []
    width = states[0].vocab_size
    if any(state.vocab_size != width for state in states) or width > logits.shape[1]:
        raise UsageError(f"{logits.shape[1]} logits do not fit a vocabulary of {width}")
    full = logits.float()
    rows = full[:, :width]
    if any(state.adjusts for state in states):
        rows = torch.stack([state.adjust(row) for row, state in zip(rows, states, strict=True)])
    best = rows.max(dim=-1)
    highest: list[float] = best.values.tolist()
    if not all(math.isfinite(value) for value in highest):
        raise _no_choice(highest)
    tokens: list[int] = best.indices.tolist()
    drawing = [index for index, state in enumerate(states) if not state.params.greedy]
    if drawing:
        chosen = _draw(rows[drawing] if len(drawing) < len(states) else rows, [states[index] for index in drawing])
        for index, token in zip(drawing, chosen, strict=True):
            tokens[index] = token
    return [
        Sampled(token) if state.params.logprobs is None else _with_logprobs(row, token, state.params)
        for token, row, state in zip(tokens, full, states, strict=True)
    ]


def verify(logits: Tensor, state: SamplerState, draft: Sequence[int], ends: Collection[int] = ()) -> list[Sampled]:
    """Choose tokens along a draft, up to and with the first one that differs from it; the state accepts them.

    A draft here is a guess without a probability (looked up, or an argmax), so rejection sampling (Leviathan et al.
    2023, 2.3, with all of q on one token) is this: draw from p as always, and keep on while the draws are the draft's.
    The answer is, token for token, that of no drafts.

    Args:
        logits: [K + 1, V]: behind the last token of the answer, then behind each of the K tokens of the draft.
        state: The request's.
        draft: K tokens.
        ends: Tokens that end the answer; none is chosen behind one.

    Returns:
        From 1 to K + 1 tokens; all but the last are the draft's.
    """
    if logits.shape[0] != len(draft) + 1:
        raise UsageError(f"logits {list(logits.shape)} do not have one row more than a draft of {len(draft)}")
    chosen = []
    for index in range(len(draft) + 1):
        one = sample(logits[index : index + 1], [state])[0]
        state.accept(one.token)
        chosen.append(one)
        if index == len(draft) or one.token != draft[index] or one.token in ends or state.done:
            break
    return chosen


def _draw(rows: Tensor, states: Sequence[SamplerState]) -> list[int]:
    """One token for each row [N, V] of adjusted logits."""
    heat = torch.tensor([state.params.temperature for state in states], device=rows.device)
    probs = torch.softmax(rows / heat[:, None], dim=-1)
    for row, state in zip(probs, states, strict=True):
        least = _least_kept(row, state.params)
        if least > 0.0:
            row.masked_fill_(row < least, 0.0)
    sums = probs.cumsum(dim=-1, dtype=torch.float64)
    drawn = torch.tensor([state.uniform() for state in states], dtype=torch.float64, device=rows.device)
    total = sums[:, -1]
    aim = torch.minimum(drawn * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens: list[int] = torch.searchsorted(sums, aim[:, None], right=True)[:, 0].tolist()
    return tokens


def _least_kept(probs: Tensor, params: SamplingParams) -> float:
    """The probability below which tokens [V] are dropped. What equals it stays, so that order decides nothing."""
    least = 0.0
    if params.min_p > 0.0:
        least = params.min_p * float(probs.max())
    few = 0 < params.top_k < len(probs)
    if not few and params.top_p == 1.0:
        return least
    best = probs.topk(params.top_k).values if few else _descending(probs)
    if few:
        least = max(least, float(best[-1]))
    if params.top_p < 1.0:
        sums = best.cumsum(0, dtype=torch.float64)
        last = int(torch.searchsorted(sums, params.top_p * float(sums[-1])))
        least = max(least, float(best[min(last, len(best) - 1)]))
    return least


def _descending(values: Tensor) -> Tensor:
    """Numbers [N], the largest first. On a CPU numpy sorts a vocabulary ten times as fast as torch does."""
    if values.device.type != "cpu":
        return values.sort(descending=True).values
    return torch.from_numpy(np.sort(values.numpy())).flip(0)


def _with_logprobs(row: Tensor, token: int, params: SamplingParams) -> Sampled:
    """The chosen token with log-probabilities from all logits [V] of the network."""
    heat = params.temperature if params.temperature >= LEAST_TEMPERATURE else 1.0
    logprobs = torch.log_softmax(row / heat, dim=-1)
    best = logprobs.topk(params.logprobs or 0)
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Sampled(token, float(logprobs[token]), top)


def _no_choice(highest: Sequence[float]) -> DeepwellError:
    if any(value == -math.inf for value in highest):
        return DeepwellError("the grammar leaves no token that may come next", hint="Simplify the schema or pattern.")
    return DeepwellError(
        "the network gave logits that are not finite numbers",
        hint="Its weights are damaged, or too large for this precision: check them, or try another precision.",
    )
