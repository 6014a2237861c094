"""How well a network predicts a text, and how far it is from another network.

Perplexity is exp of the mean cross-entropy; the divergence is KL(reference || model), in nats, both means over tokens.
A text is cut into windows that do not overlap, and the first token of each window is not predicted, so the figures
depend on the window: say it with them. Products are those of the network's dtype, softmax and sums float32 and float64.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.conversions.rebuild import windows_of

__all__ = ["Comparison", "Quality", "compare", "perplexity", "tokens_per_second"]

_ROWS = 256
"""Rows of logits that are looked at together: 50 MB of a vocabulary of 49,152."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one network on one text."""

    perplexity: float
    tokens: int
    """Tokens that were predicted."""
    window: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of a network and the one that it was made from."""

    before: Quality
    after: Quality
    kl: float
    """Mean KL(before || after) in nats a token."""
    same_top: float
    """Share of places at which both have the same first token."""


def perplexity(
    model: Transformer, tokens: Tensor, *, window: int = 1024, on_progress: Callable[[int, int], None] | None = None
) -> Quality:
    """Perplexity of ``model`` on ``tokens`` [N], in windows of ``window`` tokens that do not overlap.

    Raises:
        UsageError: The text is shorter than one window.
    """
    return _run([model], tokens, window, on_progress)[0][0]


def compare(
    before: Transformer,
    after: Transformer,
    tokens: Tensor,
    *,
    window: int = 1024,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Both perplexities and the divergence, in one pass over ``tokens`` [N].

    Raises:
        UsageError: The text is shorter than one window.
    """
    (first, second), kl, same = _run([before, after], tokens, window, on_progress)
    return Comparison(first, second, kl, same)


@torch.inference_mode()
def _run(
    models: list[Transformer], tokens: Tensor, window: int, on_progress: Callable[[int, int], None] | None
) -> tuple[list[Quality], float, float]:
    windows = windows_of(tokens, window, what="the text to be measured on")
    lost = [0.0] * len(models)
    divergence, same, places = 0.0, 0, 0
    for number, one in enumerate(windows):
        hidden = [model.hidden(one[None].to(model.device))[0] for model in models]
        for start in range(0, window, _ROWS):
            chances = [
                model.head(rows[start : start + _ROWS]).float().log_softmax(-1)
                for model, rows in zip(models, hidden, strict=True)
            ]
            aims = one[start + 1 : start + 1 + _ROWS].to(chances[0].device)
            for which, chance in enumerate(chances):
                lost[which] -= float(chance[: len(aims)].gather(1, aims[:, None].to(chance.device)).double().sum())
            if len(chances) == 2:
                reference, other = chances[0], chances[1].to(chances[0].device)
                divergence += float((reference.exp() * (reference - other)).sum(-1).double().sum())
                same += int((reference.argmax(-1) == other.argmax(-1)).sum())
            places += len(chances[0])
        if on_progress is not None:
            on_progress(number + 1, len(windows))
    predicted = len(windows) * (window - 1)
    found = [Quality(math.exp(min(one / predicted, 700.0)), predicted, window) for one in lost]
    return found, max(divergence / places, 0.0), same / places


@torch.inference_mode()
def tokens_per_second(models: list[Transformer], tokens: Tensor, *, window: int = 512, rounds: int = 3) -> list[float]:
    """Speed of a forward pass without the head, one window at a time: the best of some rounds taken in turn.

    Raises:
        UsageError: The text is shorter than one window.
    """
    one = windows_of(tokens, window, most=1, what="the text to be measured on")
    best = [math.inf] * len(models)
    for _ in range(rounds + 1):  # the first warms
        for which, model in enumerate(models):
            start = time.perf_counter()
            model.hidden(one.to(model.device))
            best[which] = min(best[which], time.perf_counter() - start)
    return [window / seconds for seconds in best]
