import pytest
import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.model.cache import LatentCache
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.conversions.exact import to_mla


@pytest.mark.parametrize("kind", ["network", "biased"])
def test_the_same_logits_from_a_cache_of_the_same_size(kind: str, text: Tensor, request: pytest.FixtureRequest) -> None:
    model: Transformer = request.getfixturevalue(kind)
    converted = to_mla(model)
    tokens = text[:40].view(2, 20)
    torch.testing.assert_close(converted(tokens), model(tokens), rtol=0, atol=1e-5)
    assert converted.config.kv_up_proj
    assert converted.config.cache_bytes_per_token() == model.config.cache_bytes_per_token()


def test_decoding_step_by_step_from_latents_agrees(network: Transformer, text: Tensor) -> None:
    converted = to_mla(network)
    tokens = text[None, :12]
    cache = LatentCache(converted.config, batch=1, capacity=12, dtype=torch.float32)
    steps = [converted(tokens[:, at : at + 1], cache=cache, form="absorbed") for at in range(12)]
    torch.testing.assert_close(torch.cat(steps, 1), network(tokens), rtol=0, atol=1e-4)


def test_every_weight_is_there_unchanged_and_kv_b_proj_learns(network: Transformer, text: Tensor) -> None:
    converted = to_mla(network)
    own = converted.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in network.state_dict().items())
    converted.loss(text[None, :20]).total.backward()
    gradient = converted.layers[0].self_attn.kv_b_proj.weight.grad
    assert gradient is not None and gradient.abs().max() > 0
    with torch.no_grad():
        converted.embed_tokens.weight.zero_()
    assert network.embed_tokens.weight.abs().max() > 0  # copies, not views


def test_modules_of_multi_token_prediction_are_converted_too(grouped: ModelConfig) -> None:
    model = Transformer(grouped.replace(num_nextn_predict_layers=1)).eval()
    converted = to_mla(model)
    tokens = torch.arange(16)[None]
    hidden = model.hidden(tokens)
    torch.testing.assert_close(converted.draft(hidden, tokens)[0], model.draft(hidden, tokens)[0], rtol=0, atol=1e-5)


def test_bf16_weights_stay_bf16(network: Transformer, text: Tensor) -> None:
    half = network.bfloat16()
    converted = to_mla(half)
    assert converted.dtype is torch.bfloat16
    tokens = text[None, :20]
    torch.testing.assert_close(converted(tokens), half(tokens), rtol=0, atol=0.05)


def test_mla_is_refused(network: Transformer) -> None:
    with pytest.raises(UsageError, match="multi-head latent attention already"):
        to_mla(to_mla(network))
