"""Checkpoints are read whole or not at all, and mean what their authors' code means."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepwell.errors import DeepwellError, ModelFileError, ModelFormatError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.precision.fp8 import dequantize_blocks, quantize_blocks
from deepwell.lm.weights import shards
from deepwell.lm.weights.filling import Filling
from deepwell.lm.weights.reading import read_checkpoint
from deepwell.lm.weights.rows import RotaryRows
from deepwell.lm.weights.writing import write_checkpoint

Network = Callable[..., Transformer]
Tensors = dict[str, torch.Tensor]

LAYER = "model.layers.2"
MTP = "model.layers.3"


@pytest.fixture
def single(tmp_path: Path, network: Network) -> Path:
    """The network ``latent`` in one file."""
    write_checkpoint(network("latent"), tmp_path / "single", precision="f32")
    return tmp_path / "single"


def _edit(folder: Path, change: Callable[[Tensors], Any], **config: object) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | config))


def _equal(one: Transformer, other: Transformer) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_progress_ends_at_all_bytes(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    read_checkpoint(folder, dtype=torch.float32, on_progress=lambda done, total: steps.append((done, total)))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert (
        steps[-1][0]
        == steps[-1][1]
        == sum(path.stat().st_size for path in folder.glob("*.safetensors")) - _headers(folder)
    )


def _headers(folder: Path) -> int:
    return sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.safetensors"))


def test_small_bands_change_nothing(folder: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BAND", 700)
    assert _equal(read_checkpoint(folder, dtype=torch.float32), network("latent"))


def test_another_dtype_is_what_torch_makes_of_it(folder: Path, network: Network) -> None:
    model, original = read_checkpoint(folder, dtype=torch.bfloat16), network("latent")
    for name, tensor in model.state_dict().items():
        bias = name.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if bias else torch.bfloat16)
        assert torch.equal(tensor, original.state_dict()[name].to(tensor.dtype))


def test_rope_rows_are_in_pairs_in_the_file(single: Path, network: Network) -> None:
    c, file = network("latent").config, load_file(single / "model.safetensors")
    memory = network("latent").state_dict()
    keys = RotaryRows(heads=1, head_dim=c.qk_rope_head_dim, rope_dim=c.qk_rope_head_dim, offset=c.kv_lora_rank)
    written = file["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"]
    assert torch.equal(keys.to_halves(written), memory["layers.0.self_attn.kv_a_proj_with_mqa.weight"])
    half = c.qk_rope_head_dim // 2
    assert torch.equal(written[c.kv_lora_rank + 1], memory["layers.0.self_attn.kv_a_proj_with_mqa.weight"][32 + half])


# ---- multi-token prediction ----


def test_a_file_without_any_mtp_layer_is_a_network_without(single: Path, network: Network) -> None:
    _edit(single, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(MTP)])
    model = read_checkpoint(single, dtype=torch.float32)
    assert model.config == network("latent").config.replace(num_nextn_predict_layers=0)


def test_half_an_mtp_layer_is_an_error(single: Path) -> None:
    _edit(single, lambda tensors: tensors.pop(f"{MTP}.eh_proj.weight"))
    with pytest.raises(ModelFileError, match=rf"missing.*{MTP}\.eh_proj\.weight"):
        read_checkpoint(single)


@pytest.mark.parametrize("name", ["embed_tokens", "shared_head.head"])
def test_copies_may_be_absent_but_must_not_differ(single: Path, network: Network, name: str) -> None:
    _edit(single, lambda tensors: tensors[f"{MTP}.{name}.weight"].add_(1))
    with pytest.raises(ModelFileError, match=rf"{MTP}\.{name}\.weight differs from"):
        read_checkpoint(single)
    _edit(single, lambda tensors: tensors.pop(f"{MTP}.{name}.weight"))
    assert _equal(read_checkpoint(single, dtype=torch.float32), network("latent"))


def test_a_tied_head_that_was_written_out_must_equal_the_embedding(tmp_path: Path, network: Network) -> None:
    model = network("grouped-biased-tied")
    write_checkpoint(model, tmp_path / "single", precision="f32")
    assert "lm_head.weight" not in load_file(tmp_path / "single" / "model.safetensors")
    _edit(tmp_path / "single", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert _equal(read_checkpoint(tmp_path / "single", dtype=torch.float32), model)
    _edit(tmp_path / "single", lambda t: t["lm_head.weight"].mul_(2))
    with pytest.raises(ModelFileError, match=r"lm_head\.weight differs from embed_tokens\.weight"):
        read_checkpoint(tmp_path / "single")


# ---- what is tolerated, and what is not ----


def test_old_buffers_are_passed_over_and_a_rounded_bias_is_taken(single: Path, network: Network) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        bias = f"{LAYER}.mlp.gate.e_score_correction_bias"
        tensors[bias] = tensors[bias].bfloat16()

    _edit(single, change)
    bias = read_checkpoint(single, dtype=torch.float32).state_dict()["layers.2.mlp.gate.e_score_correction_bias"]
    original = network("latent").state_dict()["layers.2.mlp.gate.e_score_correction_bias"]
    assert bias.dtype == torch.float32
    assert torch.equal(bias, original.bfloat16().float())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(f"{LAYER}.mlp.experts.7.down_proj.weight"), r"missing.*experts\.7\.down_proj"),
        (lambda t: t.update({f"{LAYER}.mlp.experts.8.up_proj.weight": torch.zeros(40, 48)}), r"experts\.8\.up.*no suc"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(47)}), r"model\.norm\.weight has shape \[47\].*\[48\]"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(48, 1)}), r"model\.norm\.weight has shape \[48, 1\]"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(48, dtype=torch.int8)}), r"model\.norm\.weight holds I8"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(48).to(torch.float8_e4m3fn)}), "is FP8, and there is no"),
        (lambda t: t.update({"model.norm.weight_scale_inv": torch.ones(1, 1)}), "scales a matrix of F32"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named_with_its_file(
    single: Path, change: Callable[[Tensors], Any], told: str
) -> None:
    _edit(single, change)
    with pytest.raises(DeepwellError, match=told) as caught:
        read_checkpoint(single)
    assert isinstance(caught.value, ModelFileError | ModelFormatError)
    assert "single" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": 64},
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 4},
        {"q_lora_rank": None},
        {"kv_lora_rank": 24},
    ],
)
def test_a_config_of_another_network_is_refused_before_anything_is_read(
    single: Path, config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    _edit(single, lambda tensors: None, **config)
    monkeypatch.setattr(Filling, "put", lambda *args, **kwargs: pytest.fail("a tensor was read"))
    with pytest.raises(ModelFileError, match=r"config\.json"):
        read_checkpoint(single)


# ---- FP8 ----


@pytest.fixture
def fp8(tmp_path: Path, network: Network) -> Path:
    """A network with a matrix of more than one block, in FP8, scales in another shard than the matrices."""
    model = network("latent", hidden_size=136, intermediate_size=300, num_nextn_predict_layers=0)
    write_checkpoint(model, tmp_path / "fp8", precision="fp8")
    tensors = load_file(tmp_path / "fp8" / "model.safetensors")
    (tmp_path / "fp8" / "model.safetensors").unlink()
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith("_scale_inv")}
    save_file(scales, tmp_path / "fp8" / "a.safetensors")
    save_file({name: tensors[name] for name in tensors.keys() - scales.keys()}, tmp_path / "fp8" / "b.safetensors")
    return tmp_path / "fp8"


def test_fp8_is_multiplied_by_its_scales_bit_for_bit(
    fp8: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "BAND", 128 * 136)  # several bands a matrix
    model = network("latent", hidden_size=136, intermediate_size=300, num_nextn_predict_layers=0)
    read = read_checkpoint(fp8, dtype=torch.float32).state_dict()
    for name, tensor in model.state_dict().items():
        if name.endswith("mlp.up_proj.weight"):
            assert torch.equal(read[name], dequantize_blocks(*quantize_blocks(tensor), dtype=torch.float32))
        elif name.endswith("e_score_correction_bias"):
            assert torch.equal(read[name], tensor)
        elif "embed" in name or "norm" in name or "gate.weight" in name or "head" in name:
            assert torch.equal(read[name], tensor.bfloat16().float())
        else:
            assert (read[name] - tensor).abs().max() <= tensor.abs().max() / 16
    assert read_checkpoint(fp8).state_dict()["layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_bad_scale_is_named_with_its_file(fp8: Path, bad: float) -> None:
    scales = load_file(fp8 / "a.safetensors")
    scales["model.layers.0.mlp.up_proj.weight_scale_inv"][2, 1] = bad
    save_file(scales, fp8 / "a.safetensors")
    with pytest.raises(
        ModelFileError, match=r"a\.safetensors: .*up_proj\.weight_scale_inv: the scale of block \(2, 1\)"
    ):
        read_checkpoint(fp8)


@pytest.mark.parametrize("shape", [(3, 1), (2, 2), (6,)])
def test_scales_of_another_shape_are_named_with_their_file(fp8: Path, shape: tuple[int, ...]) -> None:
    scales = load_file(fp8 / "a.safetensors")
    scales["model.layers.0.mlp.up_proj.weight_scale_inv"] = torch.ones(shape)
    save_file(scales, fp8 / "a.safetensors")
    with pytest.raises(ModelFileError, match=r"a\.safetensors: .*up_proj\.weight_scale_inv"):
        read_checkpoint(fp8)


def test_missing_scales_are_named(fp8: Path) -> None:
    scales = load_file(fp8 / "a.safetensors")
    del scales["model.layers.0.mlp.up_proj.weight_scale_inv"]
    save_file(scales, fp8 / "a.safetensors")
    with pytest.raises(ModelFileError, match=r"up_proj\.weight is FP8, and there is no .*up_proj\.weight_scale_inv"):
        read_checkpoint(fp8)


# ---- against transformers ----

_WIDTHS: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "initializer_range": 0.1,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 20, "moe_intermediate_size": 40,
    "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
    "n_shared_experts": 1, "num_key_value_heads": 4,
}  # fmt: skip
_STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "v3": ("DeepseekV3", {**_EXPERTS, "q_lora_rank": 24, "attention_bias": True}),
    "v3-no-query-rank": ("DeepseekV3", {**_EXPERTS, "q_lora_rank": None, "tie_word_embeddings": True}),
    "v2": ("DeepseekV2", {**_EXPERTS, "q_lora_rank": None, "topk_method": "group_limited_greedy"}),
    "llama": ("Llama", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("Llama", {"num_key_value_heads": 4, "head_dim": 10, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"num_key_value_heads": 1, "head_dim": 12, "sliding_window": 5}),
}


@pytest.mark.parametrize("kind", _STOCK)
def test_agrees_with_transformers_in_both_directions(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    family, fields = _STOCK[kind]
    config = getattr(transformers, f"{family}Config")(**_WIDTHS, **fields)
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, tensor in theirs.state_dict().items():
        if name.endswith("bias"):
            tensor.normal_(0, 0.3, generator=generator)
    theirs.save_pretrained(tmp_path / "theirs")
    tokens = torch.randint(0, 97, (2, 24), generator=generator)
    with torch.no_grad():
        logits = theirs(tokens).logits
        ours = read_checkpoint(tmp_path / "theirs", dtype=torch.float32)
        assert (ours(tokens) - logits).abs().max() <= 2e-5
        write_checkpoint(ours, tmp_path / "ours", precision="f32", shard_bytes=50_000)
        back, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True, dtype=torch.float32)
        assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]
        assert torch.equal(back(tokens).logits, logits)


def test_transformers_reads_a_file_with_an_mtp_layer(tmp_path: Path, network: Network) -> None:
    transformers = pytest.importorskip("transformers")
    model = network("latent")
    write_checkpoint(model, tmp_path / "model", precision="f32")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"] | info["mismatched_keys"]
    assert all(name.startswith(MTP) for name in info["unexpected_keys"])
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() <= 2e-5


def test_a_network_of_our_own_comes_back(tmp_path: Path, layout_name: str, network: Network) -> None:
    model = network(layout_name)
    write_checkpoint(model, tmp_path / "model", precision="f32", shard_bytes=60_000)
    back = read_checkpoint(tmp_path / "model", dtype=torch.float32)
    assert isinstance(back.config, ModelConfig)
    assert back.config == model.config
    assert _equal(back, model)
