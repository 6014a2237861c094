"""Records for people: a list of hits, an answer with its sources, what an add did, how a library stands.

Colours and links appear on a terminal only; piped into a file, a line stays a line and nothing is drawn.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from deepwell.library.records import AddReport, Answer, Citation, Hit, Place, Results, SpaceStatus, Status

SNIPPET = 280
"""Characters of a passage that a list shows."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # cli/main.py ends quietly; rich would end the process itself


def console(*, stderr: bool = False) -> Console:
    """A console for the process's standard output; 100 columns wide when that is not a terminal."""
    made = _Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 100
    return made


def plain(text: str, limit: int = 0) -> str:
    """One line without control characters (a document must not move the reader's cursor); cut at ``limit``."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in text).split())
    return line if not limit or len(line) <= limit else line[: limit - 1].rstrip() + "…"


def short_path(path: str) -> str:
    """A path from here when it lies below, from home when it lies there, else in full."""
    for base, mark in ((Path.cwd(), ""), (Path.home(), "~/")):
        try:
            return mark + str(Path(path).relative_to(base))
        except ValueError:
            continue
    return path


def path_text(path: str, style: str = "") -> Text:
    """A path, on a terminal with a link that opens it."""
    text = Text(plain(short_path(path)), style)
    if path.startswith("/") and path.isascii():
        text.stylize(f"link {Path(path).as_uri()}")
    return text


def query_words(query: str | None) -> re.Pattern[str] | None:
    """A pattern for a query's words and words that begin like them, or None when nothing is worth marking."""
    words = {w.lower() for w in re.findall(r"\w+", query or "")}
    stems = []
    for word in sorted(words - _COMMON, key=len, reverse=True):
        if not word.isascii():
            stems.append(re.escape(word))  # Chinese and Japanese have no white space to begin a word after
        elif len(word) > 2:
            stems.append(rf"\b{re.escape(_stem(word))}\w*")
    return re.compile("|".join(stems), re.IGNORECASE) if stems else None


def _stem(word: str) -> str:
    for ending in ("ing", "ies", "es", "ed", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


_COMMON = frozenset(
    """the and for are was were what when where which who whom whose why how does did has have had with from that this
    these those you your our its his her their they not but can will would should could about into than then there
    """.split()
)


def snippet(text: str, words: re.Pattern[str] | None, limit: int = SNIPPET) -> Text:
    """The part of a passage that holds most of the query's words, with these marked."""
    line = plain(text)
    found = [match.start() for match in words.finditer(line)] if words else []
    start = 0
    if found and len(line) > limit:
        best = max(found, key=lambda at: sum(at <= other < at + limit * 0.7 for other in found))
        start = min(max(0, best - limit // 4), len(line) - limit)
        if start:
            start = line.find(" ", start, start + 24) + 1 or start
    cut = line[start : start + limit]
    shown = Text(("…" if start else "") + cut.strip() + ("…" if start + limit < len(line) else ""))
    if words:
        shown.highlight_regex(words, "bold yellow")
    return shown


def results(out: Console, found: Results) -> None:
    """Print hits, best first: rank, title, kind and place, path, words, and each arm's share of the score."""
    words = query_words(found.query.text)
    for rank, hit in enumerate(found, 1):
        _hit(out, rank, hit, words)
    if not found.hits:
        out.print("Nothing found.")
    notices(out, found.notices)
    out.print(Text(f"{len(found)} found in {found.took_ms:.0f} ms", "dim"))


def _hit(out: Console, rank: int, hit: Hit, words: re.Pattern[str] | None) -> None:
    place = _where(hit.kind, hit.place)
    head = Text.assemble(
        (f"{rank:>2} ", "dim"), (plain(hit.title or Path(hit.path).name, 80), "bold"), ("  " + place, "cyan")
    )
    head.append(f"  {hit.score:.2f}", "green")
    out.print(head, soft_wrap=True)
    out.print(Text("   ") + path_text(hit.path, "dim"), soft_wrap=True)
    _indented(out, snippet(hit.text, words), 3)
    arms = " · ".join(f"{arm} {share:.2f}" for arm, share in sorted(hit.why.items(), key=lambda item: -item[1]))
    if arms:
        out.print(Text(f"   {arms}", "dim"))
    out.print()


def _indented(out: Console, text: Text, by: int) -> None:
    for line in text.wrap(out, max(20, out.width - by)):
        line.rstrip()
        out.print(Text(" " * by) + line, soft_wrap=True)


def _where(kind: str, place: Place) -> str:
    return " · ".join(part for part in (kind, plain(place.describe(), 80)) if part)


def answer(out: Console, given: Answer, *, text: bool = True) -> None:
    """Print an answer and its sources; ``text`` is false when the words were already streamed."""
    if text:
        if given.reasoning and out.is_terminal:
            _indented(out, Text(given.reasoning.strip(), "dim italic"), 2)
            out.print()
        out.print(Text(given.text.strip()))
    if given.citations:
        out.print()
    for citation in given.citations:
        _source(out, citation)
    told = list(given.notices)
    if given.dropped:
        told.append(f"{given.dropped} quotes were not in their source, word for word, and were taken out")
    if told:
        out.print()
        notices(out, told)
    out.print(Text(f"{given.model}, {given.took_ms / 1000:.1f} s", "dim"))


def _source(out: Console, citation: Citation) -> None:
    place = plain(citation.place.describe(), 80)
    head = Text(f"[{citation.n}] ", "bold") + path_text(citation.path)
    head.append(f"  {place}" if place else "", "cyan")
    head.append("" if citation.verified else "  not verified", "red")
    out.print(head, soft_wrap=True)
    _indented(out, Text(f"“{plain(citation.quote)}”", "italic"), 4)


def report(out: Console, done: AddReport) -> None:
    """Print what an add or sync did, in a line or two; failed files were already told one by one."""
    counts = {
        "added": done.added,
        "updated": done.updated,
        "moved": done.moved,
        "removed": done.removed,
        "unchanged": done.unchanged,
        "failed": len(done.failed),
    }
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing to do"
    if done.dry_run:
        for change in done.changes:
            old = f"  (was {plain(short_path(change.old_path))})" if change.old_path else ""
            out.print(Text(f"{change.action:7} {plain(short_path(change.path))}{old}"), soft_wrap=True)
        out.print(Text(f"would be: {told}"))
        return
    out.print(Text(f"{told[0].upper()}{told[1:]}", "bold"), end="")
    out.print(
        Text(
            f"  {done.passages:,} passages, {done.vectors:,} vectors, {size(done.bytes_read)}, {done.took_s:.1f} s",
            "dim",
        )
    )


def failures(out: Console, failed: Iterable[object], label: str = "failed") -> None:
    """One line for each file that could not be read or seen."""
    for one in failed:
        line = Text(f"{label}  ", "red") + Text(plain(short_path(getattr(one, "path", ""))))
        line.append(f": {plain(getattr(one, 'reason', ''))}")
        hint = plain(getattr(one, "hint", ""))
        line.append(f" ({hint})" if hint else "", "dim")
        out.print(line, soft_wrap=True)


def status(out: Console, now: Status) -> None:
    """Print how a library stands."""
    out.print(Text("library    ", "dim") + path_text(now.path, "bold"), soft_wrap=True)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(now.kinds.items(), key=lambda item: -item[1]))
    out.print(
        Text("documents  ", "dim") + Text(f"{now.documents:,}" + (f" ({kinds})" if kinds else "")), soft_wrap=True
    )
    out.print(Text("passages   ", "dim") + Text(f"{now.passages:,}"))
    for space in now.spaces:
        out.print(Text("vectors    ", "dim") + _space(space))
    for root in now.roots:
        out.print(Text("folder     ", "dim") + path_text(root), soft_wrap=True)
    out.print(Text("on disk    ", "dim") + Text(f"{size(now.bytes_on_disk)} in {now.files_on_disk:,} files"))
    if now.writer:
        out.print(Text("writing    ", "dim") + Text(plain(now.writer)))
    if now.failed:
        out.print()
        failures(out, now.failed)
    if now.notices:
        out.print()
        notices(out, now.notices)


def _space(space: SpaceStatus) -> Text:
    share = 100 * space.done / space.total if space.total else 100
    text = Text(f"{space.space}: {space.done:,} of {space.total:,} ({share:.0f}%) by {space.encoder}")
    return text if space.active else text.append("  being prepared, not searched yet", "yellow")


def notices(out: Console, lines: Sequence[str]) -> None:
    """What a person should know, one line each; paths below here are shortened."""
    here = f"{Path.cwd()}{os.sep}"
    for line in lines:
        out.print(Text("note  ", "yellow") + Text(plain(line.replace(here, ""))), soft_wrap=True)


def size(count: float) -> str:
    """Bytes as people write them: ``91.6 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def recording_console(width: int = 100) -> Console:
    """A console that keeps what it prints, with colours, for the pictures of the documentation."""
    return Console(record=True, width=width, file=io.StringIO(), force_terminal=True, highlight=False)


def is_terminal() -> bool:
    """Whether a person is watching standard output."""
    return sys.stdout.isatty()
