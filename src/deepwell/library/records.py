"""The nouns that pass between the rooms of a library.

Every noun is a frozen dataclass that carries what the next room needs, so no room reaches back for more, and is
checked where it is made. ``to_json`` of each gives plain JSON types with the same field names; ``--json`` prints it.

    file --readers--> Document of Passages, each with its Place
    words, picture, sound --search--> Query --> Hit* --answers--> Answer with Citation*
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from deepwell.errors import UsageError

Kind = Literal["text", "code", "web", "pdf", "document", "slides", "table", "book", "email", "image", "audio"]
"""What a file is to a person, and what ``--kind`` takes. ``document`` is a word-processor file, ``web`` is HTML."""

KINDS: tuple[Kind, ...] = get_args(Kind)

Modality = Literal["text", "image", "audio"]
"""What a passage was perceived from: words as such, a picture as a whole, or sounds (not speech, which is words)."""

Json = Any


def to_json(value: object) -> Json:
    """Turn records (nested in any way) into plain JSON types; non-finite floats become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on a page or picture, as fractions of its width and height from the top left corner (0 to 1)."""

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        if not (self.left <= self.right and self.top <= self.bottom):
            raise ValueError(f"box corners are out of order: {self}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file a passage stands. What does not apply is None or empty.

    Attributes:
        page: Page, slide or book chapter, counted from 1.
        boxes: Where on that page, one box for each line or region.
        start, end: Seconds from the start of a recording.
        rows: First and last data row of a table, counted from 1, both included. The header is not a row.
        lines: First and last line of a text file, counted from 1, both included.
        section: Headings above the passage, outermost first; for a table the sheet's name.
    """

    page: int | None = None
    boxes: tuple[Box, ...] = ()
    start: float | None = None
    end: float | None = None
    rows: tuple[int, int] | None = None
    lines: tuple[int, int] | None = None
    section: tuple[str, ...] = ()

    def describe(self) -> str:
        """For people: ``page 3``, ``0:12–0:19``, ``rows 5–20``, ``lines 10–30``; empty when it is the whole file."""
        parts = []
        if self.page is not None:
            parts.append(f"page {self.page}")
        if self.start is not None:
            end = f"–{_clock(self.end)}" if self.end is not None else ""
            parts.append(f"{_clock(self.start)}{end}")
        if self.rows is not None:
            parts.append(f"rows {self.rows[0]}–{self.rows[1]}")
        if self.lines is not None:
            parts.append(f"lines {self.lines[0]}–{self.lines[1]}")
        if self.section:
            parts.append(" › ".join(self.section))
        return ", ".join(parts)

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Place:
        """The inverse of ``to_json``."""

        def pair(key: str) -> tuple[int, int] | None:
            value = data.get(key)
            return None if value is None else (int(value[0]), int(value[1]))

        return cls(
            page=data.get("page"),
            boxes=tuple(Box(**box) for box in data.get("boxes") or ()),
            start=data.get("start"),
            end=data.get("end"),
            rows=pair("rows"),
            lines=pair("lines"),
            section=tuple(data.get("section") or ()),
        )


def _clock(seconds: float | None) -> str:
    whole = int(seconds or 0)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


@dataclass(frozen=True, slots=True)
class Label:
    """Something seen or heard: a class name of a classifier and its probability (0 to 1)."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document that can be found and cited, as a reader gives it.

    Attributes:
        text: The words to search and to quote. For a picture or a sound: its labels and facts as words.
        place: Where it stands.
        modality: ``text`` for words (also spoken or scanned ones); ``image`` for a picture as a whole and ``audio``
            for a stretch of sound, whose meaning is taken from ``labels``.
        labels: What a classifier saw or heard, best first.
    """

    text: str
    place: Place = Place()
    modality: Modality = "text"
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """What a reader makes of one file.

    Attributes:
        kind: What the file is.
        title: Its own title, or its file name without suffix.
        passages: In reading order.
        metadata: Flat facts for ``--where key=value``: author, camera, created (ISO 8601), columns, and so on.
        missing: Names of models or extras that would have told more (``rapidocr``, ``whisper-tiny``). The file is read
            again when one of them has arrived.
    """

    kind: Kind
    title: str
    passages: tuple[Passage, ...]
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}; one of {', '.join(KINDS)}")


@dataclass(frozen=True, slots=True)
class Filters:
    """Which documents a search may return. Every condition must hold; an empty one holds always.

    Attributes:
        kinds: Any of these.
        path: Glob on the whole path; ``*`` crosses folders (``*/reports/*.pdf``); without a slash or star it is a
            folder or file that the path lies under.
        since, until: Bounds on the document's own date (metadata ``created``), else its file's modification time;
            seconds since 1970, UTC; since is included, until is not.
        where: Metadata that must be equal, compared as text, letter case ignored.
    """

    kinds: tuple[Kind, ...] = ()
    path: str | None = None
    since: float | None = None
    until: float | None = None
    where: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise UsageError(f"unknown kind {kind!r}", hint=f"Use one of: {', '.join(KINDS)}.")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise UsageError("the time range is empty: 'since' is not before 'until'")

    def __bool__(self) -> bool:
        return bool(self.kinds or self.path or self.since is not None or self.until is not None or self.where)


@dataclass(frozen=True, slots=True)
class Query:
    """What a person asks for: words, a picture, a recording, or several of them, within filters."""

    text: str | None = None
    image: Path | None = None
    audio: Path | None = None
    filters: Filters = field(default_factory=Filters)
    limit: int = 10

    def __post_init__(self) -> None:
        if not (self.text and self.text.strip()) and self.image is None and self.audio is None:
            raise UsageError("nothing to search for", hint="Give words, an image or a recording.")
        if not 1 <= self.limit <= 1000:
            raise UsageError(f"limit is {self.limit}", hint="Use 1 to 1000.")


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found.

    Attributes:
        document_id, passage_id: Stable names within the library; a moved file keeps its document_id.
        path: The file as it was added (absolute), or ``text:ID`` for texts added by ``add_texts``.
        score: What the list is ordered by, 0 to 1 within one search; not comparable between searches.
        why: Each arm's share before fusion, by name: ``words``, ``meaning``, ``likeness`` (picture to picture), and so
            on. An arm that did not find the passage is absent.
    """

    document_id: str
    passage_id: str
    path: str
    kind: Kind
    text: str
    place: Place
    score: float
    why: Mapping[str, float]
    title: str = ""
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Results(Sequence[Hit]):
    """Hits, best first, and what a person should know about them.

    Attributes:
        notices: One line each: what was left out and how to get it (``vectors for 120 of 900 passages are still to
            come``, ``no text encoder: words only; run: deepwell models pull starter``).
    """

    query: Query
    hits: tuple[Hit, ...]
    took_ms: float
    notices: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: Any) -> Any:
        return self.hits[index]


@dataclass(frozen=True, slots=True)
class Citation:
    """A claim's source: a quote that code has compared word for word with the passage it names.

    Attributes:
        n: The number in square brackets in the answer's text, from 1.
        verified: The quote stands in the passage, spelled the same (white space and typographic variants aside).
    """

    n: int
    quote: str
    path: str
    place: Place
    verified: bool
    document_id: str = ""
    passage_id: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its sources.

    Attributes:
        reasoning: What a reasoning model thought before it answered; never cited, never fed back.
        abstained: The library holds no good evidence; ``text`` says so and there are no citations.
        dropped: How many quotes failed their check and were taken out.
        model: Who wrote the text; ``extractive`` means sentences copied from the library.
    """

    question: str
    text: str
    reasoning: str
    citations: tuple[Citation, ...]
    abstained: bool
    model: str
    took_ms: float
    dropped: int = 0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileFailure:
    """A file that could not be read, in one line."""

    path: str
    reason: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class FileChange:
    """What ``sync`` did, or with ``--dry-run`` would do, to one file."""

    action: Literal["add", "update", "move", "remove", "retry"]
    path: str
    old_path: str = ""


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an ``add`` or ``sync`` did. Counts are files, except ``passages`` and ``vectors`` written.

    Attributes:
        unseen: Folders or files that could not be looked at (an unplugged disk, no permission); what the library holds
            from there was kept.
        notices: What could not be told about some files and how to get it.
    """

    added: int = 0
    updated: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    failed: tuple[FileFailure, ...] = ()
    unseen: tuple[FileFailure, ...] = ()
    passages: int = 0
    vectors: int = 0
    bytes_read: int = 0
    took_s: float = 0.0
    dry_run: bool = False
    changes: tuple[FileChange, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpaceStatus:
    """How far the vectors of one space are.

    Attributes:
        space: ``text`` (words, and labels by ConSE) or ``image`` (picture features).
        active: Searches use this encoder's vectors; a new encoder is active only when its vectors are complete.
        done, total: Passages that have a vector, and that should.
    """

    space: str
    encoder: str
    fingerprint: str
    active: bool
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a library."""

    path: str
    documents: int
    passages: int
    kinds: Mapping[str, int]
    roots: tuple[str, ...]
    spaces: tuple[SpaceStatus, ...]
    failed: tuple[FileFailure, ...]
    bytes_on_disk: int
    files_on_disk: int
    writer: str | None = None
    notices: tuple[str, ...] = ()
