"""With the network cut off, everything but ``models pull`` works.

The commands run in a network namespace of their own, which has no interface, not even loopback. Where the system lets
nobody make one (no unprivileged user namespaces), they are
skipped; ``conftest.py`` still forbids connections in-process.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DEEPWELL = Path(sys.executable).with_name("deepwell")


def cut_off() -> list[str]:
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0
        ):
            return command
    pytest.skip("this system makes no network namespaces for us")


def run(*words: str | Path, library: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEEPWELL_LIBRARY": str(library)}
    command = [*cut_off(), str(DEEPWELL), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=110)


def test_the_cut_is_real() -> None:
    code = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    ran = subprocess.run([*cut_off(), sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "unreachable" in ran.stderr


def test_words_are_found_without_models_or_network(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.md").write_text("# Keys\n\nThe spare key to the dome hangs behind the barometer.\n")
    (notes / "b.txt").write_text("Herring is paid on Fridays.\n")
    added = run("add", notes, "--json", library=tmp_path / "lib")
    assert added.returncode == 0, added.stderr + added.stdout
    assert json.loads(added.stdout)["added"] == 2
    found = run("search", "barometer", "--json", library=tmp_path / "lib")
    (hit,) = json.loads(found.stdout)["hits"]
    assert hit["path"] == str(notes / "a.md")
    assert run("sync", library=tmp_path / "lib").returncode == 0
    assert run("status", "--json", library=tmp_path / "lib").returncode == 0
    assert run("models", "list", library=tmp_path / "lib").returncode == 0


def test_a_pull_says_that_there_is_no_network(tmp_path: Path) -> None:
    ran = run("models", "pull", "all-minilm-l6-v2", library=tmp_path / "lib")
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert ran.stderr.startswith("error: ")


@pytest.mark.models
@pytest.mark.timeout(600)
def test_the_demo_runs_without_a_network() -> None:
    command = [*cut_off(), sys.executable, "-W", "error", str(ROOT / "examples" / "demo.py"), "--no-pull"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=590)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    for fact in ("behind the barometer", "27.94", "48,600"):
        assert fact in ran.stdout
    assert "not found" in ran.stdout.lower().split("championship in havana?")[-1]
