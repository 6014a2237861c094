"""Files made to hurt: each must cost one clear line, the good ones beside them are found, and memory stays in bounds.

    python benchmarks/hostile.py [--small] [--keep FOLDER]

Makes a folder that holds an encrypted PDF, a truncated picture, an empty file, 200 MB in one line, files under wrong
names, links in a circle, a file and a folder without permission, a name that is not UTF-8, a ZIP bomb, a picture that
would unpack to 2.5 thousand million pixels, and ten hours of silence: once promised by a header, once really there.
Then runs ``deepwell add`` on it as a person would, and prints what that printed, its exit status, its time and the
memory of all its processes together. ``--small`` makes the large ones smaller, which is what the tests use.

As root, for whom permissions mean nothing, the command runs without the capabilities that say so (``setpriv``).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LATIN_NAME = b"caf\xe9.txt"
"""A name in Latin-1, as old archives leave them."""

GOOD = ("good.md", "good.csv", "good.png", "pdf named.txt", "png named.docx", os.fsdecode(LATIN_NAME))
"""Files that must be read, whatever they are called."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one command did. Memory is the most that its processes held together, in bytes."""

    status: int
    out: str
    err: str
    seconds: float
    peak: int


def pdf(trailer: str = "") -> bytes:
    """A PDF of one page that says something."""
    content = "BT /F1 12 Tf 72 720 Td (The lighthouse keeper paid for oil in April.) Tj ET"
    objects = (
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Count 1 /Kids [4 0 R] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 5 0 R "
        "/Resources << /Font << /F1 3 0 R >> >> >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
    )
    body, places = "%PDF-1.7\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n{table}trailer\n"
    return f"{body}{end}<< /Size {len(places) + 1} /Root 1 0 R {trailer} >>\nstartxref\n{len(body)}\n%%EOF\n".encode()


def png(width: int = 320, height: int = 120, words: str = "OIL RECEIPT 1931") -> bytes:
    """A small picture with words on it."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).text((10, height // 3), words, "black", ImageFont.load_default(28))
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()


def huge_png(side: int) -> bytes:
    """``side`` x ``side`` black pixels, truly all of them, in a few hundred thousand bytes."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(row * 1000) for _ in range(side // 1000)) + packer.compress(row * (side % 1000))
    data += packer.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def wav_header(seconds: int, rate: int = 8000) -> bytes:
    """The header of a mono recording of sixteen bits."""
    size = seconds * rate * 2
    shape = struct.pack("<HHIIHH", 1, 1, rate, rate * 2, 2, 16)
    return b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + struct.pack("<I", 16) + shape + b"data" + struct.pack(
        "<I", size
    )  # fmt: skip


def bomb_docx(path: Path, size: int) -> None:
    """A Word file whose text is ``size`` zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        with archive.open("word/document.xml", "w", force_zip64=True) as part:
            for _ in range(size >> 20):
                part.write(bytes(1 << 20))


def make(folder: Path, *, small: bool = False) -> None:
    """Fill a new folder. It can be removed by its owner once ``unlock`` was called."""
    folder.mkdir(parents=True)
    (folder / "good.md").write_text("# Herring\n\nThe spare key to the dome hangs behind the barometer.\n")
    (folder / "good.csv").write_text("month,oil\nApril,27.94\nMay,30.10\n")
    (folder / "good.png").write_bytes(png())
    (folder / "encrypted.pdf").write_bytes(
        pdf(f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <{'00' * 32}> /U <{'00' * 32}> >> /ID [<00><00>]")
    )
    whole = png(800, 600)
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.txt").touch()
    (folder / "zero.png").touch()
    with (folder / "one line.txt").open("wb") as file:
        for _ in range(70 if small else 200):
            file.write(b"herring " * 125_000)
    (folder / "pdf named.txt").write_bytes(pdf())
    (folder / "png named.docx").write_bytes(png(words="THE OTHER RECEIPT"))
    (folder / "junk.pdf").write_bytes(bytes(range(256)) * 40)
    (folder / "text named.png").write_text("This is no picture at all.\n")
    (folder / "circle").symlink_to("circle")
    (folder / "up again").symlink_to("..")
    (folder / "dangling.txt").symlink_to("nowhere.txt")
    (folder / "secret.txt").write_text("The combination of the safe.")
    (folder / "secret.txt").chmod(0)
    (folder / "locked").mkdir()
    (folder / "locked" / "inside.txt").write_text("Nobody reads this.")
    (folder / "locked").chmod(0)
    Path(os.fsdecode(os.path.join(os.fsencode(folder), LATIN_NAME))).write_text(  # noqa: PTH118
        "The lantern was cleaned with spirit of wine."
    )
    bomb_docx(folder / "bomb.docx", (64 if small else 1024) << 20)
    (folder / "bomb.png").write_bytes(huge_png(20_000 if small else 50_000))
    (folder / "ten hours promised.wav").write_bytes(wav_header(36_000) + bytes(16_000))
    seconds = 60 if small else 36_000
    with (folder / "silence.wav").open("wb") as file:
        file.write(wav_header(seconds))
        file.truncate(44 + seconds * 16_000)  # a hole: it takes no room on the disk
    os.mkfifo(folder / "pipe.txt")


def unlock(folder: Path) -> None:
    """Give back the permissions that ``make`` took away."""
    for name in ("locked", "secret.txt"):
        if (folder / name).exists():
            (folder / name).chmod(0o700)


def bound_by_permissions() -> list[str] | None:
    """What to put before a command so that permissions hold for it; None where that cannot be had."""
    if os.geteuid() != 0:
        return []
    lost = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={lost}", f"--inh-caps={lost}"]
    if not shutil.which("setpriv") or subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        return None
    return command


def processes(pid: int) -> Iterator[int]:
    """Resident bytes of a process and of each process below it."""
    import psutil

    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            try:
                yield process.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        return


def run(command: list[str], *, environment: dict[str, str] | None = None, timeout: float = 900) -> Run:
    """Run a command and watch its memory five times a second."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.2):
            peak = max(peak, sum(processes(process.pid)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
        over.set()
        watcher.join()
    return Run(process.returncode, out, err, time.perf_counter() - began, peak)


def deepwell(*words: str | Path, library: Path, say: Callable[[str], object] | None = None) -> Run:
    """Run ``deepwell`` on a library, bound by permissions."""
    script = Path(sys.executable).with_name("deepwell")
    environment = {**os.environ, "DEEPWELL_LIBRARY": str(library)}
    done = run([*(bound_by_permissions() or []), str(script), *map(str, words)], environment=environment)
    if say:
        say(f"\n$ deepwell {' '.join(map(str, words))}\n{done.out}{done.err}exit status {done.status}, "
            f"{done.seconds:.1f} s, {done.peak / 2**20:,.0f} MiB at most in all its processes")  # fmt: skip
    return done


def main() -> int:
    """Make, add, search, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--small", action="store_true", help="smaller giants, for a quick look")
    parser.add_argument("--keep", type=Path, help="work here and leave everything to look at")
    arguments = parser.parse_args()
    base = arguments.keep or Path(tempfile.mkdtemp(prefix="hostile"))
    folder, library = base / "files", base / "library"
    make(folder, small=arguments.small)
    if bound_by_permissions() is None:
        print("running as root and setpriv is not here: the files without permission will be read")
    try:
        deepwell("add", folder, library=library, say=print)
        deepwell("sync", library=library, say=print)
        deepwell("status", library=library, say=print)
        found = deepwell("search", "lantern spirit of wine", "--limit", "1", "--json", library=library)
        hits = json.loads(found.out)["hits"]
        print(f"\nthe file whose name is not UTF-8 is found: {hits[0]['path'] if hits else 'no'}")
    finally:
        unlock(folder)
        if arguments.keep is None:
            shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
