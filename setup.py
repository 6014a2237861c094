"""The compiled part of the package; all else stands in pyproject.toml.

The engine's network is built twice from the same sources, for x86 processors with AVX2 and for any; the kernels of
training once, for x86 processors with AVX-512 BF16; the rounding to FP8 once, for any. Where there is no C compiler, or
it knows no such processor, installation goes on without (``optional``), and PyTorch computes. Which of them suit the
processor at hand is asked when they are opened.
"""

from setuptools import Extension, setup

ROOM = "src/deepwell/lm/engine/native"
SOURCES = [f"{ROOM}/{name}.c" for name in ("attention", "experts", "inputs", "linear", "program", "rowwise")]
FLAGS = ["-std=gnu11", "-O3", "-g0", "-pthread", "-Wno-psabi"]


def build(name: str, *flags: str) -> Extension:
    return Extension(
        f"deepwell.lm.engine.native._{name}",
        SOURCES,
        depends=[f"{ROOM}/program.h", f"{ROOM}/vectors.h"],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=["-pthread", "-lm"],
        optional=True,
    )


tiles = Extension(
    "deepwell.lm.precision.native._tiles",
    ["src/deepwell/lm/precision/native/tiles.c"],
    extra_compile_args=FLAGS,
    optional=True,
)
TRAINING = "src/deepwell/lm/model/native"
AVX512_BF16 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"]
training = Extension(
    "deepwell.lm.model.native._training",
    [f"{TRAINING}/{name}.c" for name in ("attention", "rowwise")],
    depends=[f"{TRAINING}/tiles.h"],
    extra_compile_args=[*FLAGS, "-Wno-unused-function", *AVX512_BF16],
    extra_link_args=["-lm"],
    optional=True,
)
setup(ext_modules=[build("avx2", "-mavx2", "-mfma", "-mf16c"), build("generic"), tiles, training])
