"""Dates as files write them, to ISO 8601."""

import re
from datetime import UTC, date, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

_PDF = re.compile(r"D?:?(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?\s*(?:(Z)|([+-])(\d\d)'?(\d\d)?)?")
_DAY = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})")


def iso(value: object) -> str:
    """ISO 8601 of a date in ISO, RFC 5322 or year-first form, or of a ``datetime``; empty when it is none of them."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds") if value.year > 1 else ""
    text = str(value or "").strip()
    try:
        return iso(datetime.fromisoformat(text)) if len(text) > 10 else datetime.fromisoformat(text).date().isoformat()
    except ValueError:
        pass
    try:
        return iso(parsedate_to_datetime(text))
    except (ValueError, TypeError, IndexError, OverflowError):
        pass
    day = _DAY.match(text)
    try:
        return date(int(day[1]), int(day[2]), int(day[3])).isoformat() if day else ""
    except ValueError:
        return ""


def pdf_date(value: str) -> str:
    """ISO 8601 of a PDF date, ``D:20230306180657Z`` (ISO 32000-1, 7.9.4); empty when it is none."""
    found = _PDF.match(value.strip())
    if not found:
        return ""
    year, month, day, hour, minute, second = (int(part) if part else None for part in found.groups()[:6])
    zone = None
    if found[7]:
        zone = UTC
    elif found[8]:
        offset = timedelta(hours=int(found[9]), minutes=int(found[10] or 0))
        zone = timezone(offset if found[8] == "+" else -offset) if offset < timedelta(hours=24) else UTC
    try:
        return iso(datetime(year or 1, month or 1, day or 1, hour or 0, minute or 0, second or 0, tzinfo=zone))
    except ValueError:
        return ""
