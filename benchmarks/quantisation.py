"""What rounding SmolLM2-135M-Instruct's weights costs: perplexity and bytes, ours beside llama.cpp's formats.

    python benchmarks/quantisation.py [--peer-python PATH] [--windows 12] [--only ours|llama] [--shuffle no]
    python benchmarks/quantisation.py --search         # what the search for 4-bit grids is worth, without a text

Text: WikiText-2's validation text (``text/wikitext2-valid.txt`` of ``DEEPWELL_DATA``), windows of 1,024 tokens that do
not overlap; all sides predict the same tokens. "cost" is how much the perplexity grows, with its standard error: of the
differences token by token, so that what is hard for every side does not count.

The model comes as a Q4_1 file: its weights already lie on a grid of 4 bits, and int4 and Q4_1 would lose nothing. So by
default its channels are put into another order first, everywhere alike, which leaves the network as it is (its float32
perplexity is printed before and after) and mixes the groups that share a scale. ``--shuffle no`` leaves them.

Ours runs in the engine as it serves; llama.cpp through its C interface, with files made here by its own quantiser.
``--peer-python`` is a Python with llama-cpp-python. Without the data or the model the script says so and ends.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
WINDOW = 1024
TUNED = 20_000
"""Characters at the beginning of the text that choices were made on; they are not measured on."""
OURS = ("f32", "bf16", "int8", "int4")
QUANTS = {"F16": None, "Q8_0": 7, "Q4_1": 3, "Q4_0": 2}
"""llama.cpp's numbers for its formats."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="a Python with llama-cpp-python")
    parser.add_argument("--windows", type=int, default=12, help="of 1,024 tokens (default 12)")
    parser.add_argument("--only", choices=["ours", "llama"])
    parser.add_argument("--shuffle", choices=["yes", "no"], default="yes", help="put channels into another order")
    parser.add_argument("--search", action="store_true", help="the errors of shorter and longer searches instead")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, where, target = options.side
        if side == "quantise":
            make_file(Path(where), Path(target))
        else:
            print(json.dumps({"ours": ours, "llama": llama}[side](Path(where), target)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if not prepare(folder, options.windows, options.shuffle == "yes", options.search) or options.search:
            return
        results: dict[str, dict[str, Any]] = {}
        if options.only != "llama":
            for precision in OURS:
                results[f"deepwell {precision}"] = apart(sys.executable, "ours", folder, precision)
        if options.only != "ours" and options.peer_python:
            for name, kind in QUANTS.items():
                if kind is not None:
                    apart(options.peer_python, "quantise", folder / "F16.gguf", str(folder / f"{name}.gguf"))
                results[f"llama.cpp {name}"] = apart(options.peer_python, "llama", folder, name)
        table(results)


def prepare(folder: Path, count: int, shuffle: bool, search: bool) -> bool:
    """The model as all sides read it, and the windows; False where something is missing."""
    import torch

    from deepwell.errors import MissingModelError
    from deepwell.lm import load, save
    from deepwell.paths import default_data

    data = default_data()
    if data is None or not (data / "text" / "wikitext2-valid.txt").is_file():
        print("no data: set DEEPWELL_DATA to a folder with text/")
        return False
    try:
        network, tokenizer = load(MODEL, dtype="f32")
    except MissingModelError as error:
        print(error)
        return False
    text = (data / "text" / "wikitext2-valid.txt").read_text(encoding="utf-8")[TUNED:]
    ids = tokenizer.encode(text[: count * WINDOW * 6])
    windows = [ids[start : start + WINDOW] for start in range(0, count * WINDOW, WINDOW)]
    windows = [window for window in windows if len(window) == WINDOW]
    if shuffle:
        probe = torch.tensor([windows[0]])
        with torch.no_grad():
            before = network(probe)
            shuffled(network)
            off = (network(probe) - before).abs().max()
        print(f"channels in another order: logits of one window differ by at most {off:.1e} in float32")
    if search:
        searches(network)
        return True
    save(network, folder / "model", precision="f32", tokenizer=tokenizer)
    save(network, folder / "F16.gguf", format="gguf", precision="f16", tokenizer=tokenizer)
    (folder / "windows.json").write_text(json.dumps(windows), encoding="utf-8")
    print(f"{MODEL}: {len(windows)} windows of {WINDOW:,} tokens", flush=True)
    return True


def shuffled(network: Any) -> None:
    """Put the stream's channels, each layer's middle channels, and each head's values into another order, in place."""
    import torch

    config, generator = network.config, torch.Generator().manual_seed(0)

    def order(count: int) -> Any:
        return torch.randperm(count, generator=generator)

    def apply(parameter: Any, rows: Any = None, columns: Any = None) -> None:
        made = parameter.data if rows is None else parameter.data[rows]
        parameter.data.copy_(made if columns is None else made[..., columns])

    stream = order(config.hidden_size)
    apply(network.embed_tokens.weight, columns=stream)
    apply(network.norm.weight, rows=stream)
    groups, width = config.rope_key_heads, config.v_head_dim
    for layer in network.layers:
        attention, mlp = layer.self_attn, layer.mlp
        values = torch.cat([order(width) + width * group for group in range(groups)])
        latent = torch.cat([values, torch.arange(groups * width, config.latent_width)])
        # Heads of one group read the same values.
        each = values.view(groups, 1, width).expand(groups, config.num_attention_heads // groups, width)
        shift = width * (
            torch.arange(config.num_attention_heads) - torch.arange(groups).repeat_interleave(each.shape[1])
        )
        found = (each.flatten(0, 1) + shift[:, None]).flatten()
        middle = order(config.intermediate_size)
        apply(layer.input_layernorm.weight, rows=stream)
        apply(layer.post_attention_layernorm.weight, rows=stream)
        apply(attention.q_proj.weight, columns=stream)
        apply(attention.kv_a_proj_with_mqa.weight, rows=latent, columns=stream)
        apply(attention.o_proj.weight, rows=stream, columns=found)
        apply(mlp.gate_proj.weight, rows=middle, columns=stream)
        apply(mlp.up_proj.weight, rows=middle, columns=stream)
        apply(mlp.down_proj.weight, rows=stream, columns=middle)


def searches(network: Any) -> None:
    """Signal to noise of every tenth layer's matrices, errors weighed as in the search, by how long it is."""
    from deepwell.lm.precision.fitting import CUTS, REFITS, fit_affine
    from deepwell.lm.precision.integers import GROUP

    matrices = [
        parameter.detach().reshape(-1, GROUP)
        for layer in network.layers[::10]
        for parameter in layer.parameters()
        if parameter.dim() == 2
    ]
    fine = tuple(step / 50 for step in range(-1, 9))
    rows = (
        ("the whole range", (0.0,), 0), ("and refitted", (0.0,), REFITS), ("ranges", CUTS, 0),
        ("ranges, refitted: as it is", CUTS, REFITS), ("100 ranges, 20 refits", fine, 20),
    )  # fmt: skip
    weights = sum(groups.numel() for groups in matrices)
    print(f"\n{weights / 1e6:.1f}M weights to 4 bits\n{'':30}{'SNR dB':>8}{'seconds':>9}")
    for name, cuts, refits in rows:
        lost = power = 0.0
        begun, seconds = time.perf_counter(), 0.0
        for groups in matrices:
            begun = time.perf_counter()
            values, grid = fit_affine(groups, cuts=cuts, refits=refits)
            seconds += time.perf_counter() - begun
            wide = values * grid.scale[:, None] + grid.minimum[:, None]
            lost += float((wide - groups).mul(groups).double().square().sum())
            power += float(groups.double().pow(4).sum())
        print(f"{name:30}{10 * math.log10(power / lost):8.2f}{seconds:9.2f}", flush=True)


def apart(python: str, side: str, where: Path, target: str) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [python, __file__, "--side", side, str(where), target]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


def ours(folder: Path, precision: str) -> dict[str, Any]:
    """Log-probabilities by the engine, and the bytes of the weights, a tied embedding once."""
    from deepwell.lm import Model
    from deepwell.lm.model.accounting import Account
    from deepwell.lm.weights.quantising import WORDS, quantisation

    model = Model.load(folder / "model", precision=precision, device="cpu", cache_bytes=2**28)
    scores = [model.score(window) for window in json.loads((folder / "windows.json").read_text(encoding="utf-8"))]
    if precision in WORDS:
        size = quantisation(str(folder / "model"), WORDS[precision]).bytes
    else:
        account = Account.of(model.network.config, precision=precision)  # type: ignore[arg-type]
        size = sum(account.bytes_by_part.values())
    return {"scores": scores, "bytes": size}


def llama(folder: Path, name: str) -> dict[str, Any]:
    """Log-probabilities from llama.cpp's logits."""
    import llama_cpp as c
    import numpy as np

    silent = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(silent, ctypes.c_void_p())
    c.llama_backend_init()
    model = c.llama_model_load_from_file(str(folder / f"{name}.gguf").encode(), c.llama_model_default_params())
    options = c.llama_context_default_params()
    options.n_ctx = options.n_batch = WINDOW
    options.n_ubatch = 256
    context = c.llama_init_from_model(model, options)
    vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    batch = c.llama_batch_init(WINDOW, 0, 1)
    scores = []
    for window in json.loads((folder / "windows.json").read_text(encoding="utf-8")):
        c.llama_memory_clear(c.llama_get_memory(context), True)
        batch.n_tokens = len(window)
        for index, token in enumerate(window):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, True
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        if c.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        found = []
        for index, token in enumerate(window[1:]):
            row = np.ctypeslib.as_array(c.llama_get_logits_ith(context, index), (vocab,)).astype(np.float64)
            top = row.max()
            found.append(float(row[token] - top - np.log(np.exp(row - top).sum())))
        scores.append(found)
    return {"scores": scores, "bytes": c.llama_model_size(model)}


def make_file(source: Path, target: Path) -> None:
    """A GGUF file in one of llama.cpp's formats, by its own quantiser."""
    import llama_cpp as c

    silent = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(silent, ctypes.c_void_p())
    options = c.llama_model_quantize_default_params()
    options.ftype, options.nthread = QUANTS[target.stem], 2
    if c.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options)):
        raise RuntimeError(f"{target} could not be made")


def table(results: dict[str, dict[str, Any]]) -> None:
    """Perplexity, its growth over the first row, and bytes."""
    if not results:
        return
    base = None
    print(f"\n{'':20}{'perplexity':>11}{'cost':>18}{'MB':>8}")
    for name, found in results.items():
        scores = [score for window in found["scores"] for score in window]
        base = base or scores
        worse = [one - other for one, other in zip(base, scores, strict=True)]
        mean = sum(worse) / len(worse)
        spread = math.sqrt(sum((one - mean) ** 2 for one in worse) / len(worse) / len(worse))
        cost = f"{math.expm1(mean):+.2%} ± {spread:.2%}"
        print(f"{name:20}{math.exp(-sum(scores) / len(scores)):11.3f}{cost:>18}{found['bytes'] / 1e6:8.1f}")


if __name__ == "__main__":
    main()
