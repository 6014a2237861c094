"""Named shapes hold the published values."""

import pytest

from deepwell.errors import ModelConfigError
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.named import NAMES, named


@pytest.mark.parametrize("name", NAMES)
def test_every_name_makes_a_config_that_bears_it(name: str) -> None:
    assert ModelConfig.named(name).name == name


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ModelConfigError, match="'gpt-2'") as error:
        named("gpt-2")
    assert "deepseek-v3" in error.value.hint


def test_deepseek_r1_has_the_shape_of_v3() -> None:
    assert named("deepseek-r1").replace(name="") == named("deepseek-v3").replace(name="")


@pytest.mark.parametrize(("name", "size"), [("deepseek-v3", 70_272), ("deepseek-v2-lite", 31_104), ("debug-moe", 768)])
def test_cache_of_a_latent_shape(name: str, size: int) -> None:
    assert named(name).cache_bytes_per_token() == size


@pytest.mark.parametrize(
    ("name", "layers", "key_heads", "width"), [("smollm2-135m", 30, 3, 64), ("r1-distill-llama-8b", 32, 8, 128)]
)
def test_cache_of_a_grouped_shape_is_its_keys_and_values(name: str, layers: int, key_heads: int, width: int) -> None:
    assert named(name).cache_bytes_per_token() == layers * 2 * key_heads * width * 2


def test_the_softmax_scale_of_v3_carries_mscale_squared() -> None:
    assert named("deepseek-v3").softmax_scale == pytest.approx(192**-0.5 * 1.8739, rel=1e-4)


def test_the_debug_moe_shape_has_every_part_and_widths_that_stock_formats_hold() -> None:
    c = named("debug-moe")
    assert c.moe_layers == (1, 2, 3)
    assert c.n_group > c.topk_group > 1
    assert c.n_shared_experts and c.num_nextn_predict_layers and c.q_lora_rank
    for width in (c.hidden_size, c.q_lora_rank, c.kv_lora_rank, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim):
        assert width % 32 == 0
    assert c.moe_intermediate_size % 32 == 0
