"""Small random networks whose choices are clear, and answers from a plain loop to compare with."""

import random
from collections.abc import Sequence

import torch

from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.sampler import SamplerState
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer

SHAPES = {
    # grouped attention, as Llama has it, with biases
    "grouped": ModelConfig(
        vocab_size=97, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6,
        kv_lora_rank=16, qk_nope_head_dim=0, qk_rope_head_dim=8, v_head_dim=8, rope_key_heads=2, kv_up_proj=False,
        latent_norm=False, qkv_bias=True, max_position_embeddings=512, initializer_range=0.2,
    ),
    "window": ModelConfig(
        vocab_size=97, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6,
        kv_lora_rank=16, qk_nope_head_dim=0, qk_rope_head_dim=8, v_head_dim=8, rope_key_heads=2, kv_up_proj=False,
        latent_norm=False, max_position_embeddings=512, initializer_range=0.2, sliding_window=11,
    ),
    "latent": ModelConfig.named("debug").replace(vocab_size=97, initializer_range=0.15),
    "experts": ModelConfig.named("debug-moe").replace(vocab_size=97, num_hidden_layers=2, initializer_range=0.1),
    # several rotary keys over expanded latents, as in a compressed Llama
    "compressed": ModelConfig(
        vocab_size=97, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6,
        kv_lora_rank=12, qk_nope_head_dim=4, qk_rope_head_dim=8, v_head_dim=8, rope_key_heads=2, latent_norm=False,
        max_position_embeddings=512, initializer_range=0.2,
    ),
}  # fmt: skip


def prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Prompts of mixed lengths; every third repeats itself, so that looking up finds something."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        tokens = [rng.randrange(97) for _ in range(rng.randrange(1, longest))]
        made.append((tokens[: max(1, longest // 3)] * 2)[:longest] if index % 3 == 0 else tokens)
    return made


@torch.no_grad()
def plain_loop(model: Transformer, prompt: Sequence[int], count: int, ends: Sequence[int] = ()) -> list[int]:
    """Greedy decoding as its definition has it: the whole text through the network for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


@torch.no_grad()
def is_greedy(model: Transformer, prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """Whether a plain loop makes this answer: each of its tokens is the best behind those before it.

    One pass without a cache over all of it says so; it is the loop's, all steps at once.
    """
    best = model(torch.tensor([[*prompt, *answer]]))[0].argmax(-1).tolist()
    return best[len(prompt) - 1 : -1] == list(answer)


def greedy(prompt: Sequence[int], vocab: int = 97) -> SamplerState:
    """The state of a greedy request."""
    return SamplerState(SamplingParams(temperature=0), prompt, vocab)
