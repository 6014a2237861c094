"""The table of tensors, and latents that llama.cpp normalises where the network does not."""

import pytest
import torch

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.weights.gguf.names import latent_scale, layout


def llama_cpp_norm(latent: torch.Tensor, weight: float, eps: float) -> torch.Tensor:
    return latent / torch.sqrt(latent.square().mean(-1, keepdim=True) + eps) * weight


def test_a_latent_that_is_not_normalised_passes_llama_cpps_norm_unchanged() -> None:
    config = ModelConfig.named("debug").replace(latent_norm=False, rms_norm_eps=1e-5)
    (norm,) = (tensor for tensor in layout(config, "deepseek2") if tensor.name == "blk.0.attn_kv_a_norm.weight")
    assert norm.form == "constant"
    for size in (1e-3, 1.0, 30.0):
        latent = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)) * size
        seen = llama_cpp_norm(latent * latent_scale(config), norm.value, config.rms_norm_eps)
        assert torch.allclose(seen, latent, rtol=1e-6, atol=0)


def test_another_epsilon_for_latents_cancels() -> None:
    config = ModelConfig.named("debug").replace(rms_norm_eps=1e-5)
    latent = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)) * 1e-3
    wanted = latent / torch.sqrt(latent.square().mean(-1, keepdim=True) + 1e-6)
    assert torch.allclose(llama_cpp_norm(latent * latent_scale(config), 1.0, 1e-5), wanted, rtol=1e-6)
    assert latent_scale(ModelConfig.named("deepseek-v3")) == 1


@pytest.mark.parametrize("name", ["deepseek-v3", "debug-moe"])
def test_no_name_comes_twice_and_every_tensor_of_memory_has_its_place(name: str) -> None:
    from deepwell.lm.model.transformer import Transformer

    config = ModelConfig.named(name).replace(num_nextn_predict_layers=0, num_hidden_layers=4)
    tensors = layout(config, "deepseek2")
    names = [tensor.name for tensor in tensors]
    assert len(set(names)) == len(names)
    assert {tensor.into for tensor in tensors} == set(Transformer(config, device="meta").state_dict())
