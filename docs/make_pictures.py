"""Draw docs/images/demo.svg from a real run on the demo's library (make demo, then make picture)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rich.console import Console
from rich.text import Text

from deepwell import Library
from deepwell.cli import render

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Search and ask the demo's library, and keep the picture."""
    os.chdir(ROOT)
    out = render.recording_console(width=104)
    with Library(os.environ.get("DEEPWELL_LIBRARY", "out/demo/library"), create=False) as lib:
        lib.search("warm up")  # loads the encoder, so that the times shown are those of a running process
        _prompt(out, 'search "where is the key to the observatory" -n 1')
        render.results(out, lib.search("where is the key to the observatory", limit=1))
        _prompt(out, 'search "a cat" --kind image -n 1')
        render.results(out, lib.search("a cat", kinds=("image",), limit=1))
        _prompt(out, 'ask "What did the coin hoard hold?"')
        render.answer(out, lib.ask("What did the coin hoard hold?"))
        _prompt(out, 'ask "Who won the chess championship in Havana?"')
        render.answer(out, lib.ask("Who won the chess championship in Havana?"))
    # The picture names no font from elsewhere: nothing is fetched when it is looked at.
    svg = re.sub(r"@font-face\s*\{.*?\}", "", out.export_svg(title="deepwell", unique_id="deepwell"), flags=re.DOTALL)
    picture = ROOT / "docs" / "images" / "demo.svg"
    picture.parent.mkdir(exist_ok=True)
    picture.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")
    print(picture.relative_to(ROOT))


def _prompt(out: Console, command: str) -> None:
    out.print(Text("\n$ ", "green") + Text(f"deepwell {command}", "bold"))


if __name__ == "__main__":
    main()
