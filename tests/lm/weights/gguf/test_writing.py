"""Networks as GGUF files, written and read back."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader

from deepwell.errors import ModelFileError, ModelFormatError
from deepwell.lm import Tokenizer, load
from deepwell.lm.model.config import RopeScaling
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.gguf.container import open_gguf
from deepwell.lm.weights.gguf.reading import read_gguf, read_network
from deepwell.lm.weights.gguf.writing import notes, write_gguf

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "tiny_tokenizers.py")
assert _spec is not None
assert _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

Make = Callable[..., Transformer]
TOKENS = torch.arange(30).view(2, 15) * 3
LLAMA31 = RopeScaling(kind="llama3", factor=8.0, original_max_position_embeddings=8192)
YARN = RopeScaling(kind="yarn", factor=8.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0)
MIXTRAL = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 80, "scoring_func": "softmax",
    "topk_method": "greedy",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("latent", {}),
        ("latent", {"latent_norm": False}),
        ("latent", {"rms_norm_eps": 1e-5}),
        ("latent", {"n_shared_experts": 0, "rope_scaling": YARN}),
        ("latent", {"n_routed_experts": 0, "num_experts_per_tok": 0, "tie_word_embeddings": True}),
        ("latent-no-query-rank", {"scoring_func": "softmax", "norm_topk_prob": False}),
        ("latent-no-query-rank", {"topk_method": "greedy", "n_group": 1, "topk_group": 1}),
        ("grouped", {"rope_scaling": RopeScaling(kind="yarn", factor=8.0, original_max_position_embeddings=16)}),
        ("grouped", {"rope_scaling": LLAMA31}),
        ("grouped", MIXTRAL),
        ("grouped-biased-tied", {}),
        ("grouped-all-biases", {}),
    ],
)
def test_a_network_comes_back_with_the_same_logits(
    tmp_path: Path, network: Make, name: str, changes: dict[str, object]
) -> None:
    model = network(name, num_nextn_predict_layers=0, **changes)
    path = tmp_path / "a.gguf"
    write_gguf(model, path, precision="f32")
    back = read_network(open_gguf(path), dtype=torch.float32).eval()
    with torch.inference_mode():
        assert torch.allclose(back(TOKENS), model(TOKENS), atol=1e-5)
    named = {"initializer_range", "scoring_func", "topk_method", "norm_topk_prob", "routed_scaling_factor",
             "moe_intermediate_size", "n_shared_experts", "first_k_dense_replace", "n_group", "topk_group"}  # fmt: skip
    skipped = named if not model.config.n_routed_experts else {"initializer_range"}
    for field in model.config.__slots__:
        if field not in skipped:
            assert getattr(back.config, field) == getattr(model.config, field), field


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_matrices_are_rounded_and_norms_and_router_are_not(tmp_path: Path, network: Make, precision: str) -> None:
    model = network("latent", num_nextn_predict_layers=0)
    write_gguf(model, tmp_path / "a.gguf", precision=precision)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds["blk.1.ffn_gate_exps.weight"] == kinds["token_embd.weight"] == precision.upper()
    exact = ("_norm.weight", "ffn_gate_inp.weight", "exp_probs_b.bias")
    assert {kind for name, kind in kinds.items() if name.endswith(exact)} == {"F32"}
    back = read_network(open_gguf(tmp_path / "a.gguf"), dtype=torch.float32)
    dtype = torch.float16 if precision == "f16" else torch.bfloat16
    for name, tensor in model.state_dict().items():
        wanted = tensor if tensor.ndim == 1 or name.endswith("mlp.gate.weight") else tensor.to(dtype).float()
        assert torch.equal(back.state_dict()[name], wanted), name


def test_tensors_have_the_shapes_that_llama_cpp_absorbs(tmp_path: Path, network: Make) -> None:
    model = network("latent")
    said = write_gguf(model, tmp_path / "a.gguf", precision="f32")
    assert said == tuple(notes(model.config))
    assert "multi-token prediction" in said[0]
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    assert not any(name.startswith("blk.3.") for name in tensors)
    up = model.state_dict()["layers.2.self_attn.kv_b_proj.weight"].view(4, 16 + 20, 32)
    assert torch.equal(torch.tensor(tensors["blk.2.attn_k_b.weight"].data), up[:, :16].transpose(1, 2))
    assert torch.equal(torch.tensor(tensors["blk.2.attn_v_b.weight"].data), up[:, 16:])
    experts = model.state_dict()["layers.2.mlp.experts.gate_up_proj"]
    assert torch.equal(torch.tensor(tensors["blk.2.ffn_up_exps.weight"].data), experts[:, 40:])
    rows = torch.tensor(tensors["blk.0.attn_kv_a_mqa.weight"].data)
    key = model.state_dict()["layers.0.self_attn.kv_a_proj_with_mqa.weight"][32:]
    assert torch.equal(rows[32:], key[[0, 4, 1, 5, 2, 6, 3, 7]])  # pairs side by side


def test_latents_that_are_not_normalised_come_with_a_word_on_quantising(tmp_path: Path, network: Make) -> None:
    model = network("latent-no-query-rank", latent_norm=False)
    (note,) = write_gguf(model, tmp_path / "a.gguf", precision="f16")
    assert "attn_kv_a_mqa=f32" in note
    assert open_gguf(tmp_path / "a.gguf").fields["general.description"] == note
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds["blk.0.attn_kv_a_mqa.weight"] == "F32"
    assert kinds["blk.0.attn_q.weight"] == "F16"


def test_a_weight_too_large_for_half_precision_names_its_tensor(tmp_path: Path, network: Make) -> None:
    model = network("grouped")
    with torch.no_grad():
        model.get_parameter("layers.1.mlp.up_proj.weight")[3, 4] = 1e6
    with pytest.raises(ModelFormatError, match=r"blk\.1\.ffn_up\.weight.*too large for f16"):
        write_gguf(model, tmp_path / "a.gguf", precision="f16")
    with torch.no_grad():
        model.get_parameter("layers.1.mlp.up_proj.weight")[3, 4] = torch.nan
    with pytest.raises(ModelFormatError, match="not finite"):
        write_gguf(model, tmp_path / "a.gguf", precision="bf16")
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_goes_into_the_file_and_comes_out(tmp_path: Path, network: Make) -> None:
    tokenizer = Tokenizer.from_folder(tiny.write_byte_level(tmp_path / "tokenizer"))
    model = network("grouped", vocab_size=tokenizer.vocab_size + 3)
    write_gguf(model, tmp_path / "a.gguf", precision="f32", tokenizer=tokenizer)
    _, back = load(tmp_path / "a.gguf", dtype="f32")
    text = "the well is deep, isn't it? 123 <|im_end|>"
    assert back.encode(text) == tokenizer.encode(text)
    assert back.encode(text, specials=True) == tokenizer.encode(text, specials=True)
    assert back.decode(back.encode(text)) == text
    assert back.bos_token_id == tokenizer.bos_token_id


def test_a_file_without_a_tokenizer_cannot_be_opened_with_one(grouped_file: Path) -> None:
    with pytest.raises(ModelFileError, match=r"grouped\.gguf.*tokenizer"):
        read_gguf(grouped_file, dtype=torch.float32)
