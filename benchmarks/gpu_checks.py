"""Whether the GPU path computes what it should; ``gpu.py`` runs these first. On a machine without a GPU they run in
Triton's interpreter, at small sizes.

Every check draws new numbers, fills with NaN what must not be read, and compares with float64.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 1.5e-2, torch.float16: 4e-3}
"""The largest relative error, as norms, by dtype."""


def error(found: Tensor, wanted: Tensor) -> float:
    """Of ``found`` against float64, as norms; infinite where something is not finite."""
    away = (found.double() - wanted).norm() / wanted.norm()
    return float(away) if bool(found.isfinite().all()) else float("inf")


def small_shapes() -> dict[str, Any]:
    """Networks that an interpreter gets through: latent, grouped, with a window, with experts."""
    from deepwell.lm.model.config import ModelConfig

    grouped = ModelConfig(
        vocab_size=97, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=6,
        kv_lora_rank=16, qk_nope_head_dim=0, qk_rope_head_dim=8, v_head_dim=8, rope_key_heads=2, kv_up_proj=False,
        latent_norm=False, qkv_bias=True, max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    return {
        "latent": ModelConfig.named("debug").replace(vocab_size=97, initializer_range=0.15),
        "grouped": grouped,
        "window": grouped.replace(sliding_window=11),
        "experts": ModelConfig.named("debug-moe").replace(
            vocab_size=97, num_hidden_layers=2, initializer_range=0.1, num_nextn_predict_layers=0
        ),
    }


def look_at(config: Any, lengths: list[int], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Queries [n, H, R] and [n, H, D], rows, tables and lengths: blocks in random order, NaN where nobody stands."""
    counts = [-(-length // 16) for length in lengths]
    order = random.sample(range(sum(counts) + 3), sum(counts) + 3)
    rows = torch.full((len(order) * 16, config.latent_width), torch.nan, dtype=dtype, device=device)
    tables = torch.full((len(lengths), max(counts)), len(order), dtype=torch.int32)
    for index, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table = torch.tensor([order.pop() for _ in range(count)])
        tables[index, :count] = table
        slots = (table[:, None] * 16 + torch.arange(16)).flatten()[:length]
        rows[slots.to(device)] = torch.randn(length, config.latent_width, device=device).to(dtype)
    heads = config.num_attention_heads
    latent, rope = (
        torch.randn(len(lengths), heads, width, device=device).to(dtype)
        for width in (config.kv_lora_rank, config.qk_rope_head_dim)
    )
    return latent, rope, rows, tables.to(device), torch.tensor(lengths, dtype=torch.int32, device=device)


def written_out(config: Any, latent: Tensor, rope: Tensor, rows: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
    """The same attention in float64, query after query."""
    out = []
    groups, rank = config.rope_key_heads, config.kv_lora_rank
    for index, length in enumerate(lengths.tolist()):
        place = torch.arange(length, device=rows.device)
        seen = rows[tables[index, place // 16] * 16 + place % 16].double()
        keys = seen[:, rank:].unflatten(1, (groups, -1))  # [S, G, D]
        query = rope[index].double().unflatten(0, (groups, -1))  # [G, H/G, D]
        scores = torch.einsum("ghd,sgd->ghs", query, keys)
        if config.is_grouped:
            values = seen[:, :rank].unflatten(1, (groups, -1))
            shares = (scores * config.softmax_scale).softmax(-1)
            out.append(torch.einsum("ghs,sgv->ghv", shares, values).flatten(0, 1))
        else:
            scores = scores.flatten(0, 1) + latent[index].double() @ seen[:, :rank].t()
            out.append((scores * config.softmax_scale).softmax(-1) @ seen[:, :rank])
    return torch.stack(out)


def check_attention(config: Any, lengths: list[int], dtype: torch.dtype, device: str, splits: int) -> float:
    """The kernel's error."""
    from deepwell.lm.engine.gpu.attention import Looks, decode_attention

    latent, rope, rows, tables, ends = look_at(config, lengths, dtype, device)
    found = decode_attention(
        config, None if config.is_grouped else latent, rope, rows, Looks(tables, torch.zeros_like(ends), ends),
        block_size=16, splits=splits,
    )  # fmt: skip
    return error(found, written_out(config, latent, rope, rows, tables, ends))


def check_fp8(rows: int, columns: int, depth: int, experts: int, dtype: torch.dtype, device: str) -> float:
    """The FP8 product's error, dense where ``experts`` is 0, against its own rounded weights."""
    from deepwell.lm.precision.fp8_products import Fp8Matrix, fp8_grouped, fp8_linear

    x = torch.randn(rows, depth, device=device).to(dtype)
    weight = torch.randn(*([experts] if experts else []), columns, depth, device=device)
    matrix = Fp8Matrix.of(weight)
    if not experts:
        wanted = x.double() @ matrix.dequantised(torch.float64).t()
        return error(fp8_linear(x, matrix, kernel=True), wanted)
    loads = torch.bincount(torch.randint(experts, (rows,)), minlength=experts)
    parts = x.double().split(loads.tolist())
    pairs = zip(parts, matrix.dequantised(torch.float64), strict=True)
    wanted = torch.cat([part @ one.t() for part, one in pairs])
    ends = loads.cumsum(0).to(device=device, dtype=torch.int32)
    return error(fp8_grouped(x, matrix, ends, kernel=True), wanted)


def check_training(rows: int, columns: int, depth: int, experts: int, dtype: torch.dtype, device: str) -> float:
    """The worst error of the three products of FP8 training, against float64 products of the same rounded operands.

    Kernels must have rounded them to the very bits of the emulation; if not, the error is infinite.
    """
    from deepwell.lm.precision.fp8_emulation import Emulation
    from deepwell.lm.precision.fp8_gpu import Kernels

    kernels, emulation = Kernels(False), Emulation(True, False)
    x, grad = torch.randn(rows, depth).to(dtype), torch.randn(rows, columns).to(dtype)
    weight = torch.randn(*([experts] if experts else []), columns, depth)
    loads = torch.bincount(torch.randint(max(experts, 1), (rows,)), minlength=max(experts, 1))
    offsets = loads.cumsum(0).to(torch.int32) if experts else None
    there = None if offsets is None else offsets.to(device)
    rows_there = kernels.rows(x.to(device))
    same = torch.equal(rows_there.values.cpu().view(torch.uint8), emulation.rows(x).values.view(torch.uint8))
    if not same or not torch.equal(rows_there.scales.cpu(), emulation.rows(x).scales):
        return float("inf")
    kept = kernels.columns(x.to(device), there)
    found = (
        kernels.forward(rows_there, weight.to(device), there, dtype),
        kernels.grad_input(grad.to(device), weight.to(device), there),
        kernels.grad_weight(grad.to(device), kept.values, kept.scales, weight.to(device), there),
    )
    matrices = emulation.matrices(weight).dequantised().double().view(-1, columns, depth)
    parts = [
        one.dequantised().double().split(loads.tolist())
        for one in (
            emulation.rows(x), emulation.rows(grad), emulation.columns(x, offsets), emulation.columns(grad, offsets)
        )
    ]  # fmt: skip
    wanted = (
        torch.cat([part @ one.t() for part, one in zip(parts[0], matrices, strict=True)]),
        torch.cat([part @ one for part, one in zip(parts[1], matrices, strict=True)]),
        torch.stack([back.t() @ part for part, back in zip(parts[2], parts[3], strict=True)]).view(weight.shape),
    )
    return max(error(one.cpu(), other) for one, other in zip(found, wanted, strict=True))


def check_steps(config: Any, dtype: torch.dtype, device: str, record: Callable[..., Any] | None) -> float:
    """States of decoding steps, graphs included, against a plain pass without a cache, the worst of three."""
    from deepwell.lm.engine.gpu.runner import GPURunner
    from deepwell.lm.engine.paged_cache import PagedCache
    from deepwell.lm.engine.params import SamplingParams
    from deepwell.lm.engine.sampler import SamplerState
    from deepwell.lm.engine.scheduler import Part
    from deepwell.lm.engine.sequence import Sequence
    from deepwell.lm.model.transformer import Transformer

    model = Transformer(config, device=device, dtype=dtype).eval()
    cache = PagedCache(config, blocks=12, block_size=16, dtype=dtype, device=device)
    runner = GPURunner(model, cache, record=record)
    texts = [[random.randrange(config.vocab_size) for _ in range(count)] for count in (20, 35, 50)]
    sequences = []
    for index, text in enumerate(texts):
        sequences.append(Sequence(text, SamplerState(SamplingParams(), (), config.vocab_size), limit=64))
        sequences[-1].table = [index, index + 3, index + 6, index + 9]
    runner.run([Part(sequence, 0, 10) for sequence in sequences])
    runner.run([Part(sequence, 10, len(sequence.tokens) - 14) for sequence in sequences])
    worst = 0.0
    for behind in (4, 3, 1):  # two tokens of each at once in the second step
        count = 2 if behind == 3 else 1
        hidden, _ = runner.run([Part(one, len(one.tokens) - behind, count) for one in sequences])
        for index, text in enumerate(texts):
            with torch.no_grad():
                wanted = model.hidden(torch.tensor([text], device=device))[0].double()
            last = len(text) - behind + count
            here = hidden[index * count : (index + 1) * count]
            worst = max(worst, error(here, wanted[last - count : last]))
    # Experts in float32 are multiplied one after the other, which no graph can hold.
    wanted_graphs = record is None and device == "cuda" and not (config.n_routed_experts and dtype is torch.float32)
    if wanted_graphs and runner.eager_because is not None:
        raise RuntimeError(f"no graph could be recorded: {runner.eager_because}")
    return worst


def all_checks(device: str) -> dict[str, tuple[float, float]]:
    """Name of each check, its error and the error that it may have."""
    from deepwell.lm.model.config import ModelConfig

    large = device == "cuda"
    found: dict[str, tuple[float, float]] = {}

    def note(name: str, limit: float, check: Callable[[], float]) -> None:
        try:
            found[name] = check(), limit
        except Exception as problem:  # the others still say something
            found[f"{name}: {type(problem).__name__}: {str(problem)[:300]}"] = float("inf"), limit

    names = ("deepseek-v3", "deepseek-v2-lite", "r1-distill-llama-8b", "smollm2-135m") if large else ()
    shapes = {**small_shapes(), **{name: ModelConfig.named(name) for name in names}}
    del shapes["window"]  # its attention is of the same shape; the steps below have it
    lengths = [1, 16, 17, 700, 4000] if large else [1, 16, 37]
    for name, config in shapes.items():
        for dtype, limit in LIMITS.items():
            for splits in (1, 7) if large else (2,):
                what = f"attention {name}, {str(dtype)[6:]}, {splits} splits"
                note(what, limit, lambda: check_attention(config, lengths, dtype, device, splits))  # noqa: B023
    sizes = [(1, 7168, 2048), (64, 2112, 7168), (700, 4096, 1536)] if large else [(3, 72, 200), (20, 136, 128)]
    for rows, columns, depth in sizes:
        for experts in (0, 8):
            for dtype, limit in LIMITS.items():
                what = f"FP8 {rows} x {columns} x {depth}, {experts or 'no'} experts, {str(dtype)[6:]}"
                note(what, limit, lambda: check_fp8(rows, columns, depth, experts, dtype, device))  # noqa: B023
    for rows, columns, depth in [(1000, 2112, 1024), (4096, 1536, 2048)] if large else [(70, 72, 200)]:
        for experts in (0, 8):
            for dtype in (torch.float32, torch.bfloat16):
                what = f"FP8 training {rows} x {columns} x {depth}, {experts or 'no'} experts, {str(dtype)[6:]}"
                # Within 128 values a tensor core adds with about 14 bits.
                limit = max(LIMITS[dtype], 2e-3 if large else 0.0)
                note(what, limit, lambda: check_training(rows, columns, depth, experts, dtype, device))  # noqa: B023
    for name, config in small_shapes().items():
        # bf16 differs by its rounding; a wrong row would differ by all there is.
        for dtype in (torch.float32, torch.bfloat16) if large else (torch.float32,):
            record = None if large else lambda compute: compute
            # In bf16 a token near a border may go to another expert than in the plain pass.
            limit = 1e-3 if dtype is torch.float32 else 0.5 if config.n_routed_experts else 0.1
            note(f"steps {name}, {str(dtype)[6:]}", limit, lambda: check_steps(config, dtype, device, record))  # noqa: B023
    return found
