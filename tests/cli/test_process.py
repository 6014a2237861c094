"""The command line as a process: what it imports, what it does when the reader goes away, names that are not UTF-8."""

import os
import subprocess
import sys

HEAVY = (
    "torch",
    "lancedb",
    "pyarrow",
    "numpy",
    "transformers",
    "httpx",
    "PIL",
    "rich",
    "onnxruntime",
    "faster_whisper",
    "fastapi",
    "uvicorn",
    "prometheus_client",
    "pydantic",
)


def _python(code: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **more},
        timeout=60,
    )


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from deepwell.cli.main import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    ran = _python(code)
    assert ran.returncode == 0
    loaded = {name.split(".")[0] for name in ran.stderr.split()}
    assert "click" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_package_loads_nothing_heavy() -> None:
    ran = _python("import deepwell, sys; print(*sys.modules)")
    assert {name.split(".")[0] for name in ran.stdout.split()}.isdisjoint({*HEAVY, "click"})


def test_the_version_is_printed() -> None:
    from deepwell import __version__

    ran = _python("from deepwell.cli.main import main; import sys; sys.argv = ['deepwell', '-V']; main()")
    assert (ran.returncode, ran.stdout) == (0, f"deepwell {__version__}\n")


def test_a_name_that_is_not_utf8_is_escaped() -> None:
    code = (
        "from deepwell.cli import main, options\n"
        "main.run = lambda: options.print_json({'path': b'/x/\\xff'.decode('utf-8', 'surrogateescape')}) or 0\n"
        "main.main()"
    )
    ran = _python(code, PYTHONIOENCODING="utf-8")
    assert ran.returncode == 0, ran.stderr
    import json

    assert json.loads(ran.stdout)["path"] == "/x/\udcff"


def test_a_reader_that_goes_away_is_met_in_silence() -> None:
    code = (
        "from deepwell.cli import completion, main\n"
        "completion._WHERE['bash'] = 'x' * 1_000_000\n"
        "import sys; sys.argv = ['deepwell', 'completion', 'bash']; main.main()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141
