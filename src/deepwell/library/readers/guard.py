"""What every reader checks before it believes a file: its size, its name, and what its archive claims to hold.

Files come from anywhere. A reader must end with passages or with one clear line, in bounded memory, so the limits are
here in one place. A limit that a real file may meet says in its message what to do.
"""

from __future__ import annotations

import os
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepwell.errors import MissingExtraError, UnreadableFileError
from deepwell.library.records import Document, Kind, Passage, Place

MIB = 1 << 20
TEXT_LIMIT = 64 * MIB
FILE_LIMIT = 2048 * MIB

_UNPACKED_LIMIT = 1024 * MIB
_MEMBER_LIMIT = 256 * MIB
_MEMBERS_LIMIT = 20_000
_RATIO_LIMIT = 200
_RATIO_FLOOR = 16 * MIB

# Controls but tab and line break, and halves of surrogate pairs, which no UTF-8 file or table can hold.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufeff]")


def shown(path: Path | str) -> str:
    """A path's last part for people: always encodable, also when the name is not UTF-8."""
    name = path.name if isinstance(path, Path) else path
    return os.fsencode(name).decode("utf-8", "replace")


def plain(text: str) -> str:
    """Text that can be stored: Unix line breaks, no NUL or other controls, lone surrogates become U+FFFD."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNFIT.sub(lambda bad: "\ufffd" if "\ud800" <= bad.group() <= "\udfff" else "", text)


def one_line(text: str) -> str:
    """Plain text with its white space run together, for titles and metadata."""
    return " ".join(plain(text).split())


def check_size(path: Path, limit: int = FILE_LIMIT, what: str = "a file") -> int:
    """Bytes in the file. Raises ``UnreadableFileError`` when it is empty, above the limit, or cannot be opened."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise unopened(path, error) from error
    if size == 0:
        raise UnreadableFileError(f"{shown(path)} is empty (0 bytes)", hint="Replace it with a whole copy.")
    if size > limit:
        raise UnreadableFileError(
            f"{shown(path)} has {size / MIB:,.0f} MiB, above the limit of {limit / MIB:,.0f} MiB for {what}",
            hint="Split it into smaller files.",
        )
    return size


def unopened(path: Path, error: OSError) -> UnreadableFileError:
    """What to raise for a file that the system does not let us read."""
    if isinstance(error, PermissionError):
        return UnreadableFileError(
            f"{shown(path)} may not be read: no permission", hint="Change its permissions, then: deepwell sync --retry"
        )
    return UnreadableFileError(f"{shown(path)} cannot be read: {error.strerror or error}")


def read_bytes(path: Path, limit: int, what: str) -> bytes:
    """The whole file, checked as by ``check_size``."""
    check_size(path, limit, what)
    try:
        with path.open("rb") as file:
            # One byte more than allowed: the file may have grown since it was measured.
            data = file.read(limit + 1)
    except OSError as error:
        raise unopened(path, error) from error
    if len(data) > limit:
        raise UnreadableFileError(f"{shown(path)} grew above the limit of {limit / MIB:,.0f} MiB while it was read")
    return data


def document(
    kind: Kind,
    path: Path,
    passages: list[Passage],
    *,
    title: str = "",
    metadata: Mapping[str, str | int | float | None] | None = None,
    missing: tuple[str, ...] = (),
) -> Document:
    """A document whose every string can be stored. Empty facts are left out; the file's name stands in for a title."""
    facts: dict[str, str | int | float] = {}
    for key, value in (metadata or {}).items():
        kept = one_line(value)[:2000] if isinstance(value, str) else value
        if kept is not None and kept != "":
            facts[one_line(key)[:200]] = kept
    return Document(
        kind,
        one_line(title)[:300] or shown(path.stem),
        tuple(passage for passage in map(_fit, passages) if passage.text.strip()),
        facts,
        missing,
    )


def _fit(passage: Passage) -> Passage:
    place = passage.place
    section = tuple(one_line(part)[:200] for part in place.section if part.strip())
    return Passage(
        plain(passage.text),
        Place(place.page, place.boxes, place.start, place.end, place.rows, place.lines, section),
        passage.modality,
        passage.labels,
    )


def fold(text: str) -> str:
    """Typographic ligatures and compatibility forms of letters as the letters that people type and search."""
    return re.sub("[ﬀ-ﬆ]", lambda found: unicodedata.normalize("NFKC", found.group()), text)


@contextmanager
def needs(extra: str = "documents") -> Iterator[None]:
    """Turn a missing package inside the block into the error that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"reading this file needs the package {error.name}", hint=f'Run: pip install "deepwell[{extra}]"'
        ) from error


class Archive:
    """A ZIP file that was checked before anything in it is unpacked, and read member by member.

    Raises ``UnreadableFileError`` for a corrupt or encrypted archive, and for a bomb: what it declares to hold, in
    all, in one member or against its packed size, is beyond any honest document. Declared sizes can be trusted as an
    upper bound, for ``zipfile`` stops a member there and then compares its checksum.
    """

    def __init__(self, path: Path) -> None:
        self._name = shown(path)
        packed = check_size(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeError) as error:
            raise UnreadableFileError(f"{self._name} is damaged: {error}") from error
        try:
            self._check(packed)
        except BaseException:
            self.close()
            raise
        self.names = frozenset(self._zip.namelist())

    def _check(self, packed: int) -> None:
        members = self._zip.infolist()
        total = sum(member.file_size for member in members)
        largest = max((member.file_size for member in members), default=0)
        bomb = len(members) > _MEMBERS_LIMIT or total > _UNPACKED_LIMIT or largest > _MEMBER_LIMIT
        if bomb or (total > _RATIO_FLOOR and total > packed * _RATIO_LIMIT):
            raise UnreadableFileError(
                f"{self._name} unpacks from {packed / MIB:,.1f} to {total / MIB:,.0f} MiB in {len(members):,} parts, "
                "beyond any honest document",
                hint="If you trust it, take it apart and add its parts.",
            )
        if any(member.flag_bits & 1 for member in members):
            raise UnreadableFileError(f"{self._name} is encrypted with a password", hint="Save it without one.")

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._zip.close()

    def read(self, name: str) -> bytes:
        """One member. Raises ``UnreadableFileError`` when it is not there or damaged."""
        return self._part(name, -1)

    def _part(self, name: str, size: int) -> bytes:
        try:
            with self._zip.open(name) as part:
                return part.read(size)
        except KeyError as error:
            raise UnreadableFileError(f"{self._name} is damaged: it has no part {name}") from error
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise UnreadableFileError(f"{self._name} is damaged in its part {name}: {error}") from error

    def refuse_entities(self, name: str) -> None:
        """For a part that another library will parse: refuse a document type, which the Office formats forbid."""
        head = self._part(name, 1 << 16)
        if b"<!" in head.replace(b"\0", b"").replace(b"<!--", b"").replace(b"<![CDATA[", b""):
            raise UnreadableFileError(f"{self._name} defines XML entities, which no honest document needs")

    def xml(self, name: str) -> Any:
        """One member as an lxml element."""
        return parse_xml(self.read(name), f"{self._name} in its part {name}")

    def xml_or_none(self, name: str) -> Any:
        """As ``xml``, None when there is no such part."""
        return self.xml(name) if name in self.names else None


def parse_xml(data: bytes, where: str) -> Any:
    """An lxml element. Entity definitions are refused, nothing outside the file is ever fetched."""
    with needs():
        from lxml import etree
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=False)
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise UnreadableFileError(f"{where} is not well-formed XML: {error}") from error
    dtd = root.getroottree().docinfo.internalDTD
    if dtd is not None and next(iter(dtd.iterentities()), None) is not None:
        raise UnreadableFileError(f"{where} defines XML entities, which no honest document needs")
    return root
