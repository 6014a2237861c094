import pytest
import torch

from deepwell.errors import TrainingError, UsageError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.training.optimizers.groups import as_dtensor, local_part, slots
from deepwell.lm.weights.lora import LoraConfig, add_lora


def test_matrices_decay_and_nothing_else(model: Transformer) -> None:
    decays = {slot.name: slot.decay for slot in slots(model, "adamw")}
    assert decays["lm_head.weight"] and decays["layers.1.mlp.gate.weight"]
    assert decays["layers.1.mlp.experts.gate_up_proj"] and decays["mtp.0.eh_proj.weight"]
    assert decays["layers.0.self_attn.o_proj.weight"]
    still = {name for name, decay in decays.items() if not decay}
    assert still == {"embed_tokens.weight"} | {name for name in decays if name.endswith("norm.weight")}
    assert not any("bias" in name for name in decays)  # the router's is a buffer


def test_biases_and_a_tied_head_do_not_decay() -> None:
    config = ModelConfig.named("debug").replace(tie_word_embeddings=True, qkv_bias=True)
    decays = {slot.name: slot.decay for slot in slots(Transformer(config), "adamw")}
    assert not decays["embed_tokens.weight"] and "lm_head.weight" not in decays
    biases = [name for name in decays if name.endswith(".bias")]
    assert biases and not any(decays[name] for name in biases)


def test_muon_takes_the_matrices_inside_of_layers(model: Transformer) -> None:
    methods = {slot.name: slot.method for slot in slots(model, "muon")}
    assert methods["layers.0.self_attn.o_proj.weight"] == methods["layers.1.mlp.experts.down_proj"] == "muon"
    assert methods["mtp.0.eh_proj.weight"] == methods["layers.1.mlp.shared_experts.up_proj.weight"] == "muon"
    others = {"embed_tokens.weight", "lm_head.weight", "layers.1.mlp.gate.weight", "mtp.0.block.mlp.gate.weight"}
    norms = {name for name in methods if name.endswith("norm.weight")}
    assert {name for name, method in methods.items() if method == "adamw"} == others | norms
    assert {slot.method for slot in slots(model, "adamw")} == {"adamw"}


def test_adapters_are_adamws_and_decay(model: Transformer) -> None:
    add_lora(model, LoraConfig(rank=2, alpha=4, targets=("o_proj",)))
    found = slots(model, "muon")
    assert {slot.name.rpartition(".")[2] for slot in found} == {"lora_a", "lora_b"}
    assert all(slot.method == "adamw" and slot.decay for slot in found)


def test_chosen_experts_are_stretches_of_the_stack(model: Transformer) -> None:
    found = {slot.name: slot for slot in slots(model, "adamw", {0: [5, 1, 2, 5, 7], 1: []})}
    stack = found["layers.1.mlp.experts.gate_up_proj"]
    assert stack.runs == ((1, 3), (5, 6), (7, 8))
    assert [len(piece) for piece in stack.pieces(stack.parameter)] == [2, 1, 1]
    assert stack.size == stack.parameter.numel() // 2
    assert found["lm_head.weight"].size == found["lm_head.weight"].parameter.numel()
    state = stack.new_state("f32")
    assert state.shape == (4, 32, 32)
    assert [len(piece) for piece in stack.state_pieces(state)] == [2, 1, 1]
    assert "mtp.0.block.mlp.experts.gate_up_proj" not in found  # none is chosen there
    assert stack.gradients() == []


@pytest.mark.parametrize("chosen", [{2: [0]}, {0: [8]}, {0: [-1]}, {-1: [0]}])
def test_experts_that_are_not_there(model: Transformer, chosen: dict[int, list[int]]) -> None:
    with pytest.raises(UsageError, match="the model has 8 experts in each of 2 layers"):
        slots(model, "adamw", chosen)


def test_nothing_to_train(model: Transformer) -> None:
    with pytest.raises(UsageError, match="nothing to train"):
        slots(model.requires_grad_(False), "adamw")


def test_what_lies_crosswise_in_memory_is_refused(model: Transformer) -> None:
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(32, 64).t())
    with pytest.raises(UsageError, match=r"lm_head.weight is not contiguous"):
        slots(model, "adamw")


def test_states_are_at_least_float32_or_bf16() -> None:
    config = ModelConfig.named("debug").replace(num_hidden_layers=1)
    for weights, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        slot = slots(Transformer(config, dtype=weights), "adamw")[0]
        assert slot.new_state("f32").dtype is wide
        assert slot.new_state("bf16").dtype is torch.bfloat16


def test_a_state_takes_only_what_fits(model: Transformer) -> None:
    slot = next(slot for slot in slots(model, "adamw") if slot.name == "norm.weight")
    state = slot.new_state("f32")
    slot.take(state, torch.arange(32.0), "x")
    assert torch.equal(state, torch.arange(32.0)) and slot.shown(state) is state
    with pytest.raises(TrainingError, match=r"norm.weight does not fit: x has the shape \[3\], and \[32\]"):
        slot.take(state, torch.zeros(3), "x")
    with pytest.raises(TrainingError, match="no tensor"):
        slot.take(state, 3, "x")


def test_plain_tensors_are_all_here() -> None:
    tensor = torch.zeros(2, requires_grad=True)
    assert as_dtensor(tensor) is None
    assert not local_part(tensor).requires_grad and local_part(tensor).data_ptr() == tensor.data_ptr()
