import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[4] / "benchmarks" / "gpu_kernels.py"


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper_and_spills_nothing() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--capability", "90"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wgmma" in done.stdout
