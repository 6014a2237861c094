"""SmolLM2 from its GGUF file is the network that transformers has; ``benchmarks/fidelity.py`` measures the same."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepwell.lm import load

BENCHMARK = Path(__file__).parents[4] / "benchmarks" / "fidelity.py"


@pytest.mark.models
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # transformers and its progress bars
def test_smollm2_has_the_logits_the_words_and_the_cache_of_transformers_llama(models: Path) -> None:
    spec = importlib.util.spec_from_file_location("fidelity", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    fidelity = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fidelity)
    (file,) = (models / "smollm2-135m-instruct").glob("*.gguf")
    ours, tokenizer = load(file, dtype="f32")
    ours.eval()
    theirs = fidelity.in_transformers(file)
    encoded = [tokenizer.encode(prompt) for prompt in fidelity.PROMPTS]
    width = min(map(len, encoded))
    prompts = torch.tensor([ids[:width] for ids in encoded])
    with torch.inference_mode():
        mine, other = ours(prompts), theirs(prompts).logits
        assert other.abs().max() > 5
        assert (mine - other).abs().max() < 1e-3
        assert torch.equal(fidelity.go_on(ours, prompts), fidelity.go_on_in_transformers(theirs, prompts))
    heads = theirs.config.num_key_value_heads * theirs.config.head_dim * theirs.config.num_hidden_layers
    assert ours.config.cache_bytes_per_token(2) == 2 * heads * 2


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is not None, reason="llama-cpp-python is here")
def test_the_comparison_with_llama_cpp_says_how_to_get_it() -> None:
    script = BENCHMARK.with_name("gguf_agreement.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert "llama-cpp-python is not installed" in done.stdout
