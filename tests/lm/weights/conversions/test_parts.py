"""The mathematics below compress and split, each against something that is plainly right."""

import pytest
import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.conversions.calibration import observe, projections
from deepwell.lm.weights.conversions.lowrank import Targets, factorise
from deepwell.lm.weights.conversions.neurons import balanced_clusters, group_neurons, unexplained
from deepwell.lm.weights.conversions.rebuild import rebuilt, windows_of
from deepwell.lm.weights.conversions.refit import LeastSquares, attend_in_place, fitted
from deepwell.lm.weights.conversions.rotary import choose_pairs, mix_pairs, share_key


def _moments(count: int, width: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(count, width, 2 * width, generator=generator) * torch.linspace(0.1, 2, width)[:, None]
    return drawn @ drawn.transpose(1, 2)


def test_one_map_is_factorised_as_its_singular_values_say() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 10, 12, generator=generator)
    eye = [torch.eye(width).expand(1, -1, -1) for width in (10, 12)]
    found = factorise(Targets(maps, *eye), 4, rounds=0, damping=0)
    values = torch.linalg.svdvals(maps[0])
    assert abs(found.losses[0] - float(values[4:].square().sum() / values.square().sum())) < 1e-5


def test_rounds_only_lower_the_loss_and_reach_a_stationary_point() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = Targets(torch.randn(5, 6, 12, generator=generator), _moments(5, 6, generator), _moments(5, 12, generator))
    found = factorise(targets, 4, rounds=12, steps=30)
    assert all(after <= before * (1 + 1e-5) for before, after in zip(found.losses, found.losses[1:], strict=False))
    assert found.losses[-1] < 0.95 * found.losses[0]
    down = found.down.requires_grad_()
    error = targets.maps - found.up @ down
    loss = ((targets.matter @ error @ targets.inputs) * error).sum()
    (slope,) = torch.autograd.grad(loss, down)
    assert float((slope * down).detach().abs().sum()) < 0.2 * float(loss.detach())


def test_full_rank_loses_nothing_and_more_is_filled_with_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = Targets(torch.randn(3, 6, 8, generator=generator), _moments(3, 6, generator), _moments(3, 8, generator))
    found = factorise(targets, 10)
    assert found.down.shape == (10, 8) and found.up.shape == (3, 6, 10)
    torch.testing.assert_close(found.up @ found.down, targets.maps, rtol=0, atol=1e-3)


def test_scores_are_the_same_whichever_way_heads_are_mixed(network: Transformer, text: Tensor) -> None:
    seen = observe(network, text[:100].view(2, 50))[0]
    matrix = projections(network.layers[0].self_attn, network.config)
    mix = mix_pairs(matrix, seen)
    assert bool((mix.energy[:, 0] >= mix.energy[:, 1]).all()) and bool((mix.coherence <= 1).all())
    counts = torch.tensor([2, 2, 2, 1])
    shared = share_key(matrix, seen, mix, counts)
    assert shared.key.shape == (14, 32) and shared.still_key.shape == (6, 2, 32)
    assert shared.kept.tolist() == [3, 7]
    # At one place nothing has turned: what is shared and what is left are the old scores, but for the mean turn.
    seen.turned = seen.energy.to(torch.complex64)
    shared = share_key(matrix, seen, mix, counts)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for head in range(6):
        old = (x @ matrix.query[head].T) @ (x @ matrix.key[head // 3].T).T
        new = (x @ shared.query[head].T) @ (x @ shared.key.T).T
        new += (x @ shared.still_query[head].T) @ (x @ shared.still_key[head].T).T
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3)


def test_pairs_that_turn_most_are_chosen(network: Transformer, text: Tensor) -> None:
    statistics = observe(network, text[:100].view(2, 50))
    mixes = [
        mix_pairs(projections(layer.self_attn, network.config), seen)
        for layer, seen in zip(network.layers, statistics, strict=True)
    ]
    assert choose_pairs(mixes, 4).tolist() == [1, 1, 1, 1]
    counts = choose_pairs(mixes, 3)
    assert int(counts.sum()) == 3 and int(counts.max()) <= 2
    for mix in mixes:
        mix.coherence.copy_(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert choose_pairs(mixes, 2).tolist() == [0, 0, 0, 2]
    with pytest.raises(UsageError, match="rope_dims is 18"):
        choose_pairs(mixes, 9)


def test_statistics_are_those_of_the_loss(network: Transformer, text: Tensor) -> None:
    """The slopes by the values' map: autograd's own, token by token, have the moments that were found."""
    steps: list[tuple[int, int]] = []
    (window,) = text[:40].view(1, 40)
    first = observe(network, window[None], on_progress=lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]
    again = observe(network, window[None])
    assert torch.equal(first[1].scored, again[1].scored)  # labels are drawn with a seed
    twice = observe(network, torch.stack([window, window]))
    assert not torch.equal(twice[1].outputs, first[1].outputs)  # other labels
    torch.testing.assert_close(twice[1].queries, first[1].queries)  # means, not sums
    shares = first[0].attended.diagonal(dim1=-2, dim2=-1).sum(-1)
    x = network.layers[0].input_layernorm(network.embed_tokens(window))
    assert bool((shares < x.square().sum(1).mean() * 1.01).all())  # a mean of inputs is no longer than they are
    turn = first[0].turned / first[0].energy
    assert bool((turn.abs() <= 1.0001).all())
    assert turn.abs()[:, -1].mean() > turn.abs()[:, 0].mean()  # slow pairs turn less than fast ones


def test_least_squares_is_that_of_torch_and_stays_where_it_knows_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator)
    inputs[:, 5] = 0
    wanted = torch.randn(50, 3, generator=generator)
    start = torch.randn(3, 6, generator=generator)
    fit = LeastSquares(start)
    fit.add(inputs[:20], wanted[:20])
    fit.add(inputs[20:], wanted[20:])
    found = fit.solve(1e-6)
    best = torch.linalg.lstsq(inputs[:, :5], wanted).solution.T
    torch.testing.assert_close(found[:, :5], best, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[:, 5], start[:, 5])
    torch.testing.assert_close(fit.solve(1e6), start, rtol=1e-3, atol=1e-3)


def test_clusters_are_equal_in_size_and_find_what_is_there() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(4, 16)
    truth = torch.arange(4).repeat(6)
    points = torch.nn.functional.normalize(centres[truth] + 0.05 * torch.randn(24, 16, generator=generator), dim=1)
    found = balanced_clusters(points, 4)
    assert torch.bincount(found).tolist() == [6, 6, 6, 6]
    for one in range(4):
        assert len(set(found[truth == one].tolist())) == 1
    assert torch.bincount(balanced_clusters(points[:, :1], 3)).tolist() == [8, 8, 8]


def test_busy_neurons_are_shared_and_those_that_work_together_are_together() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, size = 400, 4
    topic = torch.randint(3, (tokens,), generator=generator)
    activations = 0.1 * torch.randn(tokens, 16, generator=generator)
    activations[:, 12:] += 3 * torch.randn(tokens, 4, generator=generator)  # always busy
    for one in range(3):
        activations[:, one * size : (one + 1) * size] += (topic == one)[:, None] * 2.0
    always, groups = group_neurons(activations, torch.eye(16), experts=4, shared=1)
    assert always.tolist() == [12, 13, 14, 15]
    assert sorted(groups.tolist()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_what_others_tell_is_explained() -> None:
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(100, 3, generator=generator)
    activations = torch.cat([known, known @ torch.randn(3, 2, generator=generator)], dim=1)
    rest = unexplained(activations, torch.arange(3), torch.tensor([3, 4]))
    assert rest.norm() < 0.05 * activations[:, 3:].norm()


def test_windows_are_spread_over_the_text() -> None:
    windows = windows_of(torch.arange(105), 10, most=3)
    assert windows[:, 0].tolist() == [0, 40, 90]
    assert windows_of(torch.arange(20), 10).shape == (2, 10)


def test_a_network_is_rebuilt_as_a_copy(network: Transformer) -> None:
    copy = rebuilt(network, network.config, {"norm.weight": torch.zeros(32)})
    assert not copy.norm.weight.any() and network.norm.weight.any()


def test_attention_is_added_in_place_and_its_heads_are_kept(network: Transformer, text: Tensor) -> None:
    tokens = text[:60].view(2, 30)
    stream = network.embed_tokens(tokens).detach()
    block, before = network.layers[0], stream.clone()
    with torch.no_grad():
        heads = attend_in_place(network, block, stream, keep=True)
    added = (heads @ block.self_attn.o_proj.weight.T).view_as(stream)
    torch.testing.assert_close(stream, before + added, rtol=0, atol=1e-5)
    assert not block.self_attn.o_proj._forward_hooks


def test_a_matrix_is_fitted_where_that_helps_and_kept_where_it_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 6, generator=generator)
    truth, start = torch.randn(3, 6, generator=generator), torch.randn(3, 6, generator=generator)
    torch.testing.assert_close(fitted(start, inputs, inputs @ truth.T), truth, rtol=0, atol=0.05)
    few = torch.randn(40, 60, generator=generator)
    start = torch.randn(3, 60, generator=generator)
    noisy = few @ start.T + 5 * torch.randn(40, 3, generator=generator)
    assert torch.equal(fitted(start, few, noisy), start)
