"""Kill an indexing run at random moments, again and again; after each, ``sync`` must reach the undisturbed library.

    python benchmarks/kill.py [--kills 50] [--files 400] [--seed 0]

Each round starts a process that syncs a folder in which files were added, changed, moved, deleted and copied since
the library was last in step, kills it (SIGKILL) after a random time, and checks that the library can still be
searched. Then a sync that nobody disturbs must leave exactly the paths, passages and vectors that a library
indexed from nothing has: nothing lost, nothing twice. Readers and encoder are the fakes of ``deepwell.testing``, so
that the moments of a run are spread over commits rather than over encoding.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = "harbour lantern copper meadow violin glacier pepper saddle orbit canyon thimble walnut".split()


def choose(path: Path) -> object:
    """The reader of the benchmark's files."""
    from deepwell.testing import FakeReader

    return FakeReader() if path.suffix == ".txt" else None


def senses() -> object:
    """No senses are needed."""
    from deepwell.testing import FakeSenses

    return FakeSenses()


def make_indexer(library: Path, seed: int = 0) -> object:
    """An indexer with fakes, two workers and small commits."""
    from deepwell.library.indexing import Encoders, Indexer, Options, Setup
    from deepwell.library.store import Store
    from deepwell.testing import HashEncoder

    here = (str(Path(__file__).parent), *sys.path)
    setup = Setup(f"{Path(__file__).stem}:choose", f"{Path(__file__).stem}:senses", sys_path=here)
    encoders = Encoders(text=HashEncoder(seed=seed))
    options = Options(setup=setup, workers=2, reader_versions=dict)
    return Indexer(Store.open(library, create=True), encoders=encoders, options=options)


def write_file(path: Path, random_: random.Random) -> None:
    """A few paragraphs that name their file, so that no two are alike."""
    paragraphs = [" ".join(random_.choices(WORDS, k=20)) for _ in range(random_.randint(1, 8))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join([f"{path.name} {random_.random()}", *paragraphs]))


def disturb(folder: Path, random_: random.Random, round_: int) -> None:
    """Add, change, move, delete and copy about a tenth of the files."""
    files = sorted(folder.rglob("*.txt"))
    random_.shuffle(files)
    share = max(2, len(files) // 50)
    for n in range(2 * share):
        write_file(folder / f"d{n % 7}" / f"new-{round_}-{n}.txt", random_)
    for path in files[:share]:
        write_file(path, random_)
    for n, path in enumerate(files[share : 2 * share]):
        path.rename(path.with_name(f"moved-{round_}-{n}.txt"))
    for path in files[2 * share : 4 * share]:
        path.unlink()
    for n, path in enumerate(files[4 * share : 5 * share]):
        shutil.copyfile(path, path.with_name(f"copy-{round_}-{n}.txt"))


def contents(library: Path) -> dict[str, list[tuple[str, str, bool]]]:
    """Path to its passages: place in the file, text, and whether there is a vector. Raises if anything is double."""
    from deepwell.library.store import Store

    store = Store.open(library)
    live = store.live_passages(("passage_id", "content_id", "ordinal", "text")).to_pylist()
    ids = [row["passage_id"] for row in live]
    assert len(ids) == len(set(ids)), "a passage is stored twice"
    for table in store.manifest.vectors:
        have = store.tables.get(table.table).search().select(["passage_id"]).to_arrow().column(0).to_pylist()
        assert len(have) == len(set(have)), "a vector is stored twice"
    vectors = store.vectors("text", ids)
    by_content: dict[str, list[tuple[str, str, bool]]] = {}
    for row, vector in zip(live, vectors, strict=True):
        has_vector = vector.size > 0 and bool(vector[0] == vector[0])
        by_content.setdefault(row["content_id"], []).append((str(row["ordinal"]), row["text"], has_vector))
    documents = store.documents()
    assert len({d.path for d in documents}) == len(documents), "a file has two rows"
    found = {d.path: sorted(by_content.get(d.content_id, [])) for d in documents if d.state == "ok"}
    store.close()
    return found


def search_works(library: Path) -> None:
    """What a reader finds after a kill is whole: every hit leads to a passage and its document."""
    from deepwell.library.store import Store

    if not (library / "library.json").exists():
        return
    store = Store.open(library)
    ranked = store.match(" ".join(WORDS[:3]), limit=50)
    assert len(store.passages(ranked.ids)) == len(ranked), "a hit leads nowhere"
    store.close()


def child(library: Path, folder: Path, seed: int) -> None:
    """The run that is killed."""
    indexer = make_indexer(library, seed)
    print("imported", flush=True)
    indexer.add([folder])  # type: ignore[attr-defined]
    indexer.sync()  # type: ignore[attr-defined]
    print(time.monotonic(), flush=True)


def run_and_kill(library: Path, folder: Path, after: float, seed: int) -> bool:
    """Start a run and kill it some seconds after its imports. False when it had ended by then."""
    command = [sys.executable, __file__, "--child", str(library), str(folder), "--seed", str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run failed by itself:\n{errors.decode(errors='replace')}")
    return False


def kill_test(kills: int, files: int, seed: int, *, say: bool = True) -> int:
    """Returns how many runs it took. Raises ``AssertionError`` at the first difference."""
    random_ = random.Random(seed)
    hits = 0
    with tempfile.TemporaryDirectory(prefix="deepwell-kill-") as scratch:
        folder, library = Path(scratch, "files"), Path(scratch, "library")
        for n in range(files):
            write_file(folder / f"d{n % 7}" / f"{n}.txt", random_)
        started = time.monotonic()
        child(Path(scratch, "first"), folder, 0)
        longest = {True: time.monotonic() - started, False: 1.0}  # of a run from nothing, and of one that follows
        encoder = round_ = 0
        while hits < kills:
            if round_:
                disturb(folder, random_, round_)
            if round_ % 5 == 4:
                encoder += 1  # a new encoder, so that its switch is killed too
            if round_ % 10 == 9:
                shutil.rmtree(library)  # from nothing, so that creation and large commits are killed too
            from_nothing = not library.exists()
            hit = run_and_kill(library, folder, random_.uniform(0.0, longest[from_nothing]), encoder)
            hits += hit
            longest[from_nothing] *= 1.1 if hit else 0.8  # so that moments fall all over a run, to its end
            search_works(library)
            # "add" before "sync", because a run killed very early has not yet remembered its folder.
            report = make_indexer(library, encoder).add([folder])  # type: ignore[attr-defined]
            make_indexer(library, encoder).sync()  # type: ignore[attr-defined]
            again = make_indexer(library, encoder).sync()  # type: ignore[attr-defined]
            assert not (again.added or again.updated or again.moved or again.removed or again.vectors), again
            fresh = Path(scratch, "fresh")
            shutil.rmtree(fresh, ignore_errors=True)
            make_indexer(fresh, encoder).add([folder])  # type: ignore[attr-defined]
            expected, got = contents(fresh), contents(library)
            assert got == expected, f"round {round_}: {len(got)} files differ from {len(expected)}"
            assert all(vector for passages in got.values() for *_, vector in passages), "a vector is missing"
            if say:
                state = "killed" if hit else "was done"
                print(
                    f"{hits:3} kills, run {round_ + 1:3}: {state}, then added {report.added}: {len(got)} files equal",
                    flush=True,
                )
            round_ += 1
    return round_


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child, arguments.seed)
        return
    runs = kill_test(arguments.kills, arguments.files, arguments.seed)
    print(f"{runs} runs, {arguments.kills} killed on the way: each time the same library as an undisturbed run")


if __name__ == "__main__":
    main()
