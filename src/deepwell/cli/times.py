"""Dates as people write them, to spans of seconds since 1970.

    2024            the whole year              yesterday       the whole day
    2024-03         the whole month             last week       from 7 days ago to now (month, year likewise)
    2024-03-09      the whole day               2 weeks ago     that moment
    2024-03-09T21:40  that moment               now             this moment

A span lets both bounds mean what they say: ``--since 2024`` starts when the year begins, ``--until 2024`` ends when it
does. Times without an offset are local.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from deepwell.errors import UsageError

_UNITS = {"minute": 1 / 1440, "hour": 1 / 24, "day": 1.0, "week": 7.0, "month": 30.4375, "year": 365.25}
_EXAMPLES = "Write it like 2024, 2024-03, 2024-03-09, 2024-03-09T21:40, yesterday, last month or '2 weeks ago'."


def parse_span(text: str, *, now: datetime | None = None) -> tuple[float, float]:
    """First and last moment (excluded) that a date means, in seconds since 1970.

    Args:
        text: See the module's table.
        now: The present, aware; for tests.

    Raises:
        UsageError: Not a date.
    """
    now = now or datetime.now().astimezone()
    words = " ".join(text.lower().split())
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if words == "now":
        return now.timestamp(), now.timestamp()
    if words in ("today", "yesterday"):
        start = midnight - timedelta(days=words == "yesterday")
        return start.timestamp(), (start + timedelta(days=1)).timestamp()
    if match := re.fullmatch(rf"last ({'|'.join(_UNITS)})", words):
        return (now - timedelta(days=_UNITS[match[1]])).timestamp(), now.timestamp()
    if match := re.fullmatch(rf"(\d{{1,6}}|an?) ({'|'.join(_UNITS)})s?( ago)?", words):
        count = 1 if match[1].startswith("a") else int(match[1])
        try:
            moment = (now - timedelta(days=count * _UNITS[match[2]])).timestamp()
        except (OverflowError, ValueError):
            raise UsageError(f"{text!r} is too long ago", hint=_EXAMPLES) from None
        return moment, moment
    return _calendar(text.strip())


def _calendar(text: str) -> tuple[float, float]:
    try:
        if match := re.fullmatch(r"(\d{4})(?:-(\d{1,2}))?(?:-(\d{1,2}))?", text):
            year, month, day = int(match[1]), int(match[2] or 1), int(match[3] or 1)
            start = datetime(year, month, day)
            if match[3]:
                end = start + timedelta(days=1)
            elif match[2]:
                end = datetime(year + month // 12, month % 12 + 1, 1)
            else:
                end = datetime(year + 1, 1, 1)
            return start.timestamp(), end.timestamp()
        moment = datetime.fromisoformat(text).timestamp()
        return moment, moment
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{text!r} is not a date", hint=_EXAMPLES) from None
