"""Registers, shared memory and spills of the GPU kernels, compiled for GPUs that are not here.

    python benchmarks/gpu_kernels.py [--capability 80 90]

Triton brings NVIDIA's assembler, so all that a compiler can say is known without a GPU: that a kernel compiles, that
nothing is spilled to local memory (stack), that a block's shared memory fits, and which matrix instructions it uses
(wgmma on Hopper, mma.sync elsewhere). Ends with 1 if a kernel that the engine would choose spills or does not fit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227}
"""Kilobytes of shared memory that a block may have, by compute capability."""
POINTERS = {
    "latent_queries": "bf16", "rope_queries": "bf16", "rows": "bf16", "tables": "i32", "firsts": "i32",
    "lengths": "i32", "out": "fp32", "sums": "fp32", "parts": "fp32", "x": "bf16", "weights": "u8", "scales": "fp32",
    "bias": "bf16", "tile_group": "i32", "tile_first": "i32", "ends": "i32", "tile_end": "i32", "steps_end": "i32",
    "values": "u8", "left": "u8", "right": "u8", "left_scales": "fp32", "right_scales": "fp32",
}  # fmt: skip
ROW = "{:<42}{:>5}{:>7}{:>7}{:>10}{:>8}{:>11}"


def resources(kernel: Any, constants: dict[str, Any], capability: int, warps: int, stages: int) -> dict[str, Any]:
    """Compile for a GPU of this capability; every pointer and size is taken to be a multiple of 16."""
    import triton
    from triton.backends import nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name in POINTERS and not (name == "rows" and "depth" in kernel.arg_names):
            types[name] = "*" + POINTERS[name]
        else:
            types[name] = "fp32" if name == "scale" else "i32"
    places = {name: place for place, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(places[name],): value for name, value in constants.items()},
        attrs={(places[name],): [["tt.divisibility", 16]] for name, kind in types.items() if kind[0] in "*i"},
    )
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    line = next(line for line in said.splitlines() if "REG:" in line)
    usage = {part.split(":")[0]: part.split(":")[1] for part in line.split() if ":" in part}
    assembly = made.asm["ptx"]
    matrix = "wgmma" if "wgmma" in assembly else "mma.sync" if "mma.sync" in assembly else "-"
    return {
        "registers": int(usage["REG"]),
        "stack": int(usage["STACK"]),
        "shared_kb": made.metadata.shared / 1024,
        "matrix": matrix,
    }


def cases(capability: int) -> list[tuple[str, Any, dict[str, Any], int, int]]:
    """What the engine would launch: name, kernel, constants, warps, stages."""
    import triton
    import triton.language as tl

    from deepwell.lm.engine.gpu.attention import summed_width, tiling_for
    from deepwell.lm.engine.gpu.attention_kernels import attend_split, join_splits
    from deepwell.lm.model.config import ModelConfig
    from deepwell.lm.precision.fp8_gpu import tile_for as training_tile_for
    from deepwell.lm.precision.fp8_kernels import multiply_blocks
    from deepwell.lm.precision.fp8_products import tile_for
    from deepwell.lm.precision.fp8_training_kernels import multiply_tiles, round_tiles

    made: list[tuple[str, Any, dict[str, Any], int, int]] = []
    for name in ("deepseek-v3", "deepseek-v2-lite", "r1-distill-llama-8b", "smollm2-135m"):
        config = ModelConfig.named(name)
        tiling = tiling_for(config, SHARED[capability] * 1024)
        heads, width = config.num_attention_heads // config.rope_key_heads, summed_width(config)
        constants = {
            "rank": config.kv_lora_rank, "rope": config.qk_rope_head_dim, "value": width,
            "value_step": width if config.is_grouped else 0, "absorbed": not config.is_grouped,
            "heads_a_group": heads, "tiles_a_group": -(-heads // tiling.heads), "block_size": 16, "splits": 8,
            "head_tile": tiling.heads, "place_tile": tiling.places, "value_tile": triton.next_power_of_2(width),
            "rope_tile": triton.next_power_of_2(config.qk_rope_head_dim), "operand": tl.bfloat16,
        }  # fmt: skip
        made.append((f"attention, {name}", attend_split, constants, tiling.warps, tiling.stages))
    made.append(("joining splits", join_splits, {"value": 512, "splits": 8, "value_tile": 512}, 4, 2))
    for rows in (1, 64, 512):
        row_tile, column_tile, warps, stages = tile_for(rows, divmod(capability, 10))
        for grouped in (False, True):
            constants = {
                "grouped": grouped, "has_bias": False, "has_fp8": capability >= 89, "row_tile": row_tile,
                "column_tile": column_tile, "block": 128, "operand": tl.bfloat16,
            }  # fmt: skip
            what = f"FP8 product, {rows} rows{', experts' if grouped else ''}"
            made.append((what, multiply_blocks, constants, warps, stages))
    for what, transposed, whole in (("rows", False, False), ("columns", True, False), ("weights turned", True, True)):
        constants = {
            "transposed": transposed, "whole": whole, "power_of_two": False, "has_fp8": capability >= 89, "block": 128,
        }  # fmt: skip
        made.append((f"FP8 training, rounding {what}", round_tiles, constants, 8, 3))
    for rows in (16, 256, 4096):
        for what, by_depth in (("", False), (", over tokens", True)):
            row_tile, column_tile, warps, stages = training_tile_for(rows, by_depth, divmod(capability, 10))
            constants = {
                "by_depth": by_depth, "by_block": not by_depth, "has_fp8": capability >= 89, "row_tile": row_tile,
                "column_tile": column_tile, "block": 128, "operand": tl.bfloat16,
            }  # fmt: skip
            made.append((f"FP8 training, {rows} rows{what}", multiply_tiles, constants, warps, stages))
    return made


def main() -> int:
    """Print a table for each capability."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, nargs="+", choices=sorted(SHARED), default=[90, 80, 89])
    bad = []
    for capability in parser.parse_args().capability:
        print(f"\nsm_{capability}, at most {SHARED[capability]} KB of shared memory a block")
        print(ROW.format("kernel", "warps", "stages", "regs", "stack", "KB", "matrix"))
        for name, kernel, constants, warps, stages in cases(capability):
            used = resources(kernel, constants, capability, warps, stages)
            shared = used["shared_kb"]
            print(ROW.format(name, warps, stages, used["registers"], used["stack"], f"{shared:.0f}", used["matrix"]))
            if used["stack"] or shared > SHARED[capability]:
                bad.append(f"{name} on sm_{capability}")
    for one in bad:
        print(f"spills or does not fit: {one}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
