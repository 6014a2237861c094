"""A whole network as a program: the same logits as its own forward pass, and the same bits however a text is cut."""

import copy
import random
from collections.abc import Sequence as Items
from typing import Any

import pytest
import torch
from torch import Tensor

from deepwell.errors import UsageError
from deepwell.lm.engine.native.library import Library
from deepwell.lm.engine.native.program import Precision, supports
from deepwell.lm.engine.native.runner import NativeRunner
from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.engine.runner import Runner
from deepwell.lm.engine.scheduler import Part
from deepwell.lm.engine.sequence import Sequence
from deepwell.lm.model.config import DynamicGating, ModelConfig, RopeScaling
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.quantising import WORDS, round_in_place

from ..networks import SHAPES, greedy

BLOCKS = 60


def random_config(seed: int) -> ModelConfig:
    """Every other one is grouped; the rest is drawn."""
    rng = random.Random(seed)
    heads = rng.choice([2, 4, 6])
    fields: dict[str, Any] = {
        "vocab_size": rng.randrange(40, 90), "hidden_size": rng.randrange(20, 70), "num_hidden_layers": 2,
        "intermediate_size": rng.randrange(10, 70), "num_attention_heads": heads, "max_position_embeddings": 512,
        "rms_norm_eps": rng.choice([1e-6, 1e-5]), "sliding_window": rng.choice([None, None, 5, 17]),
        "tie_word_embeddings": rng.random() < 0.5, "qkv_bias": rng.random() < 0.5, "o_bias": rng.random() < 0.5,
        "mlp_bias": rng.random() < 0.5, "num_nextn_predict_layers": rng.choice([0, 1]), "initializer_range": 0.2,
        "qk_rope_head_dim": rng.choice([2, 4, 8, 10]),
    }  # fmt: skip
    if seed % 2:
        groups = rng.choice([one for one in (1, 2, heads) if heads % one == 0])
        width = rng.randrange(3, 20)
        fields |= {
            "rope_key_heads": groups, "v_head_dim": width, "kv_lora_rank": groups * width, "qk_nope_head_dim": 0,
            "kv_up_proj": False, "latent_norm": False,
        }  # fmt: skip
    else:
        fields |= {
            "kv_lora_rank": rng.randrange(5, 40), "qk_nope_head_dim": rng.randrange(1, 14),
            "v_head_dim": rng.randrange(2, 20), "q_lora_rank": rng.choice([None, rng.randrange(6, 40)]),
            "latent_norm": rng.random() < 0.7,
        }  # fmt: skip
    if rng.random() < 0.4:
        fields["rope_scaling"] = RopeScaling(
            kind="yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.707, mscale_all_dim=0.5
        )
    if rng.random() < 0.6:
        method = rng.choice(["noaux_tc", "group_limited_greedy", "greedy"])
        fields |= {
            "n_routed_experts": 8, "num_experts_per_tok": rng.randrange(1, 5),
            "n_shared_experts": rng.choice([0, 1, 2]), "moe_intermediate_size": rng.randrange(5, 30),
            "first_k_dense_replace": rng.choice([0, 1]),
            "n_group": 4, "topk_group": 4 if method == "greedy" else 2, "topk_method": method,
            "scoring_func": "sigmoid" if method == "noaux_tc" else rng.choice(["sigmoid", "softmax"]),
            "norm_topk_prob": rng.random() < 0.5, "weigh_experts": rng.random() < 0.8,
            "dynamic_gating": rng.choice([None, DynamicGating(share=0.6, minimum=1, maximum=4)]),
        }  # fmt: skip
    return ModelConfig(**fields)


def network_of(config: ModelConfig, seed: int = 0) -> Transformer:
    """Every tensor random, biases and norms as well."""
    torch.manual_seed(seed)
    model = Transformer(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dtype is torch.float32:
                spread = 0.2 if tensor.dim() == 1 else 1 / tensor.shape[-1] ** 0.5
                tensor.copy_(torch.randn(tensor.shape) * spread + ("norm" in name))
    return model


class Steps:
    """A runner with sequences in shuffled blocks of its cache."""

    def __init__(
        self,
        model: Transformer,
        precision: Precision | None,
        library: Library | None = None,
        *,
        block: int = 4,
        seed: int = 0,
        most: int = 150,
    ) -> None:
        mtp = bool(model.config.num_nextn_predict_layers)
        dtype = {"f32": torch.float32, None: model.dtype}.get(precision, torch.bfloat16)
        self.cache = PagedCache(model.config, blocks=BLOCKS, block_size=block, dtype=dtype, mtp=mtp)
        self.cache.rows.fill_(torch.nan)
        self.block = block
        self.free = random.Random(seed).sample(range(BLOCKS), BLOCKS)
        self.runner: Any = Runner(model, self.cache)
        if precision is not None:
            self.runner = NativeRunner(model, self.cache, precision, most_rows=most, most_chosen=7, library=library)

    def sequence(self, tokens: Items[int]) -> Sequence:
        made = Sequence(tokens, greedy(tokens), limit=len(tokens) + 8)
        made.table = [self.free.pop() for _ in range(-(-made.limit // self.block))]
        return made

    def logits(self, cuts: Items[tuple[Sequence, int, int]]) -> list[Tensor]:
        """Of one step with these parts."""
        states, _ = self.runner.run([Part(one, start, end - start) for one, start, end in cuts])
        return list(self.runner.head(states).clone().split([end - start for _, start, end in cuts]))


def text(config: ModelConfig, length: int, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(config.vocab_size) for _ in range(length)]


@pytest.mark.parametrize("seed", range(24))
@torch.no_grad()
def test_logits_are_the_networks_own(seed: int, library: Library) -> None:
    config = random_config(seed)
    model = network_of(config, seed)
    steps = Steps(model, "f32", library, block=[4, 7, 16][seed % 3])
    tokens = text(config, 61)
    (found,) = steps.logits([(steps.sequence(tokens), 0, 61)])
    wanted = model.double()(torch.tensor([tokens]))[0]
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("precision", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5, 8])
def test_a_text_has_the_same_bits_however_it_is_cut(
    seed: int, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = random_config(seed)
    model = network_of(config, seed)
    tokens, other = text(config, 61), text(config, 40, seed=2)
    first = Steps(model, precision)
    (whole,) = first.logits([(first.sequence(tokens), 0, 61)])
    cuts = [(0, 1), (1, 2), (2, 35), (35, 36), (36, 41), (41, 61)]
    for threads, block in ((1, 4), (2, 16), (3, 5)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        steps = Steps(model, precision, block=block, seed=threads)
        mine, beside = steps.sequence(tokens), steps.sequence(other)
        found = []
        for index, (start, end) in enumerate(cuts):
            others = [(beside, 6 * index, 6 * index + 6)] if index % 2 or threads == 3 else []
            if index % 2:
                beside.computed, others = 0, [(beside, 0, 40)]
            found.append(steps.logits([*others, (mine, start, end)])[-1])
        assert torch.equal(torch.cat(found), whole)


@pytest.mark.parametrize("seed", range(14))
@torch.no_grad()
def test_the_module_of_deeper_prediction_says_what_it_says_in_pytorch(seed: int) -> None:
    config = random_config(seed).replace(num_nextn_predict_layers=1)
    model = network_of(config, seed)
    said: list[list[tuple[list[int], Tensor]]] = []
    for steps in (Steps(model, "f32"), Steps(copy.deepcopy(model).double(), None)):
        sequences = [steps.sequence(text(config, length, seed=length)) for length in (30, 12)]
        hidden, step = steps.runner.run([Part(one, 0, len(one.tokens)) for one in sequences])
        following = [token for one in sequences for token in (*one.tokens[1:], 7)]
        here = [steps.runner.draft(hidden, following, step, [29, 41])]
        for length in range(2):
            parts = [Part(one, len(one.tokens) + length, 1) for one in sequences]
            here.append(steps.runner.draft_on(parts, here[-1][1], here[-1][0]))
        hidden, step = steps.runner.run([Part(sequences[0], 0, 9)])
        assert steps.runner.draft(hidden, [3] * 9, step, [])[0] == []
        said.append(here)
    for (tokens, states), (wanted, wanted_states) in zip(*said, strict=True):
        assert tokens == wanted
        assert (states - wanted_states).abs().max() < 1e-4 * wanted_states.abs().max()


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.02), ("int8", 0.02), ("int4", 0.05)])
@pytest.mark.parametrize("shape", ["grouped", "latent", "experts"])
@torch.no_grad()
def test_rounded_weights_are_those_of_the_rounded_network(precision: Precision, bound: float, shape: str) -> None:
    """What is left are inputs of bf16 in the embedding and the cache, and for int4 inputs of products in 8 bits."""
    config = SHAPES[shape].replace(num_nextn_predict_layers=0)
    model = network_of(config)
    steps = Steps(model, precision)
    tokens = text(config, 61)
    (found,) = steps.logits([(steps.sequence(tokens), 0, 61)])
    if precision in WORDS:
        round_in_place(model, WORDS[precision])
    else:
        model = model.bfloat16().float()
    wanted = model.double()(torch.tensor([tokens]))[0]
    far = ((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median()
    assert far < bound


def test_weights_take_what_their_precision_says() -> None:
    model = network_of(SHAPES["latent"])
    sizes = {
        precision: Steps(model, precision).runner.weight_bytes for precision in ("f32", "bf16", "int8", "int4")
    }  # fmt: skip
    assert sizes["f32"] > 1.9 * sizes["bf16"] > 1.9 * sizes["int8"] > 1.9 * 1.2 * sizes["int4"]


def test_a_network_that_is_let_go_of_keeps_its_shape_alone() -> None:
    model = network_of(SHAPES["experts"])
    tokens = text(model.config, 30)
    kept = Steps(model, "f32")
    (wanted,) = kept.logits([(kept.sequence(tokens), 0, 30)])
    cache = PagedCache(model.config, blocks=20, block_size=4, dtype=torch.float32, mtp=True)
    runner = NativeRunner(model, cache, "f32", most_rows=30, most_chosen=30, consume=True)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    sequence = Sequence(tokens, greedy(tokens), limit=30)
    sequence.table = list(range(8))
    assert torch.equal(runner.head(runner.run([Part(sequence, 0, 30)])[0]), wanted)


def test_what_it_cannot_carry_out_is_an_error() -> None:
    model = network_of(SHAPES["compressed"])
    assert not supports(model.config)
    with pytest.raises(UsageError, match="cannot carry out this network"):
        Steps(model, "f32")
