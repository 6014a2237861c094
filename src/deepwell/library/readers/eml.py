"""EML: a message's headers as facts, its body as text, and what is attached: by name, and read when it is text."""

from __future__ import annotations

import re
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from typing import Literal

from deepwell.errors import UnreadableFileError
from deepwell.library.protocols import Senses
from deepwell.library.readers.dates import iso
from deepwell.library.readers.decoding import decode, looks_like_text
from deepwell.library.readers.guard import MIB, TEXT_LIMIT, document, one_line, plain, read_bytes
from deepwell.library.readers.html import html_blocks
from deepwell.library.readers.passages import Block, cut
from deepwell.library.readers.plain import paragraphs
from deepwell.library.records import Document

_HEADER = re.compile(
    rb"(?:From |(?:Return-Path|Received|Delivered-To|From|To|Cc|Subject|Date|Message-ID|MIME-Version|"
    rb"DKIM-Signature|X-[\w-]+):)",
    re.IGNORECASE,
)
_PARTS = 200
_ATTACHMENT = 4 * MIB


class EmlReader:
    name = "email"
    version = 1
    suffixes = frozenset({".eml", ".emlx", ".mht", ".mhtml"})
    cost: Literal["fast", "slow"] = "fast"

    def accepts(self, head: bytes, suffix: str) -> float:
        """By suffix with a header first; without the suffix, by two headers that every message has."""
        if not looks_like_text(head) or not _HEADER.match(head.lstrip(b"0123456789 \r\n")):
            return 0.0
        if suffix in self.suffixes:
            return 0.9
        top = head.split(b"\n\n")[0].split(b"\r\n\r\n")[0].lower()
        return 0.65 if b"\nmessage-id:" in top and b"\ndate:" in top else 0.0

    def read(self, path: Path, senses: Senses) -> Document:
        """Read one file. Raises ``UnreadableFileError`` when it is empty, binary or above 64 MiB."""
        del senses
        data = read_bytes(path, TEXT_LIMIT, "a message")
        if path.suffix.lower() == ".emlx":
            data = data.partition(b"\n")[2]
        message = BytesParser(_class=EmailMessage, policy=policy.default).parsebytes(data)
        subject = _header(message, "subject")
        section = (subject,) if subject else ()
        said = ((name, _header(message, name)) for name in ("From", "To", "Cc", "Date", "Subject"))
        lines = [f"{name}: {value}" for name, value in said if value]
        blocks = [Block("\n".join(lines), section, "lines")]
        names: list[str] = []
        for part in _leaves(message):
            name = one_line(part.get_filename() or "")
            attached = bool(name) or part.get_content_disposition() == "attachment"
            if attached:
                names.append(name or part.get_content_type())
            blocks += _blocks(part, (*section, name) if attached and name else section, path, attached=attached)
        metadata: dict[str, str | int | float | None] = {
            "author": _header(message, "from"),
            "to": _header(message, "to"),
            "cc": _header(message, "cc"),
            "subject": subject,
            "message_id": _header(message, "message-id"),
            "created": iso(_header(message, "date")),
            "attachments": ", ".join(names),
        }
        return document("email", path, cut(blocks), title=subject, metadata=metadata)


def _header(message: EmailMessage, name: str) -> str:
    # Headers are parsed when they are asked for, and a broken one may raise almost anything.
    try:
        return one_line(str(message.get(name, "")))
    except Exception:
        return one_line(next((str(value) for key, value in message.raw_items() if key.lower() == name.lower()), ""))


def _leaves(message: EmailMessage) -> list[EmailMessage]:
    """Parts with content, in order; of alternatives plain text when there is some, else HTML."""
    leaves: list[EmailMessage] = []
    todo: list[EmailMessage] = [message]
    while todo and len(leaves) < _PARTS:
        part = todo.pop()
        if not part.is_multipart():
            leaves.append(part)
            continue
        inner = [child for child in part.get_payload() if isinstance(child, EmailMessage)]
        if part.get_content_type() == "multipart/alternative":
            simple = [child for child in inner if child.get_content_type() == "text/plain" and _bytes(child).strip()]
            inner = simple[:1] or inner[-1:]
        todo.extend(reversed(inner))
    return leaves


def _bytes(part: EmailMessage) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _blocks(part: EmailMessage, section: tuple[str, ...], path: Path, *, attached: bool) -> list[Block]:
    data = _bytes(part)
    if part.get_content_maintype() != "text" or not data or (attached and len(data) > _ATTACHMENT):
        return []
    try:
        text = data.decode(part.get_content_charset() or "utf-8")
    except (LookupError, UnicodeDecodeError):
        try:
            text = decode(data, path)[0]
        except UnreadableFileError:
            return []
    if part.get_content_type() == "text/html":
        return html_blocks(plain(text), section=section)
    return paragraphs(plain(text), section, first_line=None)
