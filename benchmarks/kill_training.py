"""Kill a training run at random moments and in the middle of saving; what it ends with must be the same to the bit.

    python benchmarks/kill_training.py [--kills 20] [--saves 6] [--steps 60] [--seed 0] [--keep FOLDER]

First a run that nobody disturbs. Then runs of the same recipe that are killed (SIGKILL) again and again: after a random
time since they were started, which falls into the preparation of data, a step, a look or a save; and, each in a run of
its own, when the hidden folder of a save has appeared and a random part of it is written. After each kill the newest
checkpoint must be whole; then the run goes on with ``--resume``.

A run that was killed must end with the very bits of the one that was not: every tensor of its last checkpoint, every
file of its model, and its journal but for the clock's figures. Prints a line for each run and exits with 1 if any
differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

WORDS = "harbour lantern copper meadow violin glacier pepper saddle orbit canyon thimble walnut river anvil".split()

RECIPE = """
kind = "pretrain"
about = "Killed again and again"
seed = {seed}
threads = 1

[model]
named = "debug-moe"

[tokenizer]
vocab_size = 512

[data]
sequence_length = 64
validation = 0.1

[[data.sources]]
path = "text.txt"

[batch]
steps = {steps}
sequences = 4

[checkpoint]
every = 5

[log]
validate_every = 20
validate_rows = 8
sample_every = 20
sample_tokens = 8
tensorboard = false
peak_tflops = 0.1
"""


@dataclass
class Run:
    """A run's folder, and what was done to it."""

    folder: Path
    where: list[str] = field(default_factory=list)
    """For each kill, what it fell into."""
    differences: list[str] = field(default_factory=list)


def write_inputs(folder: Path, seed: int, steps: int) -> Path:
    """A text of some thousand sentences that a network can learn something from, and the recipe."""
    chance = random.Random(seed)
    paragraphs = []
    for _ in range(400):
        first, second = chance.sample(WORDS, 2)
        middle = " ".join(chance.choices(WORDS, k=chance.randint(10, 40)))
        paragraphs.append(f"The {first} is beside the {second}. {middle.capitalize()}. So the {first} is near.")
    (folder / "text.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    path = folder / "killed.toml"
    path.write_text(RECIPE.format(seed=seed, steps=steps), encoding="utf-8")
    return path


def start(recipe: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The command, in a process of its own; it goes on with what is in the folder."""
    command = [sys.executable, "-m", "deepwell", "train", str(recipe), "--out", str(folder), "--quiet"]
    if (folder / "recipe.json").exists():
        command.append("--resume")
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(child: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the end of a run that is left alone."""
    if child.wait() != 0:
        log = (folder.parent / f"{folder.name}.log").read_text(errors="replace")
        raise SystemExit(f"a run failed ({child.returncode}):\n{log[-3000:]}")


def kill(child: subprocess.Popen[bytes]) -> bool:
    """Whether it was still alive."""
    child.send_signal(signal.SIGKILL)
    return child.wait() == -signal.SIGKILL


def saving(folder: Path) -> str:
    """The hidden folder of the save that is under way, if one is."""
    place = folder / "checkpoints"
    paths = place.iterdir() if place.is_dir() else ()
    return next((path.name for path in paths if path.suffix == ".part"), "")


def happened(folder: Path) -> str:
    """What a kill fell into, from what it left behind."""
    if name := saving(folder):
        return f"save of {int(name.removesuffix('.part').rpartition('-')[2])}"
    from deepwell.lm.training.checkpoint import Checkpoints

    steps = Checkpoints(folder / "checkpoints", keep=1).steps()
    return f"after {steps[-1]}" if steps else "before any save"


def check_whole(run: Run) -> None:
    """What a kill leaves can be gone on from: the newest checkpoint, not an older one, is whole."""
    from deepwell.lm.training.checkpoint import Checkpoints

    notes: list[str] = []
    Checkpoints(run.folder / "checkpoints", keep=1).latest_good(notes.append)
    run.differences += [f"after a kill: {note}" for note in notes]


def kill_at_random(run: Run, recipe: Path, longest: float, chance: random.Random) -> bool:
    """Whether a kill came before the end."""
    child = start(recipe, run.folder)
    try:
        finish_or_time = chance.uniform(0, longest)
        child.wait(finish_or_time)
    except subprocess.TimeoutExpired:
        if kill(child):
            run.where.append(happened(run.folder))
            check_whole(run)
            return True
    finish(child, run.folder)
    return False


def kill_in_a_save(run: Run, recipe: Path, chance: random.Random, save_seconds: float) -> bool:
    """Kill in the middle of one of the first saves. Whether it fell into one."""
    wanted, seen, last = chance.randint(1, 4), 0, ""
    child = start(recipe, run.folder)
    while child.poll() is None:
        name = saving(run.folder)
        if name and name != last:
            seen, last = seen + 1, name
            if seen == wanted:
                time.sleep(chance.uniform(0, save_seconds))
                kill(child)
                break
        time.sleep(0.0005)
    inside = bool(saving(run.folder))
    if child.wait() == -signal.SIGKILL:
        run.where.append(happened(run.folder) + ("" if inside else " (missed)"))
        check_whole(run)
    return inside


def time_saves(recipe: Path, folder: Path) -> tuple[float, float]:
    """The run that nobody disturbs: seconds of all of it, and of a save on average."""
    began, inside, saves, last = time.monotonic(), 0.0, 0, ""
    child = start(recipe, folder)
    while child.poll() is None:
        name = saving(folder)
        if name:
            inside += 0.001
            saves += name != last
        last = name
        time.sleep(0.001)
    finish(child, folder)
    return time.monotonic() - began, inside / max(saves, 1)


def compare(run: Run, whole: Path) -> None:
    """Every bit of what both runs ended with."""
    import torch

    from deepwell.lm.training import journal
    from deepwell.lm.training.checkpoint import Checkpoints

    ends = [Checkpoints(folder / "checkpoints", keep=1).load() for folder in (whole, run.folder)]
    if ends[0].step != ends[1].step or ends[0].tensors.keys() != ends[1].tensors.keys():
        run.differences.append("the last checkpoint holds something else")
    else:
        for name, tensor in ends[0].tensors.items():
            pair = [one.contiguous().reshape(-1).view(torch.uint8) for one in (tensor, ends[1].tensors[name])]
            if not torch.equal(*pair):
                run.differences.append(f"checkpoint: {name}")
    values = [{name: value for name, value in end.values.items() if name != "seconds"} for end in ends]
    if values[0] != values[1]:
        run.differences.append("checkpoint: values")
    files = [
        {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((folder / "model").rglob("*"))
            if path.is_file()
        }
        for folder in (whole, run.folder)
    ]
    if not files[0]:
        run.differences.append("the undisturbed run wrote no model")
    run.differences += [
        f"file {name}" for name in files[0].keys() | files[1].keys() if files[0].get(name) != files[1].get(name)
    ]
    records = [journal.comparable(journal.read(folder / "journal.jsonl")) for folder in (whole, run.folder)]
    if len(records[0]) != len(records[1]):
        run.differences.append(f"journal: {len(records[1])} records, not {len(records[0])}")
    run.differences += [f"journal: {a} became {b}" for a, b in zip(*records, strict=False) if repr(a) != repr(b)][:3]
    left = [path.name for path in (run.folder / "checkpoints").iterdir() if path.name.startswith(".")]
    run.differences += [f"left behind: {name}" for name in left]


def report(number: int, run: Run) -> None:
    """A line of the table."""
    verdict = "the same" if not run.differences else f"{len(run.differences)} DIFFERENCES"
    print(f"{number:>4}  {len(run.where):>5}  {verdict:<14}  {', '.join(run.where) or '-'}", flush=True)
    for difference in run.differences[:10]:
        print(f"      {difference}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="at random moments")
    parser.add_argument("--saves", type=int, default=6, help="in the middle of saving")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the runs, which stay there")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    scratch = given.keep or Path(tempfile.mkdtemp(prefix="kill-training-"))
    scratch.mkdir(parents=True, exist_ok=True)
    recipe = write_inputs(scratch, given.seed, given.steps)
    whole = scratch / "whole"
    longest, save_seconds = time_saves(recipe, whole)
    print(f"undisturbed: {given.steps} steps in {longest:.1f} s, a save takes {save_seconds * 1000:.0f} ms")
    print(f"{'run':>4}  {'kills':>5}  {'end':<14}  kills fell into", flush=True)

    runs: list[Run] = []
    done = inside = tries = 0
    quickest = longest

    def ended(run: Run) -> None:
        compare(run, whole)
        runs.append(run)
        report(len(runs), run)
        if not given.keep and not run.differences:
            shutil.rmtree(run.folder)

    while done < given.kills:
        run = Run(scratch / f"killed-{len(runs) + 1}")
        began = time.monotonic()
        while done < given.kills and kill_at_random(run, recipe, quickest, chance):
            done += 1
            began = time.monotonic()
        if not run.where:  # on a machine that others use too, the first run may have been a slow one
            quickest = min(quickest, time.monotonic() - began)
        finish(start(recipe, run.folder), run.folder)
        ended(run)
    while inside < given.saves and tries < 4 * given.saves:
        run = Run(scratch / f"killed-{len(runs) + 1}")
        tries += 1
        inside += kill_in_a_save(run, recipe, chance, save_seconds)
        finish(start(recipe, run.folder), run.folder)
        ended(run)
    bad = sum(bool(run.differences) for run in runs)
    print(f"{done} kills at random moments, {inside} inside a save; {len(runs)} runs, {bad} ended differently")
    if not given.keep and not bad:
        shutil.rmtree(scratch)
    elif bad:
        print(f"the runs are in {scratch}")
    return 1 if bad or inside < given.saves else 0


if __name__ == "__main__":
    sys.exit(main())
