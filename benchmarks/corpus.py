"""Real text for pretraining, from what anyone can get: a folder of clean UTF-8 files, about 40 MB of prose.

    python benchmarks/corpus.py --to out/corpus [--debs FOLDER] [--data FOLDER]

Two kinds of text go in:

- the novels and the plays of ``$DEEPWELL_DATA/text`` (public domain, CC0);
- documentation that Debian ships as packages: the manuals of Python, Perl, PostgreSQL and Git, the Linux kernel's
  documentation and manual pages, Debian's own policy. Packages that are not yet in ``--debs`` are fetched there with
  ``apt-get download``; nothing is installed.

Of every document only prose is kept: paragraphs without mark-up, that are mostly letters. Tables, listings and
synopses are left out, since a small network that must learn English from a few million tokens should not spend them on
hex dumps. A paragraph is one line and paragraphs are parted by an empty one, whatever the source. Long documents are
cut between paragraphs, so that what a run holds back (a share of the documents) is spread over all of the text.

Prints, for each source, documents and megabytes. A second call replaces the folder.
"""

from __future__ import annotations

import argparse
import gzip
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser

from deepwell.paths import default_data

SHORTEST = 600
"""Characters; what is left of a stub of a page is no document."""
LONGEST = 40_000
"""Characters of a file; longer documents are cut between paragraphs."""

Paragraphs = Iterator[str]


@dataclass(frozen=True)
class Package:
    """A Debian package, which of its files are text, and how they are read."""

    name: str
    pattern: str
    read: Callable[[str], Paragraphs]
    leave_out: str = ""
    """A regular expression of paths: other languages, lists, and what is also in another form."""


def _is_prose(paragraph: str) -> bool:
    """Whether it is mostly words: at least 82% letters and spaces, and more than a few of them."""
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return paragraph.count(" ") >= 5 and letters >= 0.82 * len(paragraph)


_RULE = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}")
_ITEM = re.compile(r"^\s*(?:[*+\-•]|#\.|\d{1,2}[.)]|\(?[a-z]\))\s+")


def _blocks(text: str) -> Iterator[list[str]]:
    """Lines that stand together; an item of a list begins a block of its own."""
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if block and (not line.strip() or _ITEM.match(line)):
            yield block
            block = []
        if line.strip():
            block.append(_ITEM.sub("", line) if _ITEM.match(line) else line)


def read_rst(text: str) -> Paragraphs:
    """Paragraphs and headings of reStructuredText and AsciiDoc, without directives, roles, links and listings."""
    for block in _blocks(text):
        lines = [line.strip() for line in block if not re.match(r"\s*(?:\.\. |:[\w-]+:|//|include::|\[.*\]$)", line)]
        if len(lines) < len(block) and block[0].lstrip().startswith(".. "):
            continue
        heading = len(lines) in (2, 3) and _RULE.fullmatch(lines[-1])
        lines = [line for line in lines if not _RULE.fullmatch(line)]
        if not lines:
            continue
        joined = re.sub(r":[\w:+-]+:`!?~?([^`<]*?)(?:\s*<[^`>]*>)?`", r"\1", " ".join(lines))
        joined = re.sub(r"`([^`<]*?)\s*<[^`>]*>`_{0,2}|``?([^`]+)``?_{0,2}", r"\1\2", joined)
        joined = re.sub(r"linkgit:([\w-]+)\[\d\]", r"\1", joined)
        joined = re.sub(r"(?<![\w*])\*{1,2}([^*]+)\*{1,2}(?![\w*])|\|(\w+)\|", r"\1\2", joined).replace("::", ":")
        joined = re.sub(r"\\(.)", r"\1", joined)
        if heading or _is_prose(joined):
            yield joined


def read_pod(text: str) -> Paragraphs:
    """Paragraphs and headings of Perl's plain old documentation; indented blocks are listings."""
    for block in _blocks(text):
        if block[0][0].isspace():
            continue
        joined = " ".join(line.strip() for line in block)
        heading = re.match(r"=head\d\s+", joined)
        if joined.startswith("=") and not heading:
            continue
        joined = joined[heading.end() :] if heading else joined
        joined = re.sub(r"X<[^>]*>|[A-Z]<<+ (.*?) >>+", r"\1", joined)
        for _ in range(3):  # codes stand in one another: C<< B<...> >>
            joined = re.sub(r"[BCFIST]<([^<>]*)>|L<(?:([^|<>]*)\|)?([^<>]*)>", _pod_code, joined)
        joined = joined.replace("E<gt>", ">").replace("E<lt>", "<")
        if heading or _is_prose(joined):
            yield joined


def _pod_code(match: re.Match[str]) -> str:
    plain, shown, target = match.groups()
    return str(plain if plain is not None else shown or target).strip("/")


_ROFF_SPECIAL = {
    "-": "-", "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "bu": "", "em": "—", "en": "–",
    "ha": "^", "ti": "~", "rs": "\\", "mu": "×", "<=": "≤", ">=": "≥", "co": "©", "ga": "`",
}  # fmt: skip


def _roff_inline(text: str) -> str:
    text = re.sub(r"\\f(?:\[\w*\]|\(..|.)|\\s[+-]?\d+|\\[&/,|^%:c]|\\\".*$", "", text)
    text = re.sub(r"\\\((..)|\\\[([^\]]+)\]", lambda m: _ROFF_SPECIAL.get(m[1] or m[2], ""), text)
    return re.sub(r"\\[~ 0]", " ", text).replace("\\-", "-").replace("\\e", "\\").replace("\\(", "(")


def read_roff(text: str) -> Paragraphs:
    """Paragraphs and headings of a manual page (the ``man`` macros), without synopses, tables and listings."""
    words: list[str] = []
    kept: list[str] = []
    skipping = ""
    ends = {"nf": "fi", "EX": "EE", "TS": "TE", "de": "."}

    def flush() -> None:
        joined = re.sub(r"\s+", " ", " ".join(words)).strip()
        words.clear()
        if _is_prose(joined):
            kept.append(joined)

    for line in text.splitlines():
        macro = re.match(r"[.']\s*(\w+|\\\"|\.)?\s*(.*)$", line)
        if not macro:
            if not skipping:
                words.append(_roff_inline(line))
            continue
        name, rest = macro[1] or "", macro[2]
        if skipping:
            skipping = "" if name == skipping else skipping
        elif name in ends:
            flush()
            skipping = ends[name]
        elif name in ("SH", "SS"):
            flush()
            kept.append(_roff_inline(rest).strip('"').capitalize())
        elif name in ("PP", "P", "LP", "TP", "IP", "HP", "RS", "RE", "TQ"):
            flush()
        elif name in ("B", "I", "BR", "RB", "BI", "IB", "IR", "RI"):
            parts = re.findall(r'"([^"]*)"|(\S+)', rest)
            words.append(_roff_inline(("" if len(name) == 2 else " ").join(a or b for a, b in parts)))
    flush()
    for place, paragraph in enumerate(kept):
        # A heading is kept only over prose of its own.
        if _is_prose(paragraph) or (place + 1 < len(kept) and _is_prose(kept[place + 1])):
            yield paragraph


def read_html(text: str) -> Paragraphs:
    """Headings and paragraphs of a page, without navigation, tables and listings."""
    page = LexborHTMLParser(text)
    for place in page.css("table, pre, nav, script, style, .navheader, .navfooter, .toc"):
        place.decompose()
    for place in page.css("h1, h2, h3, h4, p"):
        joined = re.sub(r"\s+", " ", html.unescape(place.text())).strip()
        if (joined and place.tag != "p") or _is_prose(joined):
            yield joined


def read_lines(text: str) -> Paragraphs:
    """A novel that has one paragraph a line; headings are short lines."""
    for line in text.splitlines():
        joined = re.sub(r"\s+", " ", line).strip()
        if len(joined) > 20 and not joined.startswith("source:"):
            yield joined


def read_verse(text: str) -> Paragraphs:
    """A play: speeches keep their lines."""
    yield from (speech.strip() for speech in re.split(r"\n\s*\n", text) if speech.strip())


PACKAGES = (
    Package("python3.11-doc", "**/_sources/**/*.rst.txt", read_rst),
    Package("linux-doc-6.1", "**/_sources/**/*.rst.txt", read_rst, "/translations/|/kernel-api|features"),
    Package("debian-policy", "**/_sources/*.rst.txt", read_rst),
    Package("developers-reference", "**/_sources/*.rst.txt", read_rst),
    Package("git-doc", "**/*.txt", read_rst),
    Package("perl-doc", "**/*.pod", read_pod, "perltoc|perl(cn|jp|ko|tw)\\.pod"),
    Package("postgresql-doc-15", "**/*.html", read_html, "bookindex|features-sql|biblio"),
    Package("manpages", "**/man/man*/*.gz", read_roff),
    Package("manpages-dev", "**/man/man*/*.gz", read_roff),
)
BOOKS = (("books.txt", read_lines), ("shakespeare-input.txt", read_verse))


def _text_of(path: Path) -> str:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return content.decode("utf-8", errors="replace")


def _pieces(paragraphs: Paragraphs) -> Iterator[str]:
    """Texts of up to ``LONGEST`` characters, cut between paragraphs."""
    piece: list[str] = []
    length = 0
    for paragraph in paragraphs:
        if length > LONGEST:
            yield "\n\n".join(piece)
            piece, length = [], 0
        piece.append(paragraph)
        length += len(paragraph)
    if length >= SHORTEST:
        yield "\n\n".join(piece)


def _write(folder: Path, stem: str, text: str, read: Callable[[str], Paragraphs]) -> None:
    for place, piece in enumerate(_pieces(read(text))):
        name = re.sub(r"[^\w.-]+", "_", f"{stem}-{place:03d}")
        (folder / f"{name}.txt").write_text(piece + "\n", encoding="utf-8")


def _download(name: str, folder: Path) -> Path | None:
    """The package's file, fetched by apt if it is not there. None where neither works."""
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(folder.glob(f"{name}_*.deb"))
    if not found and shutil.which("apt-get"):
        subprocess.run(["apt-get", "download", "-q", name], cwd=folder, check=False, stdout=subprocess.DEVNULL)
        found = sorted(folder.glob(f"{name}_*.deb"))
    return found[-1] if found else None


def _from_package(package: Package, debs: Path, folder: Path) -> None:
    deb = _download(package.name, debs)
    if deb is None:
        print(f"{package.name}: no file in {debs}, and apt-get cannot fetch it; left out", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["dpkg-deb", "-x", deb, place], check=True)
        for path in sorted(Path(place).glob(package.pattern)):
            inside = str(path.relative_to(place))
            if path.is_file() and not path.is_symlink() and not re.search(package.leave_out or r"(?!)", inside):
                _write(
                    folder,
                    re.sub(r"^usr/share/(doc|man|perl)/|(\.rst)?\.\w+$", "", inside),
                    _text_of(path),
                    package.read,
                )


def _report(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.glob("*.txt")]
    print(f"{folder.name:22} {len(sizes):6,} documents {sum(sizes) / 1e6:8.2f} MB", flush=True)
    return sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path("out/corpus"), help="folder to be made anew")
    parser.add_argument("--debs", type=Path, default=Path("out/debs"), help="folder of .deb files")
    parser.add_argument("--data", type=Path, default=None, help="in place of $DEEPWELL_DATA")
    arguments = parser.parse_args()
    data = arguments.data or default_data()
    if arguments.to.exists() and (any(arguments.to.iterdir()) and not (arguments.to / "ABOUT").exists()):
        sys.exit(f"{arguments.to} is not a folder of this program (it has no file ABOUT); name another one")
    shutil.rmtree(arguments.to, ignore_errors=True)
    arguments.to.mkdir(parents=True)
    (arguments.to / "ABOUT").write_text("Made by benchmarks/corpus.py; made anew whenever that runs.\n")
    total = 0
    if data and (data / "text").is_dir():
        folder = arguments.to / "books"
        folder.mkdir()
        for name, read in BOOKS:
            _write(folder, Path(name).stem, _text_of(data / "text" / name), read)
        total += _report(folder)
    else:
        print("no DEEPWELL_DATA: without novels and plays", file=sys.stderr)
    for package in PACKAGES if shutil.which("dpkg-deb") else ():
        folder = arguments.to / package.name
        folder.mkdir()
        _from_package(package, arguments.debs, folder)
        total += _report(folder)
    print(f"{'all':22} {'':16} {total / 1e6:8.2f} MB in {os.fspath(arguments.to)}")


if __name__ == "__main__":
    main()
