import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from deepwell.errors import UsageError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.conversions.measure import Quality, compare, perplexity, tokens_per_second
from deepwell.lm.weights.conversions.upcycle import upcycle


def test_perplexity_is_that_of_a_plain_loop(network: Transformer, text: Tensor) -> None:
    found = perplexity(network, text, window=50)
    losses = [F.cross_entropy(network(one[None])[0, :-1], one[1:]) for one in text.view(12, 50)]
    assert math.isclose(found.perplexity, math.exp(float(torch.stack(losses).mean().detach())), rel_tol=1e-5)
    assert found == Quality(found.perplexity, 12 * 49, 50)


def test_what_does_not_fill_a_window_is_left_out(network: Transformer, text: Tensor) -> None:
    assert (
        perplexity(network, text[:120], window=50).perplexity == perplexity(network, text[:100], window=50).perplexity
    )


def test_a_long_window_is_looked_at_in_parts(
    network: Transformer, text: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = perplexity(network, text, window=100).perplexity
    monkeypatch.setattr("deepwell.lm.weights.conversions.measure._ROWS", 7)
    assert math.isclose(perplexity(network, text, window=100).perplexity, whole, rel_tol=1e-6)


def test_divergence_is_that_of_torch_and_nothing_from_itself(network: Transformer, text: Tensor) -> None:
    other = upcycle(network, experts=2, top_k=1, noise=0.3)
    steps: list[tuple[int, int]] = []
    found = compare(network, other, text, window=50, on_progress=lambda *step: steps.append(step))
    tokens = text.view(12, 50)
    with torch.no_grad():
        one, two = network(tokens).log_softmax(-1), other(tokens).log_softmax(-1)
    wanted = F.kl_div(two.flatten(0, 1), one.flatten(0, 1), log_target=True, reduction="batchmean")
    assert math.isclose(found.kl, float(wanted), rel_tol=1e-4)
    assert found.before == perplexity(network, text, window=50)
    assert math.isclose(found.after.perplexity, perplexity(other, text, window=50).perplexity)
    assert math.isclose(found.same_top, float((one.argmax(-1) == two.argmax(-1)).float().mean()), rel_tol=1e-6)
    assert steps[-1] == (12, 12)
    same = compare(network, network, text, window=50)
    assert (same.kl, same.same_top) == (0.0, 1.0)


def test_speed_is_of_each_network(network: Transformer, text: Tensor) -> None:
    speeds = tokens_per_second([network, network], text, window=50, rounds=1)
    assert len(speeds) == 2 and all(math.isfinite(one) and one > 0 for one in speeds)


def test_too_short_a_text_is_told(network: Transformer, text: Tensor) -> None:
    with pytest.raises(UsageError, match="the text to be measured on has 10 tokens; one window takes 50"):
        perplexity(network, text[:10], window=50)
