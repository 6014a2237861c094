"""Narrow a passage's place to the quote, where the passage's lines say how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deepwell.library.answers.sentences import Span
from deepwell.library.records import Place


def narrow(place: Place, text: str, spans: Sequence[Span]) -> Place:
    """The part of ``place`` that holds ``spans`` of ``text``.

    A box for each line of text, or a line number for each, maps one to one; only then is anything cut away. Otherwise
    (boxes of regions, a stretch of speech) the whole passage's place is the honest answer.
    """
    if not spans:
        return place
    first = text.count("\n", 0, min(span.start for span in spans))
    last = text.count("\n", 0, max(span.end for span in spans))
    height = text.count("\n") + 1
    if len(place.boxes) == height and height > 1:
        place = replace(place, boxes=place.boxes[first : last + 1])
    if place.lines is not None and place.lines[1] - place.lines[0] + 1 == height:
        place = replace(place, lines=(place.lines[0] + first, place.lines[0] + last))
    if place.rows is not None and height > 1:
        rows = place.rows[1] - place.rows[0] + 1
        header = height - rows
        if header in (0, 1) and first >= header:
            place = replace(place, rows=(place.rows[0] + first - header, place.rows[0] + last - header))
    return place
