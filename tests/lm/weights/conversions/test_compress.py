import pytest
import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.cache import LatentCache
from deepwell.lm.model.config import ModelConfig, RopeScaling
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.conversions import compress as module
from deepwell.lm.weights.conversions.compress import CalibratedNetwork, calibrate, compress
from deepwell.lm.weights.conversions.exact import to_mla
from deepwell.lm.weights.conversions.measure import compare
from deepwell.lm.weights.conversions.rebuild import windows_of
from deepwell.lm.weights.conversions.refit import refit


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 50)


@pytest.fixture
def calibrated(network: Transformer, text: Tensor) -> CalibratedNetwork:
    return calibrate(network, text)


@pytest.mark.parametrize("kind", ["network", "biased"])
def test_with_every_pair_and_every_value_kept_nothing_is_lost(
    kind: str, text: Tensor, request: pytest.FixtureRequest
) -> None:
    model: Transformer = request.getfixturevalue(kind)
    whole = compress(model, kv_rank=16, rope_dims=16, calibration=text)
    tokens = text[None, :50]
    torch.testing.assert_close(whole(tokens), model(tokens), rtol=0, atol=2e-3)
    assert whole.config.rope_key_heads == 1 and whole.config.qk_nope_head_dim == 0


def test_a_stretched_rope_is_kept_and_its_temper_too(grouped: ModelConfig, text: Tensor) -> None:
    scaling = RopeScaling(kind="yarn", factor=4.0, original_max_position_embeddings=16)
    model = Transformer(grouped.replace(rope_scaling=scaling)).eval()
    whole = compress(model, kv_rank=16, rope_dims=16, calibration=text)
    assert whole.config.rope_scaling is None and whole.config.rope_frequencies is not None
    tokens = text[None, :50]
    torch.testing.assert_close(whole(tokens), model(tokens), rtol=0, atol=2e-3)
    stock = compress(model, kv_rank=32, rope_dims=8, calibration=text)
    assert stock.config.rope_scaling == scaling


def test_one_pair_of_each_frequency_needs_no_frequencies_of_its_own(calibrated: CalibratedNetwork) -> None:
    config = calibrated.compress(kv_rank=12, rope_dims=8).config
    assert config.rope_frequencies is None and config.rope_theta == 100.0
    assert (config.qk_rope_head_dim, config.qk_nope_head_dim, config.rope_key_heads) == (8, 8, 1)
    other = calibrated.compress(kv_rank=12, rope_dims=6).config
    assert other.rope_frequencies is not None and len(other.rope_frequencies) == 3
    assert other.latent_width == 18


def test_less_cache_costs_more_and_the_more_is_kept_the_less(calibrated: CalibratedNetwork, text: Tensor) -> None:
    losses = []
    for rank, dims in ((16, 14), (16, 8), (6, 8), (2, 2)):
        smaller = calibrated.compress(kv_rank=rank, rope_dims=dims, refit=False)
        losses.append(compare(calibrated.model, smaller, text, window=50).kl)
    assert losses == sorted(losses)
    assert losses[0] < 0.2 * losses[-1]


def test_what_the_text_shows_is_worth_something(
    calibrated: CalibratedNetwork, text: Tensor, network: Transformer
) -> None:
    """Against the same rank and pairs with every head, token and direction equally important."""
    flat = []
    for seen in calibrated.statistics:
        eye = {name: torch.eye(getattr(seen, name).shape[-1]).expand_as(getattr(seen, name)) for name in (
            "queries", "scored", "outputs", "attended", "looked_at"
        )}  # fmt: skip
        flat.append(type(seen)(**eye, energy=seen.energy, turned=seen.energy.to(torch.complex64)))
    informed = calibrated.compress(kv_rank=8, rope_dims=8, refit=False)
    uninformed = CalibratedNetwork(network, flat, calibrated.windows).compress(kv_rank=8, rope_dims=8, refit=False)
    assert compare(network, informed, text, window=50).kl < 0.8 * compare(network, uninformed, text, window=50).kl


def test_a_compressed_network_decodes_from_its_smaller_cache(calibrated: CalibratedNetwork, text: Tensor) -> None:
    smaller = calibrated.compress(kv_rank=8, rope_dims=8)
    tokens = text[None, :12]
    cache = LatentCache(smaller.config, batch=1, capacity=12, dtype=torch.float32)
    assert cache.bytes_per_token == 2 * 16 * 4
    steps = [smaller(tokens[:, at : at + 1], cache=cache) for at in range(12)]
    torch.testing.assert_close(torch.cat(steps, 1), smaller(tokens), rtol=0, atol=1e-4)


def test_the_original_is_left_as_it_was(network: Transformer, text: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    compress(network, kv_rank=8, rope_dims=8, calibration=text)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert not network.layers[0].self_attn._forward_hooks


@pytest.mark.parametrize(
    ("rank", "dims", "said"),
    [(0, 8, "kv_rank is 0"), (8, 7, "rope_dims is 7"), (8, 0, "rope_dims is 0"), (8, 18, "have 16")],
)
def test_numbers_out_of_range_are_told(network: Transformer, text: Tensor, rank: int, dims: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compress(network, kv_rank=rank, rope_dims=dims, calibration=text)


def test_too_little_text_and_mla_are_refused(network: Transformer, text: Tensor) -> None:
    with pytest.raises(UsageError, match="calibration text has 20 tokens; one window takes 50"):
        compress(network, kv_rank=8, rope_dims=8, calibration=text[:20])
    with pytest.raises(UsageError, match="already"):
        calibrate(to_mla(network), text)


def test_output_matrices_fitted_again_win_some_back(calibrated: CalibratedNetwork) -> None:
    model = calibrated.model
    text = torch.randint(96, (2000,), generator=torch.Generator().manual_seed(2))
    smaller = calibrated.compress(kv_rank=6, rope_dims=6, refit=False)
    steps: list[tuple[int, int]] = []
    fitted = refit(model, smaller, windows_of(text, 50), on_progress=lambda *step: steps.append(step))
    assert compare(model, fitted, text, window=50).kl < 0.95 * compare(model, smaller, text, window=50).kl
    assert steps == [(1, 2), (2, 2)]
    keys = "layers.1.self_attn.kv_a_proj_with_mqa.weight"
    assert torch.equal(fitted.state_dict()[keys], smaller.state_dict()[keys])
    assert not torch.equal(fitted.layers[1].self_attn.o_proj.weight, smaller.layers[1].self_attn.o_proj.weight)


def test_fitting_what_has_not_changed_changes_nothing(network: Transformer, text: Tensor) -> None:
    fitted = refit(network, to_mla(network), windows_of(text, 50))
    torch.testing.assert_close(fitted(text[None, :50]), network(text[None, :50]), rtol=0, atol=1e-4)
