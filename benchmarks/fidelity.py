"""Whether SmolLM2 from a GGUF file is the same network here as in transformers: logits, words, cache.

    python benchmarks/fidelity.py                        # about 2 minutes on two cores
    python benchmarks/fidelity.py --file model.gguf --tokens 2048

The file is read twice, by two readers that share only the arithmetic of its quantisation (the gguf package's): ours,
and transformers' own (``load_gguf_checkpoint``) into the class of its architecture. Then both see the same tokens in
float32. Printed: the largest difference of a logit over a text (``DEEPWELL_DATA``; without it, over the prompts), how
many of 20 prompts they go on with the same 64 words, how far a decode from the cache is from a forward over everything,
and what a token costs in either cache.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepwell import models
from deepwell.lm import load
from deepwell.lm.model.cache import LatentCache
from deepwell.lm.model.transformer import Transformer
from deepwell.paths import default_data

MODEL = "smollm2-135m-instruct"
PROMPTS = (
    "The history of the bicycle begins with a wooden machine that",
    "Water boils at a lower temperature on a mountain because",
    "In the middle of the night the lighthouse keeper heard",
    "To make bread you need flour, water, salt and",
    "The capital of France is a city that many people",
    "A binary search tree is a data structure in which every",
    "The causes of the First World War are still discussed by",
    "When the bees returned in spring, the old gardener saw",
    "Photosynthesis turns light into chemical energy, and the",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "The largest planet of our solar system is Jupiter, whose",
    "My grandmother always told me that the secret of a",
    "Once upon a time there was a small fox who wanted",
    "The theory of evolution explains how species change over",
    "To open a bank account in a new country you should",
    "The violin is played with a bow, and its four strings",
    "Dear Sir or Madam, I am writing to ask whether the",
    "Volcanoes form where the plates of the earth's crust are",
    "The first computers filled whole rooms and were used to",
    "If it rains tomorrow, the football match will be moved to",
)
WORDS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help=f"a GGUF file; default: {MODEL}")
    parser.add_argument("--tokens", type=int, default=1024, help="of text to compare logits on (default 1024)")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    file = options.file or next(models.folder(MODEL).glob("*.gguf"))
    began = time.perf_counter()
    ours, tokenizer = load(file, dtype="f32")
    ours.eval()
    print(f"{file.name} · {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, float32")
    print(f"read in {time.perf_counter() - began:.1f} s")
    theirs = in_transformers(file)
    encoded = [tokenizer.encode(prompt) for prompt in PROMPTS]
    width = min(map(len, encoded))
    prompts = torch.tensor([ids[:width] for ids in encoded])
    data = default_data()
    text = prompts.reshape(1, -1)
    if data is not None and (path := data / "text" / "wikitext2-valid.txt").is_file():
        text = torch.tensor([tokenizer.encode(path.read_text(encoding="utf-8")[: 8 * options.tokens])])
    text = text[:, : options.tokens]
    with torch.inference_mode():
        mine, other = ours(text), theirs(text).logits
        difference = (mine - other).abs().max().item()
        same_top = (mine.argmax(-1) == other.argmax(-1)).double().mean().item()
        print(f"logits over {text.shape[1]} tokens: largest difference {difference:.2e} (aim 1e-3), "
              f"largest logit {other.abs().max().item():.1f}, same top token {same_top:.2%}")  # fmt: skip
        here, there = go_on(ours, prompts), go_on_in_transformers(theirs, prompts)
        equal = int((here == there).all(-1).sum())
        print(f"greedy, {WORDS} tokens: {equal} of {len(prompts)} prompts the same (aim all)")
        cached, whole = logits_from_cache(ours, text[:, :256]), ours(text[:, :256])
        print(
            f"decode from the cache against one forward: largest difference {(cached - whole).abs().max().item():.2e}"
        )
    grouped = 2 * theirs.config.num_key_value_heads * theirs.config.head_dim * theirs.config.num_hidden_layers * 2
    print(
        f"cache in bf16: {ours.config.cache_bytes_per_token()} bytes a token; keys and values of its heads: {grouped}"
    )


def in_transformers(file: Path) -> Any:
    """The same file through transformers' own reader."""
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.models.auto.configuration_auto import AutoConfig

    described = load_gguf_checkpoint(str(file), return_tensors=False)["config"]
    config = AutoConfig.for_model(**{key: value for key, value in described.items() if not key.startswith("_")})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    missing, strange = model.load_state_dict(tensors, strict=False)
    if strange or (missing and missing != ["lm_head.weight"]):
        raise SystemExit(f"transformers read another network: {missing[:3]} missing, {strange[:3]} strange")
    model.tie_weights()
    return model


def go_on(model: Transformer, prompts: Tensor) -> Tensor:
    """The most probable next tokens, from the cache: [B, T] -> [B, WORDS]."""
    config = model.config
    cache = LatentCache(
        config, batch=len(prompts), capacity=prompts.shape[1] + WORDS, dtype=model.embed_tokens.weight.dtype
    )
    words, tokens = [], prompts
    for _ in range(WORDS):
        tokens = model(tokens, cache=cache)[:, -1:].argmax(-1)
        words.append(tokens)
    return torch.cat(words, dim=1)


def go_on_in_transformers(model: Any, prompts: Tensor) -> Tensor:
    """The same in transformers."""
    words, tokens, cache = [], prompts, None
    for _ in range(WORDS):
        out = model(tokens, past_key_values=cache, use_cache=True)
        tokens, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        words.append(tokens)
    return torch.cat(words, dim=1)


def logits_from_cache(model: Transformer, text: Tensor) -> Tensor:
    """Half of a text at once, then token by token: [1, T] -> [1, T, vocab]."""
    half = text.shape[1] // 2
    cache = LatentCache(model.config, batch=1, capacity=text.shape[1], dtype=model.embed_tokens.weight.dtype)
    parts = [model(text[:, :half], cache=cache)]
    parts += [model(text[:, at : at + 1], cache=cache) for at in range(half, text.shape[1])]
    return torch.cat(parts, dim=1)


if __name__ == "__main__":
    main()
