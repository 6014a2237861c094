"""The demo: fetch the starter models, build the example library, index it, search it, ask it. ``make demo`` runs it.

Every step is a command that you could have typed; each is printed before it runs. The library it builds lies under
``out/demo`` and stays there, so a second run is quick and you can go on asking:

    export DEEPWELL_LIBRARY=out/demo/library
    .venv/bin/deepwell ask "who turned the lens by hand?"
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import make_library

HERE = Path(__file__).parent
ROOT = HERE.parent
OUT = ROOT / "out" / "demo"
FILES = HERE / "library"
PICTURE = OUT / "another motorcycle.jpg"

SEARCHES = [
    (
        "By meaning: the note says neither 'heating' nor 'cost'...",
        ["search", "how expensive is it to keep the plants warm", "-n", "3"],
    ),
    ("What was said aloud", ["search", "where is the key to the observatory", "-n", "2"]),
    ("A scanned page has no text of its own; it was read", ["search", "goat", "-n", "2"]),
    (
        "Photographs by words, though they have no names and no captions",
        ["search", "a cat", "--kind", "image", "-n", "2"],
    ),
    ("A picture by a picture", ["search", "--image", str(PICTURE), "-n", "2"]),
    ("中文 (words)", ["search", "桫椤", "-n", "1"]),
    ("日本語 (words)", ["search", "ヒカリゴケ", "-n", "1"]),
    ("Within filters", ["search", "storm", "--kind", "table", "--kind", "document", "-n", "2"]),
]
QUESTIONS = [
    "Where does the spare key to the dome hang?",
    "To how many inches did the barometer fall in November 1911?",
    "How many pounds do they ask the trustees for?",
    "What did the coin hoard hold?",
    "Who won the chess championship in Havana?",
]


def main() -> int:
    """Run every step; stops at the first that fails. Returns the exit code."""
    options = argparse.ArgumentParser(description="Index and search the example library.")
    options.add_argument("--no-pull", action="store_true", help="use what models there are (as without a network)")
    given = options.parse_args()
    os.environ["DEEPWELL_LIBRARY"] = str(OUT / "library")
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    started = time.monotonic()
    print(
        f"{make_library.build(FILES)} files in {FILES.relative_to(ROOT)}: the archive of a field station that does not exist"
    )
    make_library.query_picture(PICTURE)
    if not given.no_pull:
        _say("The small models, 250 MB, fetched once")
        _deepwell("models", "pull", "starter")
    _say("Read everything")
    _deepwell("add", str(FILES))
    _deepwell("status")
    for title, words in SEARCHES:
        _say(title)
        _deepwell(*words)
    for question in QUESTIONS:
        _say("")
        _deepwell("ask", question)
    print(
        f"\nDone in {time.monotonic() - started:.0f} s. Go on: export DEEPWELL_LIBRARY={OUT.relative_to(ROOT)}/library"
    )
    return 0


def _say(title: str) -> None:
    print(f"\n\033[2m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}", flush=True)


def _deepwell(*words: str) -> None:
    shown = [str(Path(word).relative_to(ROOT)) if word.startswith(str(ROOT)) else word for word in words]
    print(f"$ deepwell {shlex.join(shown)}", flush=True)
    done = subprocess.run([Path(sys.executable).with_name("deepwell"), *words], check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"the demo stopped: that command ended with {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
