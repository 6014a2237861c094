"""Many processes compute what one does: losses, gradients, loads and weights, to float32's rounding.

The processes are started here with torchrun's environment; what they compare stands in ``worker.py``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

_WORKER = Path(__file__).with_name("worker.py")


def run(processes: int, *cases: str, limit: float = 100.0) -> None:
    """Run cases in so many processes together; fails with all that they say if one of them fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(_WORKER), *cases],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        told = [process.communicate(timeout=limit)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
    assert not any(process.returncode for process in started), "\n" + "\n".join(told)


def test_two_processes_do_what_one_does() -> None:
    run(2, "talking", "shard", "experts", "losing")


@pytest.mark.slow
def test_two_processes_with_copied_weights_and_weights_that_come_later() -> None:
    run(2, "copy", "copied-experts", "hooks", "unmade")


@pytest.mark.slow
def test_tied_frozen_and_recomputed_weights_and_dynamic_gating() -> None:
    run(2, "special")


@pytest.mark.slow
def test_four_processes_in_a_grid_of_two_by_two() -> None:
    run(4, "talking", "grid", "copied-grid", "losing", limit=110.0)


@pytest.mark.slow
def test_four_processes_with_experts_over_all() -> None:
    run(4, "experts")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_optimizers_move_spread_weights_as_whole_ones(processes: int) -> None:
    run(processes, "optimizers", limit=110.0)
