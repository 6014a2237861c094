"""One table says where each tensor of a file lies in memory."""

import torch

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.names import is_ignored, layout, mtp_layers
from deepwell.lm.weights.writing import plan


def test_deepseek_v3_has_as_many_tensors_and_bytes_as_the_published_files() -> None:
    """The published FP8 checkpoint: 91,991 tensors, 688,574,839,360 bytes (its index file)."""
    planned = list(plan(Transformer(ModelConfig.named("deepseek-v3"), device="meta"), "fp8"))
    assert len(planned) == 91_991
    assert sum(tensor.size for tensor in planned) == 688_574_839_360
    shapes = {tensor.name: (tensor.kind, tensor.shape) for tensor in planned}
    attention = "model.layers.61.self_attn"
    assert shapes[f"{attention}.kv_a_proj_with_mqa.weight"] == ("F8_E4M3", (576, 7168))
    assert shapes[f"{attention}.kv_a_proj_with_mqa.weight_scale_inv"] == ("F32", (5, 56))
    assert shapes["model.layers.61.eh_proj.weight"] == ("BF16", (7168, 14336))
    assert shapes["model.layers.61.shared_head.head.weight"] == ("BF16", (129280, 7168))
    assert shapes["model.layers.3.mlp.gate.weight"] == ("BF16", (256, 7168))
    assert shapes["model.layers.3.mlp.gate.e_score_correction_bias"] == ("F32", (256,))
    assert shapes["model.layers.60.mlp.experts.255.down_proj.weight"] == ("F8_E4M3", (7168, 2048))


def test_every_number_in_memory_has_one_place_in_the_files(layout_name: str, network: object) -> None:
    model = network(layout_name)  # type: ignore[operator]
    held = model.state_dict()
    seen = {name: torch.zeros(tensor.shape, dtype=torch.int32) for name, tensor in held.items()}
    names = set()
    for tensor in layout(model.config):
        names.add(tensor.name)
        part = seen[tensor.into]
        if tensor.role == "part":
            part = part if tensor.expert is None else part[tensor.expert]
            part = part if tensor.rows is None else part[tensor.rows[0] : tensor.rows[1]]
            part += 1
    assert len(names) == len(layout(model.config))
    for name, count in seen.items():
        assert bool((count == 1).all()), name


def test_grouped_attention_keeps_the_names_of_llama() -> None:
    names = {tensor.name: tensor for tensor in layout(ModelConfig.named("qwen2.5-0.5b"))}
    key, value = (names[f"model.layers.0.self_attn.{name}_proj.bias"] for name in "kv")
    assert key.into == value.into == "layers.0.self_attn.kv_a_proj_with_mqa.bias"
    assert (value.rows, key.rows) == ((0, 128), (128, 256))
    assert names["model.layers.0.self_attn.q_proj.weight"].rotary is None
    assert names["lm_head.weight"].role == "spare"


def test_buffers_that_mean_nothing_are_known() -> None:
    assert is_ignored("model.layers.3.self_attn.rotary_emb.inv_freq")
    assert not is_ignored("model.layers.3.self_attn.q_proj.bias")


def test_mtp_layers_follow_the_last() -> None:
    assert list(mtp_layers(ModelConfig.named("deepseek-v3"))) == [61]
