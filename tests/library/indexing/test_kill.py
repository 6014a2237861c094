"""A run killed at random moments; the whole measurement is ``benchmarks/kill.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_killed_run_is_taken_up() -> None:
    path = Path(__file__).parents[3] / "benchmarks" / "kill.py"
    spec = importlib.util.spec_from_file_location("kill", path)
    assert spec is not None and spec.loader is not None
    kill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kill)
    assert kill.kill_test(5, 60, seed=1, say=False) >= 5
