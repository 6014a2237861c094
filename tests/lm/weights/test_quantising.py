"""What a model loses to rounding: by matrix, by part, and nothing where its file was rounded already."""

from pathlib import Path

import pytest
import torch

from deepwell.errors import ModelFormatError, UsageError
from deepwell.lm.model.accounting import Weight, weights_of
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.precision.integers import error_of, quantise
from deepwell.lm.weights.gguf.writing import write_gguf
from deepwell.lm.weights.quantising import (
    WORDS,
    bits_for,
    padded_quantise,
    quantisation,
    quantisation_of,
    round_in_place,
)
from deepwell.lm.weights.writing import write_checkpoint


def network(name: str = "debug-moe", seed: int = 0) -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer(ModelConfig.named(name))


def test_the_head_keeps_eight_bits_and_some_weights_all() -> None:
    apart = {weight.name: bits_for(weight, 4) for weight in weights_of(ModelConfig.named("debug-moe"))}
    assert {name for name, bits in apart.items() if bits == 8} == {"lm_head.weight"}
    whole = {name for name, bits in apart.items() if bits is None}
    marks = ("norm", "mlp.gate.weight", "kv_b_proj", "embed_tokens")
    assert whole == {name for name in apart if any(mark in name for mark in marks)}
    assert apart["layers.1.mlp.experts.down_proj"] == apart["mtp.0.eh_proj.weight"] == 4

    tied = {weight.name: bits_for(weight, 4) for weight in weights_of(ModelConfig.named("smollm2-135m"))}
    assert tied["embed_tokens.weight"] == 8
    assert bits_for(Weight("layers.0.self_attn.q_proj.bias", (8,), "attention", 0), 4) is None


def test_rounding_in_place_gives_the_weights_that_are_told() -> None:
    model, before = network(), network()
    round_in_place(model, 4)
    for weight in weights_of(model.config):
        own, bits = model.get_parameter(weight.name).detach(), bits_for(weight, 4)
        was = before.get_parameter(weight.name).detach()
        if bits is None:
            assert torch.equal(own, was), weight.name
        else:
            rounded = padded_quantise(was.flatten(0, -2), bits, where="").dequantised()[:, : was.shape[-1]]
            assert torch.equal(own, rounded.view(was.shape)), weight.name


@pytest.mark.parametrize("word", ["int8", "int4"])
def test_every_matrix_is_counted_once(word: str) -> None:
    model, told = network(), []
    found = quantisation_of(model, WORDS[word], on_progress=lambda done, total: told.append((done, total)))
    weights = list(weights_of(model.config))
    rounded = [weight for weight in weights if bits_for(weight, WORDS[word]) is not None]
    assert [one.name for one in found.matrices] == [weight.name for weight in rounded]
    assert found.kept == 2 * sum(weight.size for weight in weights if weight not in rounded)
    assert found.bytes == found.kept + sum(one.size for one in found.matrices)
    assert list(found.by_part) == list(dict.fromkeys(weight.part for weight in rounded))
    assert sum(error.lost for error in found.by_part.values()) == pytest.approx(found.error.lost)
    assert told[-1] == (sum(weight.size for weight in weights),) * 2 and len(told) == len(weights)
    by_hand = model.layers[0].self_attn.o_proj.weight.detach()
    (own,) = (one for one in found.matrices if one.name == "layers.0.self_attn.o_proj.weight")
    assert own.error == error_of(by_hand, quantise(by_hand, WORDS[word])) and own.part == "attention"


def test_the_worst_are_those_that_lose_most_of_themselves() -> None:
    model = network("debug")
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[:, ::32] *= 100  # an outlier in each group leaves little for the others
    worst = quantisation_of(model, 8).worst(3)
    assert len(worst) == 3 and worst[0].name == "layers.1.mlp.up_proj.weight"
    assert worst[0].error.relative > worst[1].error.relative >= worst[2].error.relative


def test_a_width_that_is_no_multiple_of_a_group_is_padded() -> None:
    matrix = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    rounded = padded_quantise(matrix, 8, where="it")
    assert rounded.shape == (4, 64)
    assert bool((rounded.dequantised()[:, 40:] == 0).all())
    assert torch.allclose(rounded.dequantised()[:, :40], matrix, atol=0.02)


@pytest.mark.parametrize("precision", ["bf16", "f32", "fp8"])
def test_a_folder_is_rounded_from_the_weights_that_it_has(tmp_path: Path, precision: str) -> None:
    write_checkpoint(network(), tmp_path / "model", precision=precision)  # type: ignore[arg-type]
    found = quantisation(str(tmp_path / "model"), 4)
    assert found.bits == 4 and 20 < found.by_part["attention"].snr_db < 25
    assert found.error.power == pytest.approx(quantisation_of(network(), 4).error.power, rel=0.01)


def test_a_gguf_file_is_rounded_too(tmp_path: Path) -> None:
    config = ModelConfig.named("smollm2-135m").replace(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, kv_lora_rank=96, qk_rope_head_dim=32,
        v_head_dim=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        model = Transformer(config)
    with torch.no_grad():
        for weight in weights_of(config):
            if bits_for(weight, 8) is not None:
                parameter = model.get_parameter(weight.name)
                parameter.copy_(quantise(parameter, 8).dequantised())
    write_gguf(model, tmp_path / "model.gguf", precision="f32")
    found = quantisation(str(tmp_path / "model.gguf"), 8)
    assert found.error.lost == 0 and found.worst(5) == []
    assert quantisation(str(tmp_path / "model.gguf"), 4).error.lost > 0


def test_a_shape_has_no_weights() -> None:
    with pytest.raises(UsageError, match="debug-moe is a shape"):
        quantisation("debug-moe", 8)


def test_damaged_weights_are_named() -> None:
    model = network("debug")
    with torch.no_grad():
        model.layers[1].self_attn.o_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelFormatError, match=r"layers\.1\.self_attn\.o_proj\.weight holds nan"):
        quantisation_of(model, 4)
