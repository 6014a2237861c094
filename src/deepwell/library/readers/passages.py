"""The passage cutter: blocks of a document in, passages of 150 to 300 tokens out.

A reader says what it saw, in order: headings, paragraphs, lines of code, each with its page, lines and boxes. It does
not think about sizes. The cutter does, in three steps:

1. Blocks become units that are never cut again: sentences, lines, and pieces of sentences that are too long.
2. Units of one section on one page are a run. Small runs join their neighbours (a page of ten short sections is not ten
   passages); a heading without text of its own goes with what follows. Pages are never crossed.
3. A run that is too long is cut into equal shares rather than full ones and a crumb, each cut at the best border near
   its share: before a heading, between paragraphs, lines or sentences, and inside a sentence only when it must.

Time is linear in the text, and the same blocks always give the same passages.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, NamedTuple

from deepwell.library.readers.sentences import cut_long, sentence_spans
from deepwell.library.readers.tokens import estimate_tokens
from deepwell.library.records import Box, Passage, Place

MIN_TOKENS = 150
MAX_TOKENS = 300
_TARGET = 225
_LONGEST_UNIT = 180
_CRUMB = 40

# What a cut before a unit costs, beside its distance from the ideal size as a share of that size.
_HEADING, _BLOCK, _LINE, _SENTENCE, _INSIDE, _STUCK = 0.0, 0.12, 0.25, 0.3, 0.8, 2.0


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, a paragraph, or lines that belong together, as a reader found it.

    Attributes:
        text: Its words.
        section: Headings above it, outermost first. A heading's own section ends with itself.
        role: ``prose`` is cut at sentences, ``lines`` at line breaks; a ``heading`` stays with what follows it.
        page: Page, slide or chapter, from 1.
        line: Number of its first line in the file, from 1; None when lines mean nothing there.
        starts: Offsets in ``text`` where each of its lines begins, the first of them 0; needed with boxes, and with
            ``line`` where line breaks were taken out of the text.
        boxes: One for each line, where the reader knows.
        tight: Joined to the block before it by a line break instead of a blank line (items of a list).
    """

    text: str
    section: tuple[str, ...] = ()
    role: Literal["prose", "lines", "heading"] = "prose"
    page: int | None = None
    line: int | None = None
    starts: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    tight: bool = False


class _Unit(NamedTuple):
    block: Block
    start: int
    end: int
    tokens: float
    border: float


def cut(blocks: Iterable[Block]) -> list[Passage]:
    """Passages in the order of the blocks; blocks without words give none."""
    passages: list[Passage] = []
    for _, on_page in groupby(blocks, key=lambda block: block.page):
        runs = [_units(run) for run in _by_section(on_page)]
        for run in _joined([run for run in runs if run]):
            passages.extend(_passage(share) for share in _shares(run))
    return passages


def cut_text(text: str) -> list[str]:
    """Pieces of one text without structure."""
    return [passage.text for passage in cut([Block(text)])]


def _by_section(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    for _, run in groupby(blocks, key=lambda block: block.section):
        yield list(run)


def _units(blocks: Sequence[Block]) -> list[_Unit]:
    units: list[_Unit] = []
    after_heading = False
    for block in blocks:
        if not block.text.strip():
            continue
        if block.line is not None and not block.starts:
            # Found once for the block: counting line breaks anew for each passage would be quadratic.
            block = replace(block, starts=(0, *(ending.end() for ending in re.finditer("\n", block.text))))
        border = _STUCK if after_heading else _HEADING if block.role == "heading" else _LINE if block.tight else _BLOCK
        for start, end, inner in _spans(block):
            tokens = estimate_tokens(block.text[start:end])
            if tokens <= _LONGEST_UNIT:
                units.append(_Unit(block, start, end, tokens, border if start == 0 else inner))
                continue
            for piece_start, piece_end in cut_long(block.text, start, end, _LONGEST_UNIT * 0.7):
                rank = border if piece_start == 0 else inner if piece_start == start else _INSIDE
                tokens = estimate_tokens(block.text[piece_start:piece_end])
                units.append(_Unit(block, piece_start, piece_end, tokens, rank))
        after_heading = block.role == "heading"
    return units


_LINE_BREAKS = re.compile(r"\n(?:[^\S\n]*\n)*")


def _spans(block: Block) -> Iterator[tuple[int, int, float]]:
    """(start, end, cost of a cut before it) of each sentence or line; white space between lines goes to the earlier."""
    if block.role != "lines":
        for start, end in sentence_spans(block.text):
            yield start, end, _SENTENCE
        return
    start, border = 0, _BLOCK
    for ending in _LINE_BREAKS.finditer(block.text):
        yield start, ending.end(), border
        start, border = ending.end(), _LINE if ending.end() - ending.start() == 1 else _BLOCK
    if start < len(block.text):
        yield start, len(block.text), border


def _joined(runs: Sequence[list[_Unit]]) -> Iterator[list[_Unit]]:
    current: list[_Unit] = []
    size = 0.0
    for run in runs:
        tokens = sum(unit.tokens for unit in run)
        fits = size + tokens <= MAX_TOKENS and size < MIN_TOKENS
        bare = bool(current) and size < MIN_TOKENS and all(unit.block.role == "heading" for unit in current)
        if current and (fits or bare or min(size, tokens) < _CRUMB):
            first = run[0]._replace(border=_STUCK if bare else _HEADING)
            current += [first, *run[1:]]
            size += tokens
        else:
            if current:
                yield current
            current, size = list(run), tokens
    if current:
        yield current


def _shares(run: Sequence[_Unit]) -> Iterator[Sequence[_Unit]]:
    start, left = 0, sum(unit.tokens for unit in run)
    while left > MAX_TOKENS:
        ideal = left / max(2, math.ceil(left / _TARGET - 0.25))
        size, stop, best, lowest, taken = 0.0, start, start + 1, math.inf, run[start].tokens
        while stop < len(run) - 1:
            size += run[stop].tokens
            stop += 1
            if size > MAX_TOKENS:
                break
            cost = abs(size - ideal) / ideal + run[stop].border
            if cost < lowest:
                lowest, best, taken = cost, stop, size
        yield run[start:best]
        start, left = best, left - taken
    yield run[start:]


def _passage(units: Sequence[_Unit]) -> Passage:
    text: list[str] = []
    boxes: list[Box] = []
    numbers: list[int] = []
    for block, parts in _parts(units):
        start, end = parts
        body = block.text[start:end]
        body = body.strip("\n").rstrip() if block.role == "lines" else body.strip()
        gap = 1 if block.tight else 2
        if block.starts:
            # White space at the ends is not quoted, so the lines it lies on do not count.
            whole = block.text[start:end]
            begin = start + len(whole) - len(whole.lstrip())
            first = bisect_right(block.starts, begin) - 1
            last = bisect_left(block.starts, start + len(whole.rstrip())) - 1
            boxes.extend(block.boxes[first : last + 1])
            if block.line is not None:
                # As many line breaks as in the file, so that lines of code can be quoted as they stand.
                gap = min(3, max(1, block.line + first - numbers[-1])) if numbers else 0
                numbers += [block.line + first, block.line + last]
        text += ["\n" * gap, body] if text else [body]
    lines = (min(numbers), max(numbers)) if numbers else None
    place = Place(page=units[0].block.page, boxes=tuple(boxes), lines=lines, section=_section(units))
    return Passage("".join(text).strip("\n"), place)


def _parts(units: Sequence[_Unit]) -> Iterator[tuple[Block, tuple[int, int]]]:
    for _, group in groupby(units, key=lambda unit: id(unit.block)):
        members = list(group)
        yield members[0].block, (members[0].start, members[-1].end)


def _section(units: Sequence[_Unit]) -> tuple[str, ...]:
    """The headings that hold for all of it, crumbs of other sections aside.

    Headings that only lead to deeper ones do not shorten the path.
    """
    weights: dict[tuple[str, ...], float] = {}
    for unit in units:
        if unit.block.role != "heading":
            weights[unit.block.section] = weights.get(unit.block.section, 0.0) + unit.tokens
    if not weights:
        return units[-1].block.section
    enough = sum(weights.values()) / 5
    sections = [section for section, tokens in weights.items() if tokens >= enough] or list(weights)
    low, high = min(sections), max(sections)
    same = 0
    while same < min(len(low), len(high)) and low[same] == high[same]:
        same += 1
    return low[:same]
