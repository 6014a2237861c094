"""Tests of C code once more, with sources that watch every access to memory and every overflow."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

_FLAGS = [
    "-std=gnu11", "-O1", "-g", "-Wno-psabi", "-fPIC", "-shared", "-pthread",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
]  # fmt: skip


def _runtimes(compiler: str) -> list[str]:
    found = []
    for name in ("libasan.so", "libubsan.so"):
        asked = subprocess.run([compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True)
        found.append(asked.stdout.strip())
    return found


def build(sources: Path, to: Path, *flags: str) -> None:
    """Compile all C files of a folder into one library. Skips the test where that cannot be done."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc")
    if not all(Path(name).is_absolute() for name in _runtimes(compiler)):
        pytest.skip("this gcc has no sanitisers")
    files = sorted(map(str, sources.glob("*.c")))
    subprocess.run([compiler, *_FLAGS, *flags, *files, "-lm", "-o", to], check=True)


def run(tests: Sequence[Path], plugin: str, folder: Path, *, threads: int = 1) -> None:
    """Run test files in a process of their own that loads ``plugin`` first: code that puts in place what was built.

    Torch gives each tensor memory of its own, so what lies behind its end belongs to nobody.
    """
    (folder / "sanitised.py").write_text(plugin)
    compiler = shutil.which("gcc")
    assert compiler is not None
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-s", "-x", "-n", "0", "-p", "sanitised", "-p", "no:cacheprovider",
            *map(str, tests),
        ],
        check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env=os.environ | {
            "PYTHONPATH": str(folder), "LD_PRELOAD": " ".join(_runtimes(compiler)), "OMP_NUM_THREADS": str(threads),
            "ASAN_OPTIONS": "detect_leaks=0,protect_shadow_gap=0",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
