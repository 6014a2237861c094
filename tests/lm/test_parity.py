"""Logits equal to transformers' DeepseekV3 and DeepseekV2, on random tiny networks, through files in both directions.

Each network goes transformers -> files -> ours -> files -> transformers, and all three agree. Together the two tests
draw 200 configs. Traps 1 to 7 and 13 of the style guide would each show here.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.reading import read_checkpoint
from deepwell.lm.weights.writing import write_checkpoint

transformers = pytest.importorskip("transformers")

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

CLOSE = 2e-5
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}
PARITY = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking reads and writes files for minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def shapes(draw: Any) -> dict[str, Any]:
    """What both versions have in common."""
    heads = draw(st.integers(1, 4))
    layers = draw(st.integers(1, 3))
    query_rank = draw(st.sampled_from([None, 6, 16]))
    # transformers reads n_group as None or a number, and V2 wants hidden_size to be a multiple of the heads.
    content: dict[str, Any] = {
        "vocab_size": draw(st.integers(17, 80)),
        "hidden_size": heads * draw(st.sampled_from([8, 12, 20])),
        "intermediate_size": draw(st.integers(8, 48)),
        "moe_intermediate_size": draw(st.integers(4, 24)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "n_shared_experts": draw(st.integers(1, 2)),
        "q_lora_rank": query_rank,
        "kv_lora_rank": draw(st.integers(4, 24)),
        "qk_nope_head_dim": draw(st.integers(1, 12)),
        "qk_rope_head_dim": draw(st.sampled_from([2, 4, 8, 10])),
        "v_head_dim": draw(st.integers(1, 20)),
        "first_k_dense_replace": draw(st.integers(0, layers)),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        # Without a query rank transformers gives a bias to keys and none to queries, which is refused with an error.
        "attention_bias": query_rank is not None and draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    theta = draw(st.sampled_from([10_000.0, 50_000.0]))
    content["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if draw(st.booleans()):
        mscale = draw(st.sampled_from([0.707, 1.0]))
        content["rope_parameters"] = {
            "rope_type": "yarn", "rope_theta": theta, "factor": draw(st.sampled_from([4.0, 40.0])), "beta_fast": 32,
            "beta_slow": 1, "mscale": mscale, "mscale_all_dim": draw(st.sampled_from([mscale, 0.5])),
            "original_max_position_embeddings": draw(st.sampled_from([16, 4096])),
        }  # fmt: skip
    return content


@st.composite
def v3(draw: Any) -> dict[str, Any]:
    content = draw(shapes())
    groups, size = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    kept = draw(st.integers(1, groups))
    return content | {
        "n_routed_experts": groups * size,
        "n_group": groups,
        "topk_group": kept,
        "num_experts_per_tok": draw(st.integers(1, kept * size)),
        "norm_topk_prob": draw(st.booleans()),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
        "num_nextn_predict_layers": draw(st.integers(0, 1)),
    }


@st.composite
def v2(draw: Any) -> dict[str, Any]:
    content = draw(shapes())
    # transformers' V2 views the rope parts as complex numbers, which must begin at even places.
    content |= {"qk_nope_head_dim": content["qk_nope_head_dim"] * 2, "kv_lora_rank": content["kv_lora_rank"] * 2}
    method = draw(st.sampled_from(["greedy", "group_limited_greedy"]))
    groups, size = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    kept = draw(st.integers(1, groups)) if method == "group_limited_greedy" else groups
    return content | {
        "n_routed_experts": groups * size,
        "n_group": groups,
        "topk_group": kept,
        "num_experts_per_tok": draw(st.integers(1, kept * size)),
        "topk_method": method,
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": draw(st.sampled_from([1.0, 16.0])),
    }


def stock(family: str, content: dict[str, Any], numbers: int) -> Any:
    """transformers' network with every tensor random, the balancing bias negative as often as positive."""
    config = getattr(transformers, f"{family}Config")(**content, **PLAIN)
    torch.manual_seed(numbers)
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("inv_freq"):
                continue
            spread = 0.3 if tensor.dim() == 1 else 1 / tensor.shape[-1] ** 0.5
            tensor.copy_(torch.randn_like(tensor) * spread + ("norm" in name))
    return model


def there_and_back(family: str, content: dict[str, Any], numbers: int) -> None:
    theirs = stock(family, content, numbers)
    tokens = torch.randint(0, content["vocab_size"], (2, 23))
    with tempfile.TemporaryDirectory() as place, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns of its own config's fields
        expected = theirs(tokens).logits
        # Reshuffled rows or a wrong scale move logits by about their own size, so that is what the bound is a part of.
        bound = CLOSE * max(1.0, float(expected.abs().max()))
        theirs.save_pretrained(Path(place) / "theirs")
        ours = read_checkpoint(Path(place) / "theirs", dtype=torch.float32, device="cpu")
        assert (ours(tokens) - expected).abs().max() < bound
        depth = content.get("num_nextn_predict_layers", 0)
        ours = with_mtp(ours, depth)
        write_checkpoint(ours, Path(place) / "ours", precision="f32")
        again = type(theirs).from_pretrained(Path(place) / "ours", **PLAIN).eval()
        assert (again(tokens).logits - expected).abs().max() < bound
        back = read_checkpoint(Path(place) / "ours", dtype=torch.float32, device="cpu")
        assert back.config.num_nextn_predict_layers == depth
        assert torch.equal(back(tokens), ours(tokens))


def with_mtp(model: Transformer, depth: int) -> Transformer:
    """The same network with random modules of multi-token prediction behind it, which stock readers must pass over."""
    if not depth:
        return model
    config: ModelConfig = model.config.replace(num_nextn_predict_layers=depth)
    larger = Transformer(config, dtype=torch.float32).eval()
    missing = larger.load_state_dict(model.state_dict(), strict=False)
    assert all(name.startswith("mtp.") for name in missing.missing_keys)
    return larger


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(4))
def test_deepseek_v3_agrees_with_transformers(part: int) -> None:
    @seed(part)
    @settings(PARITY, max_examples=35)
    @given(content=v3(), numbers=st.integers(0, 999))
    def check(content: dict[str, Any], numbers: int) -> None:
        there_and_back("DeepseekV3", content, numbers)

    check()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(2))
def test_deepseek_v2_agrees_with_transformers(part: int) -> None:
    @seed(part)
    @settings(PARITY, max_examples=30)
    @given(content=v2(), numbers=st.integers(0, 999))
    def check(content: dict[str, Any], numbers: int) -> None:
        there_and_back("DeepseekV2", content, numbers)

    check()
