"""Whether stock llama.cpp computes what we compute, on files that we write.

    python benchmarks/gguf_agreement.py --python /path/to/venv/bin/python           # about 3 minutes on two cores
    python benchmarks/gguf_agreement.py --model my-model --precision bf16           # any network that GGUF can express

llama.cpp comes as llama-cpp-python, which is no dependency of ours because it takes ten minutes to compile:

    python -m venv llama && llama/bin/pip install llama-cpp-python numpy
    python benchmarks/gguf_agreement.py --python llama/bin/python

Written and read back: ``debug-moe`` (a query rank, 16 experts in 4 groups, a shared expert) with random weights;
SmolLM2 as ``llama``; SmolLM2's weights in latent attention (a latent that is not normalised, 64 rope dimensions) as
``deepseek2``. Both see the same ids of a text (``DEEPWELL_DATA``); logits at every position are compared: how often the
most probable token is the same, and the Kullback-Leibler divergence. llama.cpp keeps its cache in float16 and computes
attention in it, so equality to the last bit is not to be had; and of random experts one token in a few hundred goes to
another expert, when two scores are that close.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from deepwell.lm import Tokenizer, Transformer

SMOLLM = "smollm2-135m-instruct"
SEED = 20261123


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return worker(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that can import llama_cpp and numpy")
    parser.add_argument("--model", help="a name, folder or file, in place of the three networks")
    parser.add_argument("--precision", choices=["f16", "bf16", "f32"], default="f16")
    parser.add_argument("--tokens", type=int, default=512, help="in a sequence (default 512)")
    parser.add_argument("--sequences", type=int, default=4)
    options = parser.parse_args()
    if options.python == sys.executable and importlib.util.find_spec("llama_cpp") is None:
        print("llama-cpp-python is not installed here; see --help for how to have it beside this one, and --python")
        return None
    import torch

    from deepwell.lm.weights.gguf.writing import write_gguf

    print(
        f"llama.cpp against this network, precision {options.precision}, {options.sequences} x {options.tokens} tokens"
    )
    for name, model, tokenizer in networks(options.model):
        tokens = text_of(model, tokenizer, options.sequences, options.tokens)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            notes = write_gguf(model, file, precision=options.precision, tokenizer=tokenizer)
            megabytes = file.stat().st_size / 1e6
            theirs = in_llama_cpp(options.python, file, tokens)
        rounded(model, options.precision)
        with torch.inference_mode():
            ours = torch.cat([model(row[None]) for row in tokens]).float()
        mine, other = ours.log_softmax(-1), theirs.log_softmax(-1)
        same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
        divergence = (mine.exp() * (mine - other)).sum(-1)
        width = mine.exp().amax(-1).mean().item()
        print(f"{name} ({megabytes:.0f} MB): same top token {same:.2%} (aim 98%), "
              f"KL mean {divergence.mean().item():.1e}, largest {divergence.max().item():.1e}; "
              f"the top token's mean probability {width:.2f}")  # fmt: skip
        for note in notes:
            print(f"    note: {note}")
    return None


def networks(wanted: str | None) -> Iterator[tuple[str, Transformer, Tokenizer | None]]:
    """What is compared, one after the other, in float32."""
    from deepwell import models
    from deepwell.lm import load

    if wanted:
        yield wanted, *load(wanted, dtype="f32")
        return
    yield "debug-moe as deepseek2", random_experts(), None
    try:
        models.folder(SMOLLM)
    except Exception as error:
        print(f"SmolLM2 is not here: {error}")
        return
    smollm, tokenizer = load(SMOLLM, dtype="f32")
    yield "SmolLM2 as llama", smollm, tokenizer
    yield "SmolLM2 with latent attention as deepseek2", latent_smollm(smollm), tokenizer


def random_experts() -> Transformer:
    """debug-moe with weights large enough that its words differ: matrices keep the size of what goes through them."""
    import torch

    from deepwell.lm import ModelConfig, Transformer

    generator = torch.Generator().manual_seed(SEED)
    model = Transformer(ModelConfig.named("debug-moe").replace(num_nextn_predict_layers=0)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
            if name == "lm_head.weight":
                parameter.mul_(4)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.05, generator=generator)
    return model


def latent_smollm(smollm: Transformer) -> Transformer:
    """SmolLM2's weights in latent attention with one rotary key of 64 dimensions for all heads.

    Values pass through the latent exactly (its first 192 rows are they). The shared rotary key is the mean of the three
    keys, and what a head's key differs from it goes, unturned, through 192 rows more: no compression anybody would use,
    but a network of the right shape with words of its own.
    """
    import torch

    from deepwell.lm import Transformer

    old = smollm.config
    heads, groups, width, hidden = old.num_attention_heads, old.rope_key_heads, old.qk_rope_head_dim, old.hidden_size
    values = groups * width
    config = old.replace(
        kv_up_proj=True, rope_key_heads=1, kv_lora_rank=2 * values, qk_nope_head_dim=width, qk_rope_head_dim=width,
        v_head_dim=width, latent_norm=False, name="SmolLM2 with latent attention",
    )  # fmt: skip
    model = Transformer(config, device="meta")
    held = {name: tensor for name, tensor in smollm.state_dict().items() if ".self_attn." not in name}
    scale = 2**0.5  # heads are twice as wide, so scores are divided by more
    for layer in range(old.num_hidden_layers):
        name = f"layers.{layer}.self_attn."
        part = {key: smollm.state_dict()[f"{name}{key}.weight"] for key in ("q_proj", "kv_a_proj_with_mqa", "o_proj")}
        value, key = part["kv_a_proj_with_mqa"].split((values, values))
        key = key.view(groups, width, hidden)
        shared = key.mean(0)
        query = part["q_proj"].view(heads, width, hidden)
        held[f"{name}q_proj.weight"] = (torch.cat([query, query], dim=1) * scale).reshape(-1, hidden)
        held[f"{name}kv_a_proj_with_mqa.weight"] = torch.cat([value, (key - shared).reshape(values, hidden), shared])
        up = torch.zeros(heads, 2 * width, 2 * values)
        for head in range(heads):
            group = head // (heads // groups)
            up[head, :width, values + group * width : values + (group + 1) * width] = torch.eye(width)
            up[head, width:, group * width : (group + 1) * width] = torch.eye(width)
        held[f"{name}kv_b_proj.weight"] = up.reshape(-1, 2 * values)
        held[f"{name}o_proj.weight"] = part["o_proj"]
    model.load_state_dict(held, assign=True)
    return model.eval()


def rounded(model: Transformer, precision: str) -> None:
    """Round the matrices as the file has them, so that what is compared is arithmetic and not rounding."""
    import torch

    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[precision]
    faint = not model.config.latent_norm and not model.config.is_grouped
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            exact = name.endswith("mlp.gate.weight") or (faint and ("kv_a_proj" in name or "q_a_proj" in name))
            if parameter.ndim > 1 and not exact:
                parameter.copy_(parameter.to(dtype))


def text_of(model: Transformer, tokenizer: Tokenizer | None, sequences: int, length: int) -> Tensor:
    """Token ids [sequences, length] of a real text; bytes of it where there is no tokenizer."""
    import torch

    from deepwell.paths import default_data

    data = default_data()
    path = data / "text" / "wikitext2-valid.txt" if data is not None else Path(__file__)
    text = path.read_text(encoding="utf-8")[: 16 * sequences * length]
    ids = tokenizer.encode(text) if tokenizer is not None else list(text.encode())
    while len(ids) < sequences * length:
        ids += ids
    return torch.tensor(ids[: sequences * length]).reshape(sequences, length) % model.config.vocab_size


def in_llama_cpp(python: str, file: Path, tokens: Tensor) -> Tensor:
    """Logits [sequences, length, vocab] of llama.cpp, computed in another process."""
    import numpy as np
    import torch

    given, answer = file.with_suffix(".tokens.npy"), file.with_suffix(".logits.npy")
    np.save(given, tokens.numpy())
    done = subprocess.run(
        [python, __file__, "--worker", str(file), str(given), str(answer)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"llama.cpp failed ({done.returncode}):\n{done.stderr[-2000:]}")
    return torch.from_numpy(np.load(answer))


def worker(file: str, given: str, answer: str) -> None:
    """Runs where llama_cpp is: needs that and numpy, nothing of ours."""
    import llama_cpp
    import numpy as np

    model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit("it does not load the file")
    tokens = np.load(given)
    length = tokens.shape[1]
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = length
    context = llama_cpp.llama_init_from_model(model, params)
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    logits = np.empty((*tokens.shape, vocab), dtype=np.float32)
    batch = llama_cpp.llama_batch_init(length, 0, 1)
    for row, out in zip(tokens, logits, strict=True):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch.n_tokens = length
        for position, token in enumerate(row):
            batch.token[position], batch.pos[position] = int(token), position
            batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, 1
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit("it does not compute this text")
        result = ctypes.cast(llama_cpp.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
        out[:] = np.ctypeslib.as_array(result, shape=(length, vocab))
    np.save(answer, logits)


if __name__ == "__main__":
    main()
