"""The tests of this folder once more, with sources that watch every access to memory and every overflow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepwell.lm.engine.native import library as native

SOURCES = Path(native.__file__).parent
PLUGIN = """
from pathlib import Path
import torch
from deepwell.lm.engine.native import library
from deepwell.lm.engine.pages import Pages

made = {file.stem[1:]: library.Library(file) for file in Path(__file__).parent.glob("_*.so")}
library.built = lambda: made
library.library.cache_clear()
# Each tensor by itself, so that what lies behind its end belongs to nobody.
Pages.take = lambda pages, *shape, dtype: torch.empty(shape, dtype=dtype)
"""


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_no_access_is_out_of_bounds_and_no_sum_overflows(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no gcc")
    flags = ["-std=gnu11", "-O1", "-g", "-Wno-psabi", "-fPIC", "-shared", "-pthread"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(name).is_absolute() for name in runtimes):
        pytest.skip("this gcc has no sanitisers")
    sources = sorted(map(str, SOURCES.glob("*.c")))
    for name in native.built():
        more = ["-mavx2", "-mfma", "-mf16c"] if name == "avx2" else []
        subprocess.run([compiler, *flags, *more, *sources, "-lm", "-o", tmp_path / f"_{name}.so"], check=True)
    (tmp_path / "sanitised.py").write_text(PLUGIN)
    here = Path(__file__).parent
    files = [str(here / f"test_{name}.py") for name in ("products", "operations", "experts", "runner")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-x", "-p", "sanitised", "-p", "no:cacheprovider", *files],
        check=False, capture_output=True, text=True, cwd=here.parents[3],
        env=os.environ | {
            "PYTHONPATH": str(tmp_path), "LD_PRELOAD": " ".join(runtimes), "OMP_NUM_THREADS": "1",
            "ASAN_OPTIONS": "detect_leaks=0,protect_shadow_gap=0",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
