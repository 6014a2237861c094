"""FP8 training beside bf16, from the same weights over the same rows: how far the loss curves lie apart.

    python benchmarks/fp8_training.py                                  # bf16 and fp8, seed 7: about half an hour
    python benchmarks/fp8_training.py --arms bf16 fp8 fp8-pow2 tensor f32 --seeds 7 8 --svg docs/images/fp8.svg

Arms: ``bf16``; ``fp8`` (tiles of 1 x 128 and blocks of 128 x 128, float32 scales); ``fp8-pow2`` (the same with scales
that are powers of two); ``tensor`` (FP8 with one scale a tensor); ``f32``, which differs from bf16 by rounding alone
and so shows how far apart two good runs drift by chance. Each arm of each seed runs in a process of its own, one after
the other, on one thread unless ``--threads`` says more. One that was finished with the same settings is read from
``--out`` and not run again; so two commands with different seeds can share a machine and a folder.

The network mixes experts as V3 does (8 of which 2, one shared) with widths that are multiples of 128; it reads bytes of
the texts in ``DEEPWELL_DATA``, of which the last twentieth of each file is held back. Printed for each arm, relative to
bf16 of the same seed: the gap of the smoothed loss over the last half of the run (mean, and largest), over the last
20th, and of the held-back loss; bytes kept for the backward pass of one step; bytes of the saved model.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ARMS: dict[str, dict[str, str]] = {
    "bf16": {"compute": "bf16"},
    "fp8": {"compute": "fp8"},
    "fp8-pow2": {"compute": "fp8", "scales": "power-of-two"},
    "tensor": {"compute": "fp8", "scaling": "tensor"},
    "f32": {"compute": "f32"},
}
COLOURS = {"bf16": "#1f77b4", "fp8": "#d62728", "fp8-pow2": "#9467bd", "tensor": "#ff7f0e", "f32": "#7f7f7f"}
SMOOTH = 50
"""Steps of the running mean."""


def config() -> Any:
    """The network: 3.2 million weights, of which a token uses 2.0 million."""
    from deepwell.lm.model.config import ModelConfig

    return ModelConfig(
        vocab_size=256, hidden_size=256, intermediate_size=768, num_hidden_layers=3, num_attention_heads=2,
        kv_lora_rank=128, qk_nope_head_dim=96, qk_rope_head_dim=32, v_head_dim=128, moe_intermediate_size=128,
        n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1,
        initializer_range=0.02, max_position_embeddings=512,
    )  # fmt: skip


def texts() -> tuple[Any, Any]:
    """Bytes to learn from and bytes held back, int64."""
    import torch

    from deepwell.paths import default_data

    folder = default_data()
    files = sorted((folder / "text").glob("*.txt")) if folder else []
    if not files:
        raise SystemExit("no text: set DEEPWELL_DATA to a folder with text/*.txt")
    learnt, held = [], []
    for file in files:
        content = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        border = len(content) * 19 // 20
        learnt.append(content[:border])
        held.append(content[border:])
    return torch.cat(learnt).long(), torch.cat(held).long()


def run_arm(arm: str, seed: int, settings: dict[str, Any], file: Path) -> None:
    """Train one arm and write what it found."""
    import torch

    from deepwell.lm.model.transformer import Transformer
    from deepwell.lm.training.precision import describe, set_precision
    from deepwell.lm.training.recipe import PrecisionSection
    from deepwell.lm.weights.saving import save

    torch.set_num_threads(settings["threads"])
    learnt, held = texts()
    section = PrecisionSection(**ARMS[arm])  # type: ignore[arg-type]
    torch.manual_seed(seed)
    model = Transformer(config())
    set_precision(model, section)
    matrices = [one for one in model.parameters() if one.dim() > 1]
    others = [one for one in model.parameters() if one.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=settings["lr"], betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    rows, length, steps = settings["rows"], settings["length"], settings["steps"]
    draws = torch.Generator().manual_seed(seed)
    span = torch.arange(length + 1)
    looked_at = torch.arange(0, len(held) - length - 1, (len(held) - length - 1) // 64)[:64]

    def batch(text: Any, starts: Any) -> Any:
        return text[starts[:, None] + span]

    def held_back() -> float:
        model.eval()
        with torch.no_grad():
            parts = [float(model.loss(batch(held, some)).main) for some in looked_at.split(16)]
        model.train()
        return sum(parts) / len(parts)

    losses: list[float] = []
    looks: list[tuple[int, float]] = []
    kept, begun = 0, time.perf_counter()
    for step in range(1, steps + 1):
        share = (step - settings["warmup"]) / max(steps - settings["warmup"], 1)
        factor = step / settings["warmup"] if share < 0 else 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * factor
        tokens = batch(learnt, torch.randint(len(learnt) - length, (rows,), generator=draws))
        if step == 2:
            found, kept = kept_bytes(model, tokens)
        else:
            found = model.loss(tokens)
        found.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for gate, load in zip(model.gates(), model.expert_loads(), strict=True):
            gate.e_score_correction_bias += 0.001 * (load.float().mean() - load).sign()
        model.reset_expert_loads()
        losses.append(found.main.item())
        if step % max(steps // 10, 1) == 0 or step == steps:
            looks.append((step, held_back()))
            pace = (time.perf_counter() - begun) / step
            left = f"{pace * (steps - step) / 60:.0f} minutes left"
            print(
                f"  {arm} seed {seed} step {step}: {losses[-1]:.4f}, held back {looks[-1][1]:.4f}, {left}", flush=True
            )
    with tempfile.TemporaryDirectory() as folder:
        sizes = {}
        for precision in ("bf16", "fp8"):
            save(model, Path(folder) / precision, precision=precision)
            sizes[precision] = sum(one.stat().st_size for one in (Path(folder) / precision).glob("*.safetensors"))
    outcome = {
        "settings": settings, "arm": arm, "seed": seed, "precision": describe(section, "cpu"), "losses": losses,
        "held_back": looks, "kept_bytes": kept, "file_bytes": sizes, "seconds": time.perf_counter() - begun,
        "torch": torch.__version__,
    }  # fmt: skip
    half = file.with_suffix(".part")
    half.write_text(json.dumps(outcome))
    half.replace(file)


def kept_bytes(model: Any, tokens: Any) -> tuple[Any, int]:
    """The losses, and the bytes of activations that the backward pass waits with: each piece of memory once."""
    import torch

    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            seen[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = model.loss(tokens)
    return found, sum(seen.values())


def smoothed(losses: list[float]) -> list[float]:
    """Running means of ``SMOOTH`` losses, one for each step from the ``SMOOTH``-th on."""
    width = min(SMOOTH, len(losses))
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    return [(sums[end] - sums[end - width]) / width for end in range(width, len(sums))]


def gaps(found: dict[str, Any], base: dict[str, Any]) -> dict[str, float]:
    """How far a run lies above another, as shares of the other's loss."""
    each = [a / b - 1 for a, b in zip(smoothed(found["losses"]), smoothed(base["losses"]), strict=True)]
    half = each[len(each) // 2 :]
    last = max(len(base["losses"]) // 20, 1)
    return {
        "last half, mean": sum(half) / len(half),
        "last half, largest": max(half, key=abs),
        "last 20th": sum(found["losses"][-last:]) / sum(base["losses"][-last:]) - 1,
        "held back": found["held_back"][-1][1] / base["held_back"][-1][1] - 1,
    }


def table(found: dict[tuple[str, int], dict[str, Any]]) -> str:
    """All arms of all seeds, in Markdown; then the mean of each arm over seeds."""
    names = ("last half, mean", "last half, largest", "last 20th", "held back")
    lines = ["| arm | seed | end loss | held back | " + " | ".join(f"gap {name}" for name in names) + " | kept MB | "
             "file bf16 / fp8, MB | minutes |", "|---|---|---|---|" + "---|" * (len(names) + 3)]  # fmt: skip
    means: dict[str, list[dict[str, float]]] = {}
    for (arm, seed), one in sorted(found.items(), key=lambda item: (item[0][1], list(ARMS).index(item[0][0]))):
        base = found.get(("bf16", seed))
        gap = None if base is None or arm == "bf16" else gaps(one, base)
        if gap is not None:
            means.setdefault(arm, []).append(gap)
        cells = ["" if gap is None else f"{100 * gap[name]:+.3f}%" for name in names]
        files = " / ".join(f"{one['file_bytes'][kind] / 1e6:.2f}" for kind in ("bf16", "fp8"))
        lines.append(
            f"| {arm} | {seed} | {smoothed(one['losses'])[-1]:.4f} | {one['held_back'][-1][1]:.4f} | "
            f"{' | '.join(cells)} | {one['kept_bytes'] / 1e6:.1f} | {files} | {one['seconds'] / 60:.1f} |"
        )
    for arm, each in means.items():
        if len(each) > 1:
            # The largest is the largest of all seeds; the others are means, in which chance cancels out.
            cells = [f"{100 * sum(gap[name] for gap in each) / len(each):+.3f}%" for name in names]
            cells[1] = f"{100 * max((gap[names[1]] for gap in each), key=abs):+.3f}%"
            lines.append(f"| {arm} | mean of {len(each)} | | | {' | '.join(cells)} | | | |")
    return "\n".join(lines)


def chart(found: dict[tuple[str, int], dict[str, Any]], seed: int) -> str:
    """Loss curves of one seed, and beneath them the gaps to bf16 in percent, as SVG."""
    arms = [arm for arm in ARMS if (arm, seed) in found]
    curves = {arm: smoothed(found[arm, seed]["losses"]) for arm in arms}
    first = len(curves[arms[0]]) // 20
    wide, left, top, high, low, gap_high = 720, 60, 40, 220, 320, 140
    count = len(curves[arms[0]])

    def across(index: int) -> float:
        return left + (wide - left - 20) * (index - first) / max(count - first - 1, 1)

    def line(values: list[float], bottom: float, most: float, y: float, height: float, colour: str) -> str:
        every = max((count - first) // 400, 1)
        points = " ".join(
            f"{across(i):.1f},{y + height * (most - min(max(values[i], bottom), most)) / (most - bottom):.1f}"
            for i in range(first, count, every)
        )
        return f'<polyline fill="none" stroke="{colour}" stroke-width="1.4" points="{points}"/>'

    def label(x: float, y: float, text: str, *, anchor: str = "end", colour: str = "#444") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'

    shown = [value for curve in curves.values() for value in curve[first:]]
    most, least = max(shown), min(shown)
    parts = [label(left, 22, f"Loss, mean of {SMOOTH} steps (seed {seed})", anchor="start")]
    for place, arm in enumerate(arms):
        parts.append(line(curves[arm], least, most, top, high, COLOURS[arm]))
        parts.append(label(wide - 20 - 75 * (len(arms) - 1 - place), 22, arm, colour=COLOURS[arm]))
    for share in (0.0, 0.5, 1.0):
        value = most - share * (most - least)
        parts.append(label(left - 6, top + high * share + 4, f"{value:.2f}"))
        parts.append(f'<line x1="{left}" x2="{wide - 20}" y1="{top + high * share}" y2="{top + high * share}"/>')
    if "bf16" in curves:
        parts.append(label(left, low - 14, "Gap to bf16 in percent of its loss", anchor="start"))
        ratios = {
            arm: [100 * (a / b - 1) for a, b in zip(curves[arm], curves["bf16"], strict=True)]
            for arm in arms
            if arm != "bf16"
        }
        reach = max([0.5, *(abs(value) for each in ratios.values() for value in each[count // 2 :])])
        for arm, each in ratios.items():
            parts.append(line(each, -reach, reach, low, gap_high, COLOURS[arm]))
        for share in (0.0, 0.5, 1.0):
            y = low + gap_high * share
            parts.append(label(left - 6, y + 4, f"{reach - 2 * reach * share:+.2f}"))
            parts.append(f'<line x1="{left}" x2="{wide - 20}" y1="{y}" y2="{y}"/>')
    bottom = low + gap_high
    for share in (0.25, 0.5, 0.75, 1.0):
        index = first + round((count - first - 1) * share)
        parts.append(label(across(index), bottom + 18, f"step {index + SMOOTH}"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {bottom + 30}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/><g stroke="none">'
        + "".join(part for part in parts if part.startswith("<text"))
        + '</g><g stroke="#ddd">'
        + "".join(part for part in parts if not part.startswith("<text"))
        + "</g></svg>\n"
    )


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["bf16", "fp8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[7])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--length", type=int, default=256, help="bytes that a row predicts")
    parser.add_argument("--lr", type=float, default=1e-3, help="the highest; it falls to a hundredth along a cosine")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/fp8"))
    parser.add_argument("--svg", type=Path, help="draw the curves of the first seed")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads == 0:
        parser.error("--threads is at least 1")
    settings = {name: getattr(args, name) for name in ("steps", "rows", "length", "lr", "warmup", "threads")}
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        arm, seed = args.one[0], int(args.one[1])
        run_arm(arm, seed, settings, args.out / f"{arm}-{seed}.json")
        return
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for seed in args.seeds:
        for arm in args.arms:
            file = args.out / f"{arm}-{seed}.json"
            if not file.exists() or json.loads(file.read_text())["settings"] != settings:
                options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
                command = [sys.executable, __file__, "--one", arm, str(seed), "--out", str(args.out), *options]
                subprocess.run(command, check=True)
            found[arm, seed] = json.loads(file.read_text())
    print(table(found))
    if args.svg:
        args.svg.write_text(chart(found, args.seeds[0]))


if __name__ == "__main__":
    main()
