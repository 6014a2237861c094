"""Adapters: exact at the start, exact when merged, on their own rows, and in PEFT's files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deepwell.errors import ModelFileError, ModelFormatError, UsageError
from deepwell.lm.model.cache import LatentCache
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.adapter import CONFIG, WEIGHTS, fingerprint, load_adapter, save_adapter
from deepwell.lm.weights.lora import (
    LoraConfig,
    LoraLinear,
    add_lora,
    has_lora,
    lora_layers,
    merge_lora,
    remove_lora,
)
from deepwell.lm.weights.saving import save

TOKENS = torch.arange(24).view(2, 12) % 50
LLAMA = ModelConfig.named("smollm2-135m").replace(
    vocab_size=64, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, rope_key_heads=2,
    kv_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8, initializer_range=0.2,
)  # fmt: skip
MOE = ModelConfig.named("debug-moe").replace(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, q_lora_rank=16, kv_lora_rank=16,
    qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, moe_intermediate_size=8, initializer_range=0.2,
)  # fmt: skip
ALL = LoraConfig(rank=3, alpha=6, targets=("all-linear",))


def made(config: ModelConfig, seed: int = 0) -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer(config, dtype=torch.float64).eval()


def stirred(model: Transformer) -> Transformer:
    """With an adapter that does something."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for _, layer in lora_layers(model):
            layer.lora_a.normal_()
            layer.lora_b.normal_(0, 0.1)
    return model


def close(a: Tensor, b: Tensor, by: float = 1e-10) -> None:
    assert (a - b).abs().max().item() < by


@pytest.mark.parametrize("config", [LLAMA, MOE])
def test_a_new_adapter_changes_nothing_and_alone_takes_gradients(config: ModelConfig) -> None:
    model = made(config)
    before = model(TOKENS)
    add_lora(model, ALL)
    assert torch.equal(model(TOKENS), before)
    model.loss(TOKENS).total.backward()
    with_gradient = {name for name, one in model.named_parameters() if one.grad is not None}
    assert with_gradient and all(name.endswith(("lora_a", "lora_b")) for name in with_gradient)
    assert {name for name, one in model.named_parameters() if one.requires_grad} >= with_gradient


@pytest.mark.parametrize("config", [LLAMA, MOE, MOE.replace(q_lora_rank=None)])
def test_merging_gives_the_same_model_without_an_adapter(config: ModelConfig) -> None:
    model = stirred(_with(made(config), ALL))
    adapted = model(TOKENS)
    assert (adapted - made(config)(TOKENS)).abs().max() > 0.01
    names = set(made(config).state_dict())
    merge_lora(model)
    close(model(TOKENS), adapted)
    assert not has_lora(model) and set(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_taking_it_off_gives_the_base_back() -> None:
    model = stirred(_with(made(MOE), ALL))
    remove_lora(model)
    assert torch.equal(model(TOKENS), made(MOE)(TOKENS))


def test_absorbed_attention_and_the_cache_see_the_adapter() -> None:
    """The absorbed form multiplies by ``kv_b_proj`` in another order and never calls the layer."""
    model = stirred(_with(made(MOE), LoraConfig(rank=2, alpha=4, targets=("kv_b_proj", "q_b_proj"))))
    full = model(TOKENS)
    cache = LatentCache(MOE, batch=2, capacity=12, dtype=torch.float64)
    model(TOKENS[:, :4], cache=cache)
    close(torch.cat([model(TOKENS[:, i : i + 1], cache=cache, form="absorbed") for i in range(4, 12)], 1), full[:, 4:])


def test_the_loss_sees_an_adapter_on_the_head() -> None:
    model = stirred(_with(made(MOE), LoraConfig(rank=2, alpha=4, targets=("lm_head",))))
    before = model.loss(TOKENS).total.item()
    merge_lora(model)
    assert model.loss(TOKENS).total.item() == pytest.approx(before, rel=1e-9)
    assert before != pytest.approx(made(MOE).loss(TOKENS).total.item(), rel=1e-4)


def test_keys_and_values_of_llama_have_adapters_of_their_own() -> None:
    model = stirred(_with(made(LLAMA), LoraConfig(rank=2, alpha=2, targets=("k_proj",))))
    (_, layer), *_ = lora_layers(model)
    difference = layer.difference()
    assert torch.count_nonzero(difference[: LLAMA.kv_lora_rank]) == 0
    assert torch.count_nonzero(difference[LLAMA.kv_lora_rank :].any(1)) == LLAMA.rope_key_width
    both = _with(made(LLAMA), LoraConfig(rank=2, alpha=2, targets=("kv_a_proj_with_mqa",)))
    assert [part.file_name for part in lora_layers(both)[0][1].parts] == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.self_attn.k_proj",
    ]


def test_dropout_is_for_training_alone() -> None:
    model = stirred(_with(made(MOE), LoraConfig(rank=2, alpha=4, targets=("o_proj",), dropout=0.5)))
    assert torch.equal(model(TOKENS), model(TOKENS))
    with torch.random.fork_rng():
        assert not torch.equal(model.train()(TOKENS), model(TOKENS))


def test_half_precision_adapts_and_merges() -> None:
    model = made(MOE).bfloat16()
    before = model(TOKENS).float()
    stirred(_with(model, ALL))
    adapted = model(TOKENS).float()
    merge_lora(model)
    assert model.dtype == torch.bfloat16
    assert (model(TOKENS).float() - adapted).abs().mean() < 0.2 * (adapted - before).abs().mean()


# ---- files ----


@pytest.mark.parametrize("config", [LLAMA, MOE, MOE.replace(q_lora_rank=None, num_nextn_predict_layers=0)])
def test_an_adapter_comes_back_from_its_file(config: ModelConfig, tmp_path: Path) -> None:
    model = stirred(_with(made(config), LoraConfig(rank=3, alpha=6, targets=("all-linear",), dropout=0.25)))
    save_adapter(model, tmp_path / "a")
    other = made(config)
    read = load_adapter(other, tmp_path / "a")
    assert (read.rank, read.alpha, read.dropout) == (3, 6, 0.25)
    assert torch.equal(other(TOKENS), model(TOKENS))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {CONFIG, WEIGHTS}


def test_a_file_as_peft_writes_it_means_what_it_means_there(tmp_path: Path) -> None:
    """W + (alpha / r) B A, by the names and in the row order of the model's own files."""
    rank, names = 2, ("q_proj", "k_proj", "v_proj")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        rows = {"q_proj": 32, "k_proj": 16, "v_proj": 16}
        a = {name: torch.randn(rank, 24) for name in names}
        b = {name: torch.randn(rows[name], rank) for name in names}
    stem = "base_model.model.model.layers.1.self_attn."
    write_peft(
        tmp_path,
        {f"{stem}{name}.lora_A.weight": a[name] for name in names}
        | {f"{stem}{name}.lora_B.weight": b[name] for name in names},
        r=rank,
        lora_alpha=5,
    )
    model = made(LLAMA)
    load_adapter(model, tmp_path)
    merge_lora(model)
    plain, changed = made(LLAMA).layers[1].self_attn, model.layers[1].self_attn
    for got, before, wanted in (
        (changed.q_proj.weight, plain.q_proj.weight, b["q_proj"] @ a["q_proj"]),
        (
            changed.kv_a_proj_with_mqa.weight,
            plain.kv_a_proj_with_mqa.weight,
            torch.cat([b["v_proj"] @ a["v_proj"], b["k_proj"] @ a["k_proj"]]),
        ),
    ):
        close(got - before, 2.5 * wanted.double(), 1e-5)


def test_rows_of_rope_are_interleaved_in_deepseeks_files(tmp_path: Path) -> None:
    model = stirred(_with(made(MOE), LoraConfig(rank=2, alpha=2, targets=("kv_a_proj_with_mqa",))))
    save_adapter(model, tmp_path)
    stored = load_file(tmp_path / WEIGHTS)["base_model.model.model.layers.0.self_attn.kv_a_proj_with_mqa.lora_B.weight"]
    layer = dict(lora_layers(model))["layers.0.self_attn.kv_a_proj_with_mqa"]
    assert torch.equal(stored[:16], layer.lora_b[:16])
    assert torch.equal(stored[16:], layer.lora_b[16:][[0, 2, 1, 3]])


def test_the_module_of_prediction_is_the_layer_after_the_last(tmp_path: Path) -> None:
    save_adapter(
        _with(made(MOE), LoraConfig(rank=2, alpha=2, targets=("eh_proj", "mtp.0.block.self_attn.o_proj"))), tmp_path
    )
    assert set(json.loads((tmp_path / CONFIG).read_text())["target_modules"]) == {
        "model.layers.2.eh_proj",
        "model.layers.2.self_attn.o_proj",
    }


def test_rank_stabilised_scaling_is_kept(tmp_path: Path) -> None:
    write_peft(tmp_path, o_proj(4), r=4, lora_alpha=6, use_rslora=True)
    model = made(LLAMA)
    assert load_adapter(model, tmp_path).alpha == 12
    assert lora_layers(model)[0][1].scaling == 3


def test_a_copy_of_the_head_in_the_file_is_passed_over(tmp_path: Path) -> None:
    write_peft(tmp_path, o_proj(2) | {"base_model.model.lm_head.base_layer.weight": torch.zeros(64, 24)}, r=2)
    assert load_adapter(made(LLAMA), tmp_path).rank == 2


def test_an_adapter_knows_its_base(tmp_path: Path) -> None:
    save_adapter(_with(made(MOE), ALL), tmp_path)
    with pytest.raises(ModelFileError, match=r"was made for debug-moe \(shape .*this model is debug-moe \(shape"):
        load_adapter(made(MOE.replace(rope_theta=5000.0)), tmp_path)
    with pytest.raises(ModelFileError, match="was made for debug-moe, and this model of the same shape is other"):
        load_adapter(made(MOE.replace(name="other")), tmp_path)
    load_adapter(made(MOE.replace(name="other")), tmp_path, any_base=True)
    load_adapter(made(MOE.replace(name="", max_position_embeddings=9)), tmp_path)


def test_a_fingerprint_is_of_what_weights_mean() -> None:
    assert fingerprint(MOE) == fingerprint(MOE.replace(name="x", eos_token_id=(5,), initializer_range=0.5))
    assert fingerprint(MOE) != fingerprint(MOE.replace(rms_norm_eps=1e-5))


# ---- what goes wrong ----


def test_saving_a_model_does_not_leave_its_adapter_behind_unsaid(tmp_path: Path) -> None:
    model = _with(made(LLAMA), ALL)
    with pytest.raises(UsageError, match="would be left behind"):
        save(model, tmp_path / "model", precision="f32")
    merge_lora(model)
    save(model, tmp_path / "model", precision="f32")


@pytest.mark.parametrize(
    ("config", "targets", "message"),
    [
        (MOE, ("q_prj",), "no matrix of this model is called 'q_prj'"),
        (MOE, ("experts.down_proj",), "experts are stacked in one tensor"),
        (MOE, ("gate_up_proj",), "experts are stacked in one tensor"),
        (MOE, ("gate",), "no matrix of this model is called 'gate'"),
        (MOE, ("q_b_proj", "k_proj"), "no matrix of this model is called 'k_proj'"),
        (LLAMA, ("lm_head",), "tied to the embedding"),
    ],
)
def test_a_target_that_takes_no_adapter(config: ModelConfig, targets: tuple[str, ...], message: str) -> None:
    model = made(config)
    with pytest.raises(UsageError, match=message):
        add_lora(model, LoraConfig(rank=2, alpha=2, targets=targets))
    assert not has_lora(model) and all(parameter.requires_grad for parameter in model.parameters())


def test_a_config_is_checked() -> None:
    for wrong in ({"rank": 0}, {"dropout": 1.0}, {"targets": ()}):
        with pytest.raises(UsageError):
            LoraConfig(**({"rank": 1, "alpha": 1, "targets": ("q_proj",)} | wrong))  # type: ignore[arg-type]


def test_one_adapter_at_a_time(tmp_path: Path) -> None:
    model = _with(made(LLAMA), ALL)
    with pytest.raises(UsageError, match="has an adapter already"):
        add_lora(model, ALL)
    with pytest.raises(UsageError, match="has no adapter"):
        save_adapter(made(LLAMA), tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"peft_type": "LOHA"}, ModelFormatError, "peft_type is 'LOHA'"),
        ({"use_dora": True}, ModelFormatError, "use_dora is True"),
        ({"bias": "all"}, ModelFormatError, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, ModelFormatError, "modules_to_save is"),
        ({"target_parameters": ["experts.down_proj"]}, ModelFormatError, "target_parameters is"),
        ({"init_lora_weights": "pissa"}, ModelFormatError, "init_lora_weights is 'pissa'"),
        ({"r": 0}, ModelFileError, "r is 0"),
        ({"r": 3}, ModelFormatError, "several ranks"),
        ({"lora_alpha": "8"}, ModelFileError, "lora_alpha is '8'"),
        ({"lora_dropout": 1.5}, ModelFileError, "lora_dropout is 1.5"),
    ],
)
def test_an_adapters_config_that_cannot_be_followed(
    tmp_path: Path, change: dict[str, Any], error: Any, message: str
) -> None:
    write_peft(tmp_path, o_proj(2), **({"r": 2} | change))
    model = made(LLAMA)
    with pytest.raises(error, match=rf"adapter_config\.json.*{message}|adapters of {message}"):
        load_adapter(model, tmp_path)
    assert not has_lora(model)


STEM = "base_model.model.model.layers.0.self_attn.o_proj"
A, B = f"{STEM}.lora_A.weight", f"{STEM}.lora_B.weight"


def renamed(tensors: dict[str, Tensor], to: str) -> None:
    tensors[f"{to}.lora_A.weight"], tensors[f"{to}.lora_B.weight"] = tensors.pop(A), tensors.pop(B)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda t: t.pop(B), ModelFileError, "o_proj.lora_B.weight is missing"),
        (lambda t: t.clear(), ModelFileError, "holds no adapter"),
        (
            lambda t: t.update({B: torch.zeros(25, 2)}),
            ModelFileError,
            r"lora_B.weight has shape \[25, 2\]; .*\[24, 2\]",
        ),
        (lambda t: t[B].fill_(float("nan")), ModelFileError, "o_proj.lora_B.weight holds NaN"),
        (lambda t: t.update({"x.lora_magnitude_vector": torch.zeros(2)}), ModelFormatError, "_vector is no part"),
        (lambda t: renamed(t, "base_model.model.model.layers.0.z"), ModelFileError, "layers.0.z has no place"),
        (lambda t: renamed(t, "base_model.model.mlp.experts.3.up_proj"), ModelFormatError, "adapts an expert"),
    ],
)
def test_a_damaged_adapter_is_told_by_file_and_tensor(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], error: Any, message: str
) -> None:
    tensors = o_proj(2)
    spoil(tensors)
    write_peft(tmp_path, tensors, r=2)
    model = made(LLAMA)
    with pytest.raises(error, match=rf"adapter_model\.safetensors.*{message}"):
        load_adapter(model, tmp_path)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"adapter_config\.json is missing"):
        load_adapter(made(LLAMA), tmp_path)
    write_peft(tmp_path, o_proj(2), r=2)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelFileError, match=r"adapter_model\.safetensors is missing"):
        load_adapter(made(LLAMA), tmp_path)


def _with(model: Transformer, config: LoraConfig) -> Transformer:
    add_lora(model, config)
    return model


def o_proj(rank: int) -> dict[str, Tensor]:
    return {A: torch.ones(rank, 32), B: torch.ones(24, rank)}


def write_peft(folder: Path, tensors: dict[str, Tensor], **config: Any) -> None:
    described = {
        "peft_type": "LORA",
        "lora_alpha": 2,
        "bias": "none",
        "target_modules": ["o_proj"],
        "revision": None,
    } | config
    (folder / CONFIG).write_text(json.dumps(described))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
