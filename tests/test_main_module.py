"""``python -m deepwell`` is the command line."""

import subprocess
import sys


def test_python_dash_m() -> None:
    said = subprocess.run([sys.executable, "-m", "deepwell", "--version"], capture_output=True, text=True, check=True)
    assert "deepwell" in said.stdout
